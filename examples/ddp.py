"""Trains with DistributedDataParallel: the gradient is that of one process that holds the batches of all ranks.

torchrun --nproc-per-node 2 examples/ddp.py  # gloo and CPUs; on GPUs "nccl", and the network on the device of the rank
"""

import torch
import torch.distributed as dist
from nuclei import make_network, read_crops
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lal_triton import CrossEntropyLoss


def train(network: nn.Module, loader: DataLoader, loss_fn: nn.Module) -> list[float]:
    """The loss of each step, which is the same number on every rank."""
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for images, labels in loader:
        loss = loss_fn(model(images), labels)
        optimizer.zero_grad()
        (dist.get_world_size() * loss).backward()  # DistributedDataParallel averages the gradients, which have to sum
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
