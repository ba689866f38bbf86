"""The losses that the paper compares, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lal_triton import CenterLoss, CrossEntropyLoss, FocalLoss, LocallyAdaptiveLoss
from lal_triton.benchmarks.training.task import Output


class Loss(NamedTuple):
    title: str
    make: Callable[..., nn.Module]  # of (logits, target), from the options that all losses share
    centers: bool = False


LOSSES = {
    "ce": Loss("Cross-entropy", CrossEntropyLoss),
    "center": Loss("Center loss", CrossEntropyLoss, centers=True),
    "focal": Loss("Focal loss", partial(FocalLoss, 0.25, 2.0)),
    "lal3": Loss("LAL, K = 3", partial(LocallyAdaptiveLoss, 3, p=3)),
    "lal5": Loss("LAL, K = 5", partial(LocallyAdaptiveLoss, 5, p=3)),
    "lal7": Loss("LAL, K = 7", partial(LocallyAdaptiveLoss, 7, p=3)),
    "lal5-p1": Loss("LAL, K = 5, p = 1", partial(LocallyAdaptiveLoss, 5, p=1)),
    "lal5-p2": Loss("LAL, K = 5, p = 2", partial(LocallyAdaptiveLoss, 5, p=2)),
    "lal5-p5": Loss("LAL, K = 5, p = 5", partial(LocallyAdaptiveLoss, 5, p=5)),
    "max-pooling": Loss("Loss max-pooling", partial(CrossEntropyLoss, reduction="max_pooling")),
}


class Criterion(nn.Module):
    """A loss of the logits and, as Wen et al. train center loss, that of the features beside it.

    ValueError for a name that is not one of `LOSSES`.
    """

    def __init__(
        self, name: str, num_classes: int, num_features: int, process_group: Any = None, align_corners: bool = False
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ValueError(f"loss = {name!r}, expected one of {', '.join(LOSSES)}")
        loss = LOSSES[name]
        self.align_corners = align_corners
        self.dense = loss.make(align_corners=align_corners, process_group=process_group)
        self.center = CenterLoss(num_classes, num_features, process_group=process_group) if loss.centers else None

    def forward(self, output: Output, target: Tensor) -> Tensor:
        """A scalar, of the network's output and a target `[N, H, W]`."""
        loss: Tensor = self.dense(output.logits, target)
        if self.center is None:
            return loss
        labels = take_nearest(target, output.features.shape[2:], self.align_corners)
        return loss + self.center(output.features, labels)


def take_nearest(target: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    """The labels of `[N, H, W]` where features of `size` (h, w) lie, `[N, h, w]`."""
    rows, columns = (
        _positions(length, count, align_corners).to(target.device)
        for length, count in zip(target.shape[1:], size, strict=True)
    )
    return target[:, rows[:, None], columns]


def _positions(length: int, count: int, align_corners: bool) -> Tensor:
    steps = torch.arange(count, dtype=torch.float64)
    if align_corners:
        return (steps * (length - 1) / max(count - 1, 1)).round().long()
    return ((steps + 0.5) * length / count - 0.5).round().long()
