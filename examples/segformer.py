"""Trains a small SegFormer on the shipped image, with the loss taken directly on its logits at a quarter of the size.

pip install -e ".[examples]" && python examples/segformer.py
"""

import argparse

import torch
from nuclei import NUM_CLASSES, VOID, read_crops
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss

LOSSES = {"lal": LocallyAdaptiveLoss, "cross_entropy": CrossEntropyLoss}


def make_model() -> SegformerForSemanticSegmentation:
    """A quarter of the width of SegFormer-B0, with random weights."""
    config = SegformerConfig(
        num_labels=NUM_CLASSES, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], decoder_hidden_size=64
    )
    return SegformerForSemanticSegmentation(config)


def train(model: SegformerForSemanticSegmentation, loss: str, steps: int, size: int) -> list[float]:
    """The loss of each step on the upper left crop of the image."""
    image, target = read_crops(size)[:1]  # the upper left one
    criterion = LOSSES[loss](ignore_index=VOID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    model.train()
    for step in range(steps):
        logits = model(image).logits  # [1, C, size / 4, size / 4]
        # Usually: F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target, ignore_index=VOID)
        value = criterion(logits, target)  # the one changed line
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        print(f"step {step + 1}: loss {losses[-1]:.4f}")
    return losses


@torch.no_grad()
def evaluate(model: SegformerForSemanticSegmentation, size: int) -> tuple[float, float]:
    """Pixel accuracy and mean intersection over union, on the crop it was trained on."""
    image, target = read_crops(size)[:1]  # the upper left one
    logits = model.eval()(image).logits
    upsampled = torch.nn.functional.interpolate(logits, target.shape[1:], mode="bilinear")
    valid = target != VOID
    predicted, target = upsampled.argmax(1)[valid], target[valid]
    accuracy = (predicted == target).float().mean()
    classes = torch.arange(NUM_CLASSES)[:, None]
    both = ((predicted == classes) & (target == classes)).sum(1)
    either = ((predicted == classes) | (target == classes)).sum(1)
    return accuracy.item(), (both / either.clamp(min=1)).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--loss", choices=LOSSES, default="lal")
    parser.add_argument("--size", type=int, default=256, help="side of the crop, a multiple of 32 up to 512")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = make_model()
    train(model, arguments.loss, arguments.steps, arguments.size)
    accuracy, iou = evaluate(model, arguments.size)
    print(f"pixel accuracy {accuracy:.3f}, mIoU {iou:.3f}")


if __name__ == "__main__":
    main()
