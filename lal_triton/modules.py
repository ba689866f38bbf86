"""The losses as modules: the options of the functions as constructor arguments, checked once.

The `process_group` of a module may be given before there is one: "world" is then read at each forward, a callable is
called at the first. None is "rank" but where it may be a torch.distributed.group.WORLD that was read too early: a
module that was made before init_process_group refuses it at the first forward after, if there are other ranks. A module
that holds a group can neither be pickled nor deep-copied, since torch's groups cannot; "world" can.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lal_triton import center, process_groups, validation
from lal_triton.evaluation import evaluate
from lal_triton.options import Alpha, KernelSize, Request, Window, make_request


class _Loss(nn.Module):
    weight: Tensor | None

    def __init__(self, weight: Tensor | None, **options: Any) -> None:
        """`weight` is `[C]`; `options` are those of the loss's function in `lal_triton.functional`."""
        super().__init__()
        options |= {name: _freeze(name, options[name]) for name in ("window", "focal_alpha") if name in options}
        options["process_group"] = process_groups.given(options["process_group"])
        self.request = make_request(**options)
        validation.check_weight(weight)
        validation.check_weight_values("weight", weight)
        self.register_buffer("weight", weight)
        self._options = options

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,
        *,
        ignore_index: int | None = None,
        reduction: str | None = None,
    ) -> Tensor:
        """The loss of `[N, C, h, w]` logits and a `[N, H, W]` integer target, with optional `[N, H, W]` weights.

        `ignore_index` and `reduction` replace those of the module in this call.
        """
        group = self._options["process_group"]
        if _is_open(group) and (settled := process_groups.settle(group)) is not group:
            self._options = self._options | {"process_group": settled}
            self.request = make_request(**self._options)
        request = self.request
        if ignore_index is not None or reduction is not None:
            request = self.request_with(ignore_index=ignore_index, reduction=reduction)
        return evaluate(logits, target, self.weight, pixel_weight, request)

    def request_with(self, **options: Any) -> Request:
        """The module's request with other options, but for those that are None."""
        return make_request(**self._options | {name: value for name, value in options.items() if value is not None})

    def extra_repr(self) -> str:
        shown = [f"weight=[{len(self.weight)}]"] if self.weight is not None else []
        for name, value in self._options.items():
            if value is not None and (name, value) != ("process_group", process_groups.RANK):
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


def _is_open(process_group: Any) -> bool:
    """Whether a forward has to settle it: a callable, and None, which may be a group that was read too early."""
    return process_group is None or callable(process_group)


def _freeze(name: str, value: Any) -> Any:
    """Numbers in tuples, which nobody changes later; what is none is left to the checks."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        validation.check_constant(name, value)
        value = value.tolist()
    return tuple(_freeze(name, item) for item in value) if isinstance(value, (list, tuple)) else value


class LocallyAdaptiveLoss(_Loss):
    """`functional.locally_adaptive_loss` as a module, whose docstring has the options and errors.

    `weight` is a buffer, saved in the `state_dict`.
    """

    def __init__(
        self,
        kernel_size: KernelSize = 5,
        *,
        window: Window = "chessboard",
        stride: int = 1,
        average: str = "count",
        normalize: bool = True,
        eps: float = 1e-5,
        cost: str = "cross_entropy",
        focal_alpha: Alpha = 0.25,
        focal_gamma: float = 2.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "minkowski",
        p: float = 3.0,
        pool: str = "image",
        pooling_ratio: float = 0.25,
        pooling_norm: float = 1.7,
        ignore_index: int = 255,
        upsample: str | None = "bilinear",
        align_corners: bool = False,
        process_group: Any = "rank",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            weight,
            kernel_size=kernel_size,
            window=window,
            stride=stride,
            average=average,
            normalize=normalize,
            eps=eps,
            cost=cost,
            focal_alpha=focal_alpha,
            focal_gamma=focal_gamma,
            label_smoothing=label_smoothing,
            reduction=reduction,
            p=p,
            pool=pool,
            pooling_ratio=pooling_ratio,
            pooling_norm=pooling_norm,
            ignore_index=ignore_index,
            upsample=upsample,
            align_corners=align_corners,
            process_group=process_group,
            backend=backend,
        )


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` as a module; the options and errors are those of `functional.locally_adaptive_loss`.

    `weight` is a buffer, saved in the `state_dict`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        ignore_index: int = 255,
        upsample: str | None = "bilinear",
        align_corners: bool = False,
        process_group: Any = "rank",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            weight,
            label_smoothing=label_smoothing,
            reduction=reduction,
            ignore_index=ignore_index,
            upsample=upsample,
            align_corners=align_corners,
            process_group=process_group,
            backend=backend,
        )


class FocalLoss(_Loss):
    """`functional.focal_loss` as a module; the options and errors are those of `functional.locally_adaptive_loss`.

    `weight` is a buffer, saved in the `state_dict`.
    """

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = 255,
        upsample: str | None = "bilinear",
        align_corners: bool = False,
        process_group: Any = "rank",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            weight,
            cost="focal",
            focal_alpha=alpha,
            focal_gamma=gamma,
            reduction=reduction,
            ignore_index=ignore_index,
            upsample=upsample,
            align_corners=align_corners,
            process_group=process_group,
            backend=backend,
        )


class CenterLoss(nn.Module):
    """`lambda_` x `functional.center_loss`, with centres that follow the features of their classes (Wen et al. 2016).

    In training mode each forward moves the centre of a class with n_j pixels, after the loss is taken and without a
    gradient, by the published c_j -= alpha sum_{y_i = j} (c_j - x_i) / (1 + n_j). `centers` `[C, D]`, float32, is a
    buffer, saved in the `state_dict`, and starts at 0: for many pixels the first steps go the share `alpha` of the way
    to the class's mean. With a `process_group` loss and centres are those of the pixels of all ranks. Add it to a
    loss of the logits, as the paper does.

    Raises:
        TypeError, ValueError: as the functions; `alpha` and `lambda_` are finite and >= 0.
    """

    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        alpha: float = 0.5,
        lambda_: float = 3e-4,
        *,
        ignore_index: int = 255,
        process_group: Any = "rank",
    ) -> None:
        super().__init__()
        validation.check_integer("num_classes", num_classes, low=1)
        validation.check_integer("num_features", num_features, low=1)
        validation.check_integer("ignore_index", ignore_index)
        self.alpha = validation.check_number("alpha", alpha, low=0)
        self.lambda_ = validation.check_number("lambda_", lambda_, low=0)
        self.ignore_index = ignore_index
        process_groups.check(process_group)
        self.process_group = process_groups.given(process_group)
        self.register_buffer("centers", torch.zeros(num_classes, num_features))

    def forward(self, features: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
        """The loss of `[N, D, H, W]` features and an integer target `[N, H, W]`; `ignore_index` is of this call."""
        if _is_open(self.process_group):
            self.process_group = process_groups.settle(self.process_group)
        centers = center.snapshot(self.centers)
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        loss, counts, sums = center.evaluate(features, target, centers, ignore_index, self.process_group)
        if self.training:
            with torch.no_grad():
                self.centers += self.alpha * sums / (1 + counts[:, None])
        return self.lambda_ * loss

    def extra_repr(self) -> str:
        num_classes, num_features = self.centers.shape
        options = f"alpha={self.alpha}, lambda_={self.lambda_}, ignore_index={self.ignore_index}"
        return f"{num_classes}, {num_features}, {options}"
