"""Trains segmentation_models_pytorch's DeepLabV3+ on its logits at a quarter of the size.

pip install . pillow segmentation-models-pytorch && python examples/smp_deeplab.py
"""

import loop
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


def main() -> None:
    loop.run(__doc__, make_model, read_batch, loss_of)


if __name__ == "__main__":
    main()
