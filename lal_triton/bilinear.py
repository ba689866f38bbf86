"""Bilinear interpolation along an axis: neighbours and weights."""

from typing import NamedTuple

import torch
from torch import Tensor


def most_pixels(low: int, high: int, align_corners: bool) -> int:
    """The most full-resolution pixels between two neighbours of `low`, of an axis of `high` >= `low` pixels."""
    if align_corners:
        return high if low == 1 else -((1 - high) // (low - 1))
    return -(-high // low)


def _places(pixel: Tensor, low: int, high: int, align_corners: bool) -> tuple[Tensor, int, int]:
    """Where F.interpolate takes the pixels from, in low-resolution pixels: numerators, their step, the denominator."""
    if align_corners:
        return pixel * (low - 1), low - 1, max(high - 1, 1)
    return (2 * pixel + 1) * low - high, 2 * low, 2 * high


class Cells(NamedTuple):
    """The pixels of an axis by the two low-resolution pixels that they lie between.

    Cell i of low + 1 lies between pixels i - 1 and i; the first and the last reach over the border.
    """

    start: Tensor  # [low + 2], the first pixel of each cell, and the end of the last
    fraction: Tensor  # [low + 1], float64: where that pixel lies, from 0 at the lower neighbour to 1 at the upper
    step: float  # from a pixel to the next
    most: int  # pixels of a cell

    @classmethod
    def of(cls, low: int, high: int, align_corners: bool) -> "Cells":
        pixel = torch.arange(high)
        numerator, step, denominator = _places(pixel, low, high, align_corners)
        cell = torch.div(numerator, denominator, rounding_mode="floor") + 1
        start = torch.searchsorted(cell, torch.arange(low + 2))
        fraction = (numerator % denominator).double() / denominator
        return cls(start, fraction[start[:-1].clamp(max=high - 1)], step / denominator, int(start.diff().max()))


class Axis(NamedTuple):
    """Bilinear interpolation along one axis, from `low` to `high` >= `low` pixels, as F.interpolate does it."""

    low: int
    high: int
    lower: Tensor  # [high], the lower of the two low-resolution pixels
    fraction: Tensor  # [high], the weight of the upper one, float64

    @classmethod
    def of(cls, low: int, high: int, align_corners: bool) -> "Axis":
        numerator, _, denominator = _places(torch.arange(high), low, high, align_corners)
        numerator = numerator.clamp(min=0)
        lower = numerator // denominator
        fraction = (numerator - lower * denominator).double() / denominator
        fraction[lower == low - 1] = 0  # there is no upper pixel
        return cls(low, high, lower, fraction)
