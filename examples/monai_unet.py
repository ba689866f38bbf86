"""Trains a MONAI U-Net with deep supervision: each level's logits go to the loss at their own size.

pip install . pillow monai && python examples/monai_unet.py
"""

import loop
import torch
from monai.data import MetaTensor
from monai.networks.nets import SegResNetDS
from nuclei import NUM_CLASSES, VOID, read_batch

from lal_triton import CrossEntropyLoss

criterion = CrossEntropyLoss(ignore_index=VOID)  # or LocallyAdaptiveLoss


def make_model() -> torch.nn.Module:
    return SegResNetDS(spatial_dims=2, in_channels=3, out_channels=NUM_CLASSES, init_filters=8, dsdepth=3)


def read_monai_batch(size: int) -> dict[str, torch.Tensor]:
    """As MONAI's transforms give it: MetaTensors, and labels `[N, 1, H, W]` in float32."""
    image, target = read_batch(size)
    return {"image": MetaTensor(image), "label": MetaTensor(target[:, None].float())}


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    # Usually: DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True)), which shrinks the labels instead
    outputs = model(batch["image"])  # [N, C, H, W], [N, C, H / 2, W / 2], [N, C, H / 4, W / 4]
    label = batch["label"].long()
    return sum(0.5**level * criterion(logits, label) for level, logits in enumerate(outputs))


def main() -> None:
    loop.run(__doc__, make_model, lambda size: (read_monai_batch(size),), loss_of)


if __name__ == "__main__":
    main()
