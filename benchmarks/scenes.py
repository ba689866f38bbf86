"""Inputs of the benchmark: annotated images, and batches of their crops."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

VOID = 255
NUCLEI = Path(__file__).parent / "data" / "nuclei"
ROOM = 64  # pixels that a crop can be moved by


class Scene(NamedTuple):
    image: np.ndarray  # [H, W, 3], float32 in [0, 1]
    labels: np.ndarray  # [H, W], int64, VOID where nothing is annotated


def read_instances() -> Scene:
    """The shipped image, with the numbers of its nuclei from 1 on as labels, and 0 between them."""
    image = np.asarray(Image.open(NUCLEI / "image.png").convert("RGB"), dtype=np.float32) / 255
    return Scene(image, np.asarray(Image.open(NUCLEI / "instances.png"), dtype=np.int64))


def read_nuclei(num_classes: int) -> Scene:
    """The shipped image: class 0 is the background, and nucleus i has the class 1 + i % (C - 1)."""
    image, instances = read_instances()
    labels = np.where(instances == 0, 0, 1 + instances % (num_classes - 1))
    labels[outline(instances)] = VOID
    return Scene(image, labels)


def outline(instances: np.ndarray) -> np.ndarray:
    """The pixels of an instance that have a pixel of something else above, below, left or right of them."""
    padded = np.pad(instances, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (instances != 0) & np.any([neighbour != instances for neighbour in neighbours], axis=0)


def make_batch(
    examples: list[tuple[np.ndarray, np.ndarray]], batch_size: int, size: int, ratio: int = 1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Different square crops of (logits `[C, H, W]`, labels `[H, W]`).

    `[N, C, size / ratio, size / ratio]` and `[N, size, size]`: the logits are averaged over squares of side `ratio`.
    """
    rng = np.random.default_rng(seed)
    logits, targets = [], []
    for index in range(batch_size):
        scores, labels = examples[index % len(examples)]
        height, width = (side - side % ratio for side in labels.shape)
        top, left, flips = rng.random(), rng.random(), rng.integers(2, size=3)
        low = F.avg_pool2d(torch.from_numpy(scores[:, :height, :width]), ratio).numpy() if ratio > 1 else scores
        logits.append(crop(low, size // ratio, top, left, flips, room=ROOM // ratio))
        targets.append(crop(labels[None, :height, :width], size, top, left, flips, step=ratio)[0])
    return torch.from_numpy(np.stack(logits)), torch.from_numpy(np.stack(targets))


def crop(
    planes: np.ndarray, size: int, top: float, left: float, flips: np.ndarray, room: int = ROOM, step: int = 1
) -> np.ndarray:
    """A flipped crop of `[C, H, W]`, mirrored at its lower right where that is too small.

    `top` and `left` in [0, 1) say which of the positions, which are `step` apart.
    """
    height, width = planes.shape[1:]
    missing = [(0, max(0, size + room - side)) for side in (height, width)]
    planes = np.pad(planes, [(0, 0), *missing], mode="symmetric")
    row, column = (
        step * int(share * ((side - size) // step + 1))
        for share, side in zip((top, left), planes.shape[1:], strict=True)
    )
    planes = planes[:, row : row + size, column : column + size]
    if flips[0]:
        planes = planes[:, ::-1]
    if flips[1]:
        planes = planes[:, :, ::-1]
    if flips[2]:
        planes = planes.transpose(0, 2, 1)
    return np.ascontiguousarray(planes)
