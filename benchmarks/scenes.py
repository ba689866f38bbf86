"""Inputs of the benchmark: annotated images, and batches of their crops."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

VOID = 255
NUCLEI = Path(__file__).parent / "data" / "nuclei"
ROOM = 64  # pixels that a crop can be moved by


class Scene(NamedTuple):
    image: np.ndarray  # [H, W, 3], float32 in [0, 1]
    labels: np.ndarray  # [H, W], int64, VOID where nothing is annotated


def read_nuclei(num_classes: int) -> Scene:
    """The shipped image: class 0 is the background, and nucleus i has the class 1 + i % (C - 1)."""
    image = np.asarray(Image.open(NUCLEI / "image.png").convert("RGB"), dtype=np.float32) / 255
    instances = np.asarray(Image.open(NUCLEI / "instances.png"), dtype=np.int64)
    labels = np.where(instances == 0, 0, 1 + instances % (num_classes - 1))
    labels[outline(instances)] = VOID
    return Scene(image, labels)


def outline(instances: np.ndarray) -> np.ndarray:
    """The pixels of an instance that have a pixel of something else above, below, left or right of them."""
    padded = np.pad(instances, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (instances != 0) & np.any([neighbour != instances for neighbour in neighbours], axis=0)


def make_batch(
    examples: list[tuple[np.ndarray, np.ndarray]], batch_size: int, size: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Different square crops of (logits `[C, H, W]`, labels `[H, W]`): `[N, C, size, size]` and `[N, size, size]`."""
    rng = np.random.default_rng(seed)
    logits, targets = [], []
    for index in range(batch_size):
        scores, labels = examples[index % len(examples)]
        top, left, flips = rng.random(), rng.random(), rng.integers(2, size=3)
        logits.append(crop(scores, size, top, left, flips))
        targets.append(crop(labels[None], size, top, left, flips)[0])
    return torch.from_numpy(np.stack(logits)), torch.from_numpy(np.stack(targets))


def crop(planes: np.ndarray, size: int, top: float, left: float, flips: np.ndarray) -> np.ndarray:
    """A flipped crop of `[C, H, W]`, mirrored at its lower right where that is too small; `top`, `left` in [0, 1)."""
    height, width = planes.shape[1:]
    missing = [(0, max(0, size + ROOM - side)) for side in (height, width)]
    planes = np.pad(planes, [(0, 0), *missing], mode="symmetric")
    row = int(top * (planes.shape[1] - size + 1))
    column = int(left * (planes.shape[2] - size + 1))
    planes = planes[:, row : row + size, column : column + size]
    if flips[0]:
        planes = planes[:, ::-1]
    if flips[1]:
        planes = planes[:, :, ::-1]
    if flips[2]:
        planes = planes.transpose(0, 2, 1)
    return np.ascontiguousarray(planes)
