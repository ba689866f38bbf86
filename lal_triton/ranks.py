"""What the ranks of a process group tell each other."""

import torch
import torch.distributed as dist


def gather(local: torch.Tensor, process_group: "dist.ProcessGroup") -> torch.Tensor:
    """`[ranks, *local.shape]`: the tensors of all ranks, of which only this rank's own is differentiable.

    A loss of them all is then the global one on every rank, and its gradients sum over the ranks to the global one's.
    """
    every = [torch.empty_like(local) for _ in range(process_group.size())]
    dist.all_gather(every, local.detach(), group=process_group)
    every[process_group.rank()] = local
    return torch.stack(every)
