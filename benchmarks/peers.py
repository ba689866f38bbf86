"""What one would write without this package: the same losses in plain PyTorch, LAL by count and with Minkowski pooling.

All need a valid pixel in every image, which the scenes of the benchmark have.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def upsampled(loss: Callable[[Tensor], Tensor], size: torch.Size) -> Callable[[Tensor], Tensor]:
    """The usual recipe where the logits are smaller than the labels."""

    def upsample_first(logits: Tensor) -> Tensor:
        return loss(F.interpolate(logits, size, mode="bilinear", align_corners=False))

    return upsample_first


def focal_loss(
    logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0, ignore_index: int = 255
) -> Tensor:
    """Softmax focal loss, its mean over the valid pixels."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    return (alpha * (1 - torch.exp(-losses)) ** gamma * losses).sum() / (target != ignore_index).sum()


def unfold_lal(logits: Tensor, target: Tensor, kernel_size: int = 5, p: float = 3.0, ignore_index: int = 255) -> Tensor:
    """The obvious implementation: F.unfold gathers the window of every pixel, and a masked sum merges it."""
    num_images, num_classes = logits.shape[:2]
    z = standard_score(logits)
    neighbours = F.unfold(z, kernel_size, padding=kernel_size // 2).view(num_images, num_classes, kernel_size**2, -1)
    # One above the label, so that void and F.unfold's zero padding are both 0; floats, which F.unfold needs.
    labels = torch.where(target == ignore_index, 0, target + 1).to(z.dtype)[:, None]
    neighbour_labels = F.unfold(labels, kernel_size, padding=kernel_size // 2)
    same = (neighbour_labels == labels.flatten(2)) & (neighbour_labels > 0)
    window = chessboard(kernel_size).flatten().to(z)
    weighted = (neighbours * (same * window[:, None])[:, None]).sum(2)
    merged = weighted / same.sum(1, keepdim=True).clamp(min=1)
    return minkowski_mean(merged.view_as(logits), target, p, ignore_index)


def shift_add_lal(
    logits: Tensor, target: Tensor, kernel_size: int = 5, p: float = 3.0, ignore_index: int = 255
) -> Tensor:
    """The careful implementation: one shifted multiply-add per tap, forward and backward, and no gathered windows."""
    weights, count = window_weights(target, kernel_size, ignore_index)
    merged = _Merge.apply(standard_score(logits), weights, count)
    return minkowski_mean(merged, target, p, ignore_index)


class _Merge(torch.autograd.Function):
    """autograd would pad and accumulate a full gradient per slice; the window is symmetric, so the sum serves again."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(weights, count)
        return window_sum(z, weights) / count[:, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weights, count = ctx.saved_tensors
        return window_sum(gradient / count[:, None], weights), None, None


@torch.no_grad()
def window_weights(target: Tensor, kernel_size: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Weights `[K, K, N, H, W]`, 0 where the neighbour does not count, and the number `[N, H, W]` of those that do."""
    height, width = target.shape[-2:]
    radius = kernel_size // 2
    padded = F.pad(target, [radius] * 4, value=ignore_index)
    shifted = padded.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4)
    same = (shifted == target) & (target != ignore_index)
    window = chessboard(kernel_size).to(target.device)
    return same * window[:, :, None, None, None], same.sum((0, 1)).clamp(min=1)


def window_sum(x: Tensor, weights: Tensor) -> Tensor:
    """sum_d weights[d] x(p + d) for `[N, C, H, W]`."""
    kernel_size, height, width = weights.shape[0], *x.shape[-2:]
    padded = F.pad(x, [kernel_size // 2] * 4)
    total = torch.zeros_like(x)
    for i in range(kernel_size):
        for j in range(kernel_size):
            total.addcmul_(padded[:, :, i : i + height, j : j + width], weights[i, j][:, None])
    return total


def standard_score(logits: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = logits - logits.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + EPS).rsqrt()


def chessboard(kernel_size: int) -> Tensor:
    distance = (torch.arange(kernel_size) - kernel_size // 2).abs()
    return 2.0 ** (1 - torch.maximum(distance[:, None], distance))


def minkowski_mean(merged: Tensor, target: Tensor, p: float, ignore_index: int) -> Tensor:
    """Cross-entropy, pooled by a power mean per image; cross_entropy gives 0 at void pixels."""
    losses = F.cross_entropy(merged, target, ignore_index=ignore_index, reduction="none")
    valid = (target != ignore_index).sum((1, 2))
    return ((losses.clamp(min=0) ** p).sum((1, 2)) / valid).pow(1 / p).mean()
