"""Bilinear interpolation as sparse algebra: weights along an axis, tiles and their frames, and inner products.

Square tiles of pixels share a frame of low-resolution pixels. Frames are cyclic: low-resolution row i stands at slot
i mod `span`, in whatever tile, so that neighbouring pixels agree on where it is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lal_triton.options import loss_dtype

TILE = 8  # pixels a side
_CHUNK_ELEMENTS = 2**18  # low-resolution logits that are in float64 at a time


class Axis(NamedTuple):
    """Bilinear interpolation along one axis, from `low` to `high` >= `low` pixels, as F.interpolate does it."""

    low: int
    high: int
    lower: Tensor  # [high], the lower of the two low-resolution pixels
    fraction: Tensor  # [high], the weight of the upper one, float64
    tile: int  # pixels to a tile
    span: int  # the most low-resolution pixels that the windows of a tile reach
    base: Tensor  # [tiles], the first of them

    @classmethod
    def of(cls, low: int, high: int, align_corners: bool, reach: int, device: torch.device, tile: int = TILE) -> "Axis":
        pixel = torch.arange(high, device=device)
        if align_corners:
            numerator, denominator = pixel * (low - 1), max(high - 1, 1)
        else:
            numerator, denominator = ((2 * pixel + 1) * low - high).clamp(min=0), 2 * high
        index = numerator // denominator
        fraction = (numerator - index * denominator).double() / denominator
        fraction[index == low - 1] = 0  # there is no upper pixel
        first = torch.arange(0, high, tile, device=device)
        base = index[(first - reach).clamp(min=0)]
        last = index[(first + tile - 1 + reach).clamp(max=high - 1)].add(1).clamp(max=low - 1)
        return cls(low, high, index, fraction, tile, int((last - base).max()) + 1, base)

    def weights(self, slots: int) -> Tensor:
        """`[high, slots]`, the weight of low-resolution pixel i at slot i mod `slots`, float64."""
        weights = self.fraction.new_zeros(self.high, slots)
        weights.scatter_(1, (self.lower % slots)[:, None], (1 - self.fraction)[:, None])
        upper = self.lower.add(1).clamp(max=self.low - 1)
        return weights.scatter_add_(1, (upper % slots)[:, None], self.fraction[:, None])

    def square_weights(self) -> tuple[Tensor, Tensor]:
        """`[high, low]` each: the squared weights, and the product of a pixel's two weights at the lower one."""
        weights = self.weights(self.low)
        products = torch.zeros_like(weights)
        products.scatter_(1, self.lower[:, None], (self.fraction * (1 - self.fraction))[:, None])
        return weights.square(), products

    def frames(self) -> Tensor:
        """`[tiles, span]`, the low-resolution pixel at each slot of a tile; slots without one repeat the last."""
        slot = torch.arange(self.span, device=self.base.device)
        base = self.base[:, None]
        return (base + (slot - base) % self.span).clamp(max=self.low - 1)


class Source(NamedTuple):
    """An image's logits, centred over the classes, and their Gram planes, zero where a neighbour is missing."""

    logits: Tensor  # [h, w, C]
    gram: Tensor  # [4, h, w]: |x|^2; <x, x to the right>; <x, x below>; of the cell right and below, both diagonals
    bad: Tensor | None  # [h, w], 1 where a logit is not finite (there x is 0), if there is such a pixel


def read(logits: Tensor, normalize: bool) -> Source:
    """Of `[C, h, w]` logits. Float64 sums: the Gram form of the variance cancels where neighbours do."""
    num_classes, height, width = logits.shape
    bad = ~logits.isfinite().all(0)
    any_bad = bool(bad.any())
    if any_bad:
        logits = logits.masked_fill(bad, 0)
    centred = torch.empty(height, width, num_classes, dtype=loss_dtype(logits), device=logits.device)
    planes = centred.new_zeros(4, height, width, dtype=torch.float64)
    rows = max(1, _CHUNK_ELEMENTS // (num_classes * width))
    mean = planes.new_full((num_classes,), 1 / num_classes)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        x = logits[:, first : last + 1].permute(1, 2, 0).double()
        x = x - torch.matmul(x, mean)[..., None]
        centred[first:last] = x[: last - first]
        if normalize:
            x, y = x[: last - first], x[1:]
            part = planes[:, first:last]
            part[0] = torch.linalg.vecdot(x, x)
            part[1, :, :-1] = torch.linalg.vecdot(x[:, :-1], x[:, 1:])
            part[2, : len(y)] = torch.linalg.vecdot(x[: len(y)], y)
            cells = part[3, : len(y), :-1]
            torch.add(
                torch.linalg.vecdot(x[: len(y), :-1], y[:, 1:]),
                torch.linalg.vecdot(x[: len(y), 1:], y[:, :-1]),
                out=cells,
            )
    return Source(centred, planes, bad.to(centred.dtype) if any_bad else None)
