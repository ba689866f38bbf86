"""What the examples of networks share: a command line, and a loop over one batch."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def run(
    description: str,
    make_model: Callable[[], nn.Module],
    read_batch: Callable[[int], Any],
    loss_of: Callable[..., Tensor],
) -> None:
    """Trains on what `read_batch` gives for the size: the arguments of `loss_of` after the model."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=256, help="side of the crop, up to 512")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    batch, model = read_batch(arguments.size), make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(arguments.steps):
        loss = loss_of(model, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f}")
