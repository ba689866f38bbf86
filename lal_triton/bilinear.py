"""Bilinear interpolation along an axis: neighbours and weights, and the low-resolution pixels that a tile reaches."""

from typing import NamedTuple

import torch
from torch import Tensor


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
    def of(cls, low: int, high: int, align_corners: bool, reach: int, device: torch.device, tile: int) -> "Axis":
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
