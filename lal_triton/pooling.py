"""Batch pooling (Eq. 5): from a map of per-pixel losses to one number, in plain differentiable torch.

The weighted power norm R_n = (sum_p omega(p) L(p)^p)^(1/p) of each image is all that the reductions need: the
Minkowski mean divides it by (sum omega)^(1/p), the mean is its p = 1, and norms of images combine into the norm of the
batch. A norm is homogeneous, so that scaling by the largest loss keeps every power inside the floating-point range.
"""

import torch


def power_norm(losses: torch.Tensor, omega: torch.Tensor, p: float) -> torch.Tensor:
    """(sum omega losses^p)^(1/p) over all but the first dimension; `losses` >= 0, `omega` >= 0, the result `[N]`."""
    losses, omega = losses.flatten(1), omega.flatten(1)
    if p == 1:
        return (omega * losses).sum(1)
    largest = torch.where(omega > 0, losses, 0).amax(1).detach()
    scale = torch.where(largest == 0, 1, largest)
    total = (omega * (losses / scale[:, None]) ** p).sum(1)
    zero = total == 0
    return torch.where(zero, 0, scale * torch.where(zero, 1, total) ** (1 / p))


def pool_norms(norms: torch.Tensor, mass: torch.Tensor, reduction: str, p: float, pool: str) -> torch.Tensor:
    """The pooled loss from each image's power norm and its mass sum(omega), both `[N]`; 0 where nothing is valid."""
    if reduction == "sum":
        return norms.sum()
    if reduction == "mean":
        return norms.sum() / _or_one(mass.sum())
    if pool == "batch":
        return power_norm(norms[None], torch.ones_like(norms)[None], p).sum() / _or_one(mass.sum()) ** (1 / p)
    return (norms / _or_one(mass) ** (1 / p)).sum() / _or_one((mass > 0).sum())


def _or_one(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor == 0, 1, divisor)
