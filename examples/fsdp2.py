"""Trains with FSDP2 (`fully_shard`): the gradient is that of one process that holds the batches of all ranks.

torchrun --nproc-per-node 2 examples/fsdp2.py  # CPUs; for GPUs "nccl" and a mesh of "cuda"
"""

import torch
import torch.distributed as dist
from nuclei import make_network, read_crops
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lal_triton import CrossEntropyLoss


def train(network: nn.Sequential, loader: DataLoader, loss_fn: nn.Module) -> list[float]:
    """The loss of each step, which is the same number on every rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in network:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for images, labels in loader:
        loss = loss_fn(network(images), labels)
        optimizer.zero_grad()
        (dist.get_world_size() * loss).backward()  # fully_shard averages the gradients, which have to sum
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    crops = read_crops(size=64)
    loader = DataLoader(crops, batch_size=4, sampler=DistributedSampler(crops))
    loss_fn = CrossEntropyLoss(process_group="world")  # the mean over the valid pixels of all ranks
    losses = train(make_network(), loader, loss_fn)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes, loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
