"""What the examples train on: a crop of the shipped image."""

import torch

from lal_triton.benchmarks.scenes import VOID, read_nuclei

NUM_CLASSES = 3

__all__ = ["NUM_CLASSES", "VOID", "read_batch", "read_crop"]


def read_crop(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper left corner of the image, `[1, 3, size, size]`, and its labels, `[1, size, size]`."""
    scene = read_nuclei(NUM_CLASSES)
    image = torch.from_numpy(scene.image[:size, :size]).permute(2, 0, 1)[None]
    return (image - image.mean()) / image.std(), torch.from_numpy(scene.labels[:size, :size])[None]


def read_batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The crop and its mirror image: the batch norm of a network's pooling branch needs two images."""
    image, target = read_crop(size)
    return torch.cat([image, image.flip(-1)]), torch.cat([target, target.flip(-1)])
