"""What the examples train on: crops of the shipped image, and a network whose logits have a quarter of their size."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lal_triton.benchmarks.scenes import VOID, read_nuclei

NUM_CLASSES = 3
__all__ = ["NUM_CLASSES", "VOID", "make_network", "read_batch", "read_crops"]


def read_crops(size: int) -> TensorDataset:
    """Images `[3, size, size]` and labels `[size, size]` of the squares that fit into the 512 x 512 pixels."""
    scene = read_nuclei(NUM_CLASSES)
    image, labels = torch.from_numpy(scene.image), torch.from_numpy(scene.labels)
    return TensorDataset(_tiles((image - image.mean()) / image.std(), size), _tiles(labels, size))


def read_batch(size: int) -> tuple[Tensor, Tensor]:
    """The upper left crop and its mirror image: the batch norm of a network's pooling branch needs two images."""
    image, labels = read_crops(size)[:1]
    return torch.cat([image, image.flip(-1)]), torch.cat([labels, labels.flip(-1)])


def make_network() -> nn.Sequential:
    """Without batch normalisation, whose statistics are those of one rank's images."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(32, NUM_CLASSES, 1),
    )


def _tiles(picture: Tensor, size: int) -> Tensor:
    """`[tiles, size, size]` of `[H, W]`, and `[tiles, 3, size, size]` of `[H, W, 3]`."""
    return picture.unfold(0, size, size).unfold(1, size, size).flatten(0, 1)
