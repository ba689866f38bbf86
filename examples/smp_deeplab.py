"""Trains segmentation_models_pytorch's DeepLabV3+ on its logits at a quarter of the size.

pip install . pillow segmentation-models-pytorch && python examples/smp_deeplab.py
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from nuclei import NUM_CLASSES, VOID, read_batch

from lal_triton import CrossEntropyLoss

criterion = CrossEntropyLoss(ignore_index=VOID, align_corners=True)  # or LocallyAdaptiveLoss; smp's heads align corners


def make_model() -> torch.nn.Module:
    # Usually upsampling=4, with which the head ends in nn.Upsample(mode="bilinear", align_corners=True)
    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=NUM_CLASSES, upsampling=1)


def loss_of(model: torch.nn.Module, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = model(image)  # [N, C, H / 4, W / 4]
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
