"""Trains torchvision's DeepLabV3 on its logits at an eighth of the size, before the model upsamples them.

pip install . pillow torchvision && python examples/torchvision_deeplab.py
"""

import loop
import torch
from nuclei import NUM_CLASSES, VOID, read_batch
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from lal_triton import CrossEntropyLoss

criterion = CrossEntropyLoss(ignore_index=VOID)  # or LocallyAdaptiveLoss


def make_model() -> torch.nn.Module:
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)


def loss_of(model: torch.nn.Module, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Usually: outputs = model(image), whose "out" and "aux" are interpolated to the image's size
    features = model.backbone(image)
    logits = model.classifier(features["out"])  # [N, C, H / 16, W / 16]
    auxiliary = model.aux_classifier(features["aux"])  # [N, C, H / 8, W / 8]
    return criterion(logits, target) + 0.5 * criterion(auxiliary, target)


def main() -> None:
    loop.run(__doc__, make_model, read_batch, loss_of)


if __name__ == "__main__":
    main()
