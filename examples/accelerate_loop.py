"""Trains a loop of accelerate, in bfloat16 and with gradients of two micro-batches accumulated.

python examples/accelerate_loop.py
torchrun --nproc-per-node 2 examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from nuclei import make_network, read_crops
from torch import nn
from torch.utils.data import DataLoader

from lal_triton import CrossEntropyLoss


def train(accelerator: Accelerator, network: nn.Module, loader: DataLoader, loss_fn: nn.Module) -> list[float]:
    """The loss of each micro-batch, which is the same number on every process."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    losses = []
    for images, labels in loader:
        with accelerator.accumulate(network):
            with accelerator.autocast():
                loss = loss_fn(network(images), labels)
            accelerator.backward(accelerator.num_processes * loss)  # accelerate averages the gradients over processes
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    torch.manual_seed(0)
    loader = DataLoader(read_crops(size=64), batch_size=4, shuffle=True)
    loss_fn = CrossEntropyLoss(process_group="world")  # the mean over the valid pixels of all processes
    losses = train(accelerator, make_network(), loader, loss_fn)
    accelerator.print(f"{accelerator.num_processes} processes, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main()
