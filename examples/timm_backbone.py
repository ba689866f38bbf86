"""Trains a timm backbone with one convolution for a head, on logits at an eighth of the size.

pip install . pillow timm && python examples/timm_backbone.py
"""

import argparse

import timm
import torch
from nuclei import NUM_CLASSES, VOID, read_batch

from lal_triton import LocallyAdaptiveLoss

criterion = LocallyAdaptiveLoss(ignore_index=VOID)  # or CrossEntropyLoss


def make_model() -> torch.nn.Module:
    backbone = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2,))
    return torch.nn.Sequential(backbone, torch.nn.Conv2d(backbone.feature_info.channels()[-1], NUM_CLASSES, 1))


def loss_of(model: torch.nn.Module, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    backbone, head = model
    logits = head(backbone(image)[-1])  # [N, C, H / 8, W / 8]
    return criterion(logits, target)


def train(steps: int, size: int) -> list[float]:
    image, target = read_batch(size)
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        loss = loss_of(model, image, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {losses[-1]:.4f}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=256, help="side of the crop, up to 512")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train(arguments.steps, arguments.size)


if __name__ == "__main__":
    main()
