"""Batch pooling (Eq. 5): from a map of per-pixel losses to one number, in plain differentiable torch.

The weighted power norm R_n = (sum_p omega(p) L(p)^p)^(1/p) of each image is all that the reductions need: the
Minkowski mean divides it by (sum omega)^(1/p), the mean is its p = 1, and norms of images combine into the norm of the
batch, and those of ranks into that of the global batch. A norm is homogeneous, so that scaling by the largest loss
keeps every power inside the floating-point range.
"""

from typing import Any

import torch
import torch.distributed as dist


def power_norm(losses: torch.Tensor, omega: torch.Tensor, p: float) -> torch.Tensor:
    """(sum omega losses^p)^(1/p) over all but the first dimension; `losses` >= 0, `omega` >= 0, the result `[N]`."""
    losses, omega = losses.flatten(1), omega.flatten(1)
    if p == 1 or losses.shape[1] == 0:
        return (omega * losses).sum(1)
    largest = torch.where(omega > 0, losses, 0).amax(1).detach()
    scale = torch.where(largest == 0, 1, largest)
    total = (omega * (losses / scale[:, None]) ** p).sum(1)
    zero = total == 0
    return torch.where(zero, 0, scale * torch.where(zero, 1, total) ** (1 / p))


def pool_norms(
    norms: torch.Tensor, mass: torch.Tensor, reduction: str, p: float, pool: str, process_group: Any
) -> torch.Tensor:
    """The pooled loss from each image's power norm and its mass sum(omega), both `[N]`; 0 where nothing is valid.

    With a group over the images of all its ranks, with the gradient of this rank's.
    """
    if reduction == "minkowski" and pool == "image":
        return mean_over_images(norms / or_one(mass) ** (1 / p), mass > 0, process_group)
    norm, total = _norm_of(norms, p), mass.sum()
    if process_group is not None:
        of_ranks = gather_ranks(torch.stack([norm, total]), process_group)
        norm, total = _norm_of(of_ranks[:, 0], p), of_ranks[:, 1].sum()
    return norm if reduction == "sum" else norm / or_one(total) ** (1 / p)


def mean_over_images(losses: torch.Tensor, counts: torch.Tensor, process_group: Any) -> torch.Tensor:
    """The mean of the images' losses `[N]` over those that count (`[N]`, bool; the loss of others is 0)."""
    return pool_norms(losses, counts.to(losses.dtype), "mean", 1.0, "batch", process_group)


def or_one(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor == 0, 1, divisor)


def _norm_of(norms: torch.Tensor, p: float) -> torch.Tensor:
    return power_norm(norms[None], torch.ones_like(norms)[None], p)[0]


def gather_ranks(local: torch.Tensor, process_group: "dist.ProcessGroup") -> torch.Tensor:
    """`[ranks, *local.shape]`: the tensors of all ranks, of which only this rank's own is differentiable.

    A loss of them all is then the global one on every rank, and its gradients sum over the ranks to the global one's.
    """
    every = [torch.empty_like(local) for _ in range(process_group.size())]
    dist.all_gather(every, local.detach(), group=process_group)
    every[process_group.rank()] = local
    return torch.stack(every)
