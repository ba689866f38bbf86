"""The losses in mmsegmentation 1.2: names for its registry, and heads that leave the interpolation to the loss.

In a config:

    custom_imports = dict(imports=["lal_triton.integrations.mmseg"])
    decode_head = dict(type="LowResolutionHead", head="FCNHead", loss_decode=dict(type="LocallyAdaptiveLoss"))
"""

import functools
import types
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses.utils import get_class_weight
from mmseg.registry import MODELS
from torch import Tensor, nn

from lal_triton import modules, validation
from lal_triton.evaluation import evaluate
from lal_triton.labels import without_channel

EPS = torch.finfo(torch.float32).eps  # mmseg adds it to the divisor of a mean, which may be 0
CLASSES_AT_ONCE = 8  # the accuracy holds the interpolated logits of so many classes
REFUSED = {
    "weight": "pass class_weight",
    "ignore_index": "the head gives its own",
    "align_corners": "the head gives its own",
    "process_group": "the losses of mmseg are those of one process",
}


class _Loss(nn.Module):
    """A loss of the package by mmseg's protocol.

    The mean is mmseg's: the sum of the weighted pixel losses divided by `avg_factor`, by default the number of all
    pixels, or of the valid ones with `avg_non_ignore`. Neither counts `weight`. With `class_weight` the divisor is the
    sum of the class weights at the labels. Other reductions than "mean", "sum" and "none" pool as the package does,
    with `weight` as pixel weights.
    """

    kind: type[modules._Loss]
    name: str
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Any = None,
        loss_weight: float = 1.0,
        loss_name: str | None = None,
        avg_non_ignore: bool = False,
        use_sigmoid: bool = False,
        **options: Any,
    ) -> None:
        """`class_weight` is a list, or names a file that mmseg reads; `options` are those of the package's loss."""
        super().__init__()
        if use_sigmoid:
            raise ValueError("use_sigmoid is True, expected False: the losses take the softmax over the classes")
        for name in REFUSED.keys() & options.keys():
            raise TypeError(f"{name} is not an option of {type(self).__name__}: {REFUSED[name]}")
        self.loss = self.kind(**options)
        self.loss_weight = loss_weight
        self.loss_name = loss_name or self.name
        self.avg_non_ignore = avg_non_ignore
        if class_weight is not None:
            class_weight = torch.as_tensor(get_class_weight(class_weight), dtype=torch.float64)
        validation.check_weight_values("class_weight", class_weight)
        self.register_buffer("class_weight", class_weight, persistent=False)  # mmseg's losses have no state

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
        *,
        align_corners: bool = False,
    ) -> Tensor:
        """The loss of `[N, C, h, w]` logits and `[N, H, W]` labels, with optional `[N, H, W]` weights."""
        validation.check_choice("reduction_override", reduction_override, (None, "none", "mean", "sum"))
        reduction = reduction_override or self.loss.request.reduction
        if avg_factor is not None and reduction not in ("mean", "none"):
            raise ValueError(f'avg_factor is {avg_factor!r}, expected None with reduction="{reduction}"')
        validation.check_integer("ignore_index", ignore_index)  # mmseg has None, too
        request = self.loss.request_with(
            align_corners=align_corners,
            reduction="sum" if reduction == "mean" else reduction,
            ignore_index=ignore_index,
        )
        label = without_channel(label)
        pixel_weight = None if weight is None else weight.float()
        loss = evaluate(cls_score, label, self.class_weight, pixel_weight, request)
        if reduction == "mean":
            loss = loss / ((self._count(label, ignore_index).to(loss) if avg_factor is None else avg_factor) + EPS)
        return self.loss_weight * loss

    def _count(self, label: Tensor, ignore_index: int) -> Tensor:
        """What a mean divides by."""
        stride = self.loss.request.local.stride
        label = label[:, ::stride, ::stride].long()
        counted = label != ignore_index if self.avg_non_ignore else torch.ones_like(label, dtype=torch.bool)
        if self.class_weight is None:
            return counted.sum()
        counted &= (label >= 0) & (label < len(self.class_weight))
        return (self.class_weight[label.where(counted, 0)] * counted).sum()

    def extra_repr(self) -> str:
        return f"loss_name={self.loss_name!r}, loss_weight={self.loss_weight}, avg_non_ignore={self.avg_non_ignore}"


@MODELS.register_module()
class UpsampledCrossEntropyLoss(_Loss):
    """mmseg's `CrossEntropyLoss` of logits of any size, with its default `avg_non_ignore=False`."""

    kind, name = modules.CrossEntropyLoss, "loss_ce"


@MODELS.register_module()
class UpsampledFocalLoss(_Loss):
    """The focal loss of the softmax, `lal_triton.FocalLoss`; mmseg's `FocalLoss` is one of sigmoids."""

    kind, name = modules.FocalLoss, "loss_focal"


@MODELS.register_module()
class LocallyAdaptiveLoss(_Loss):
    """`lal_triton.LocallyAdaptiveLoss`, whose default `reduction` is "minkowski"."""

    kind, name = modules.LocallyAdaptiveLoss, "loss_lal"


class LowResolutionLoss(BaseDecodeHead):
    """Mix-in that gives the losses above the head's logits as they are, and other losses the interpolated ones.

    It stands behind the head, `class MyHead(FCNHead, LowResolutionLoss)`, so that a head which extends `loss_by_feat`
    (EncHead, DAHead, STDCHead) calls it by `super()`. A `sampler` sees the interpolated logits, without a graph.
    """

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
        label = self._stack_batch_gt(batch_data_samples)  # [N, 1, H, W]
        interpolate = functools.partial(
            F.interpolate, size=label.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        interpolated = functools.cache(lambda: interpolate(seg_logits))
        weight = None
        if self.sampler is not None:
            with torch.no_grad():
                weight = self.sampler.sample(interpolate(seg_logits), label)
        label = label.squeeze(1)
        losses: dict[str, Any] = {}
        loss: Any
        for loss in self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]:
            options = {"weight": weight, "ignore_index": self.ignore_index}
            if isinstance(loss, _Loss):
                value = loss(seg_logits, label, **options, align_corners=self.align_corners)
            else:
                value = loss(interpolated(), label, **options)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        losses["acc_seg"] = accuracy(seg_logits, label, self.ignore_index, self.align_corners)
        return losses


@MODELS.register_module(name="LowResolutionHead")
def low_resolution_head(head: str | type[BaseDecodeHead], **options: Any) -> BaseDecodeHead:
    """The head of mmseg's registry, built with its `options` and `LowResolutionLoss`."""
    base = MODELS.get(head) if isinstance(head, str) else head
    if not isinstance(base, type) or not issubclass(base, BaseDecodeHead):
        raise TypeError(f"head is {head!r}, expected a BaseDecodeHead or the name of one in mmseg's registry")
    return types.new_class(f"LowResolution{base.__name__}", (base, LowResolutionLoss))(**options)


@torch.no_grad()
def accuracy(logits: Tensor, label: Tensor, ignore_index: int | None, align_corners: bool) -> Tensor:
    """Percent of the valid pixels whose largest interpolated logit is that of their label, `[1]` as mmseg's."""
    best = logits.new_full(label.shape, -torch.inf)
    predicted = torch.zeros_like(label)
    for first, part in enumerate(logits.split(CLASSES_AT_ONCE, dim=1)):
        values, classes = F.interpolate(part, label.shape[1:], mode="bilinear", align_corners=align_corners).max(dim=1)
        predicted = (classes + first * CLASSES_AT_ONCE).where(values > best, predicted)
        best = values.maximum(best)
    valid = torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label != ignore_index
    correct = (predicted == label) & valid
    return 100 * ((correct.sum() + EPS) / (valid.sum() + EPS))[None]
