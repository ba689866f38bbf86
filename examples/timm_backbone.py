"""Trains a timm backbone with one convolution for a head, on logits at an eighth of the size.

pip install . pillow timm && python examples/timm_backbone.py
"""

import loop
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


def main() -> None:
    loop.run(__doc__, make_model, read_batch, loss_of)


if __name__ == "__main__":
    main()
