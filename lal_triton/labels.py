"""Label maps in the one form that the backends compute with."""

from typing import Any

import torch

VOID = -1
INVALID = -2


def encode_labels(target: torch.Tensor, num_classes: int, ignore_index: int) -> torch.Tensor:
    """Labels as int32: [0, C), VOID where the target is ignore_index, INVALID where it is anything else.

    The comparison is made after widening to int64: torch finds uint8(156) == -100 and int8(-1) == 255.
    """
    labels = target.to(torch.int64)
    inside = (labels >= 0) & (labels < num_classes)
    encoded = torch.where(inside, labels, INVALID)
    return torch.where(labels == ignore_index, VOID, encoded).to(torch.int32)


def without_channel(plane: Any) -> Any:
    """Labels or weights `[N, 1, H, W]` as `[N, H, W]`; anything else as it is."""
    return plane.squeeze(1) if isinstance(plane, torch.Tensor) and plane.dim() == 4 and plane.shape[1] == 1 else plane


def centre_mask(labels: torch.Tensor, stride: int) -> torch.Tensor:
    """Where the loss is taken: the pixels that are not void at rows and columns 0, s, 2s, ... of `[N, H, W]`."""
    mask = labels != VOID
    if stride == 1:
        return mask
    rows = torch.arange(labels.shape[1], device=labels.device) % stride == 0
    columns = torch.arange(labels.shape[2], device=labels.device) % stride == 0
    return mask & rows[:, None] & columns
