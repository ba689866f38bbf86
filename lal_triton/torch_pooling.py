"""How the pooled loss changes with each per-pixel loss, band by band, before the image's norm is known."""

from typing import NamedTuple

import torch
from torch import Tensor


class Results(NamedTuple):
    """What a sweep over the bands fills."""

    losses: Tensor  # [N, H, W]
    gradient: Tensor  # [N, C, h, w] of the losses' dtype; empty without a derivative
    scale: Tensor  # [N, h], of the gradient


class Derivative(NamedTuple):
    """omega(p) (L(p) / scale)^(p - 1), with the largest loss of a band as its scale, so that no power overflows."""

    omega: Tensor  # [N, H, W]
    p: float

    def __call__(self, losses: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative by each of a band's losses, whose omega are given, and the scale."""
        if self.p == 1:
            return omega, losses.new_ones(())
        counted = torch.where(omega > 0, losses, 0)
        largest = counted.amax()
        scale = torch.where(largest == 0, 1, largest)
        return omega * self.rescale(counted, scale), scale

    def rescale(self, old: Tensor, new: Tensor) -> Tensor:
        """The factor that brings a sum from one scale to another."""
        return (old / new) ** (self.p - 1)
