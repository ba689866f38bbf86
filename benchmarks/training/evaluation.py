"""mIoU, pixel accuracy and IoU by class of a network, on whole images at their full size."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassConfusionMatrix

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.training.task import Example


@torch.no_grad()
def upsampled_logits(network: nn.Module, image: Tensor) -> Tensor:
    """Of an image `[3, H, W]`, `[C, H, W]` on the network's device, by bilinear interpolation.

    `network` is the bare one, since the forward of one that is wrapped for several ranks needs all of them.
    """
    height, width = image.shape[1:]
    image = image.to(next(network.parameters()))[None]  # its device and its dtype
    align_corners: bool = getattr(network, "align_corners", False)
    if align_corners:  # up to where the last logits lie
        stride: int = cast(int, network.output_stride)
        image = F.pad(image, (0, (1 - width) % stride, 0, (1 - height) % stride), mode="replicate")
    logits = F.interpolate(network(image).logits, image.shape[2:], mode="bilinear", align_corners=align_corners)
    return logits[0, :, :height, :width]


def predict(network: nn.Module, image: Tensor) -> Tensor:
    """Labels `[H, W]` of an image `[3, H, W]`, on the network's device."""
    return upsampled_logits(network, image).argmax(0)


def evaluate(
    network: nn.Module, examples: Sequence[Example], num_classes: int, fabric: Fabric, workers: int = 0
) -> dict[str, Any]:
    """`miou`, `pixel_accuracy` and `iou` by class, fractions; each rank predicts its share of the examples.

    A class that is neither annotated nor predicted has no IoU (None), and mIoU is the mean over the others.
    """
    training = network.training
    network.eval()
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=VOID).to(fabric.device)
    share = range(fabric.global_rank, len(examples), fabric.world_size)
    with fabric.autocast():
        for example in DataLoader(cast(Dataset[Example], examples), None, sampler=share, num_workers=workers):
            confusion.update(predict(network, example.image), example.target.to(fabric.device))
    network.train(training)
    return scores_of(confusion.compute())


def scores_of(confusion: Tensor) -> dict[str, Any]:
    """Of a matrix of pixel counts, `[C annotated, C predicted]`."""
    confusion = confusion.double()
    correct = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - correct
    iou = [float(value) if of else None for value, of in zip(correct / union, union, strict=True)]
    found = [value for value in iou if value is not None]
    return {
        "miou": sum(found) / max(len(found), 1),
        "pixel_accuracy": float(correct.sum() / confusion.sum()),
        "iou": iou,
    }
