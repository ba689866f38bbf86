"""Inputs of the benchmark: annotated images, logits for them, and batches of their crops."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

VOID = 255
NUCLEI = Path(__file__).parent / "data" / "nuclei"
ROOM = 64  # pixels that a crop can be moved by

# of the network that makes the logits
STRIDE = 4
NUM_FILTERS = 32
NUM_WAVES = 960
WAVELENGTH = 60.0  # pixels; about three objects of the shipped image
LARGEST_LOGIT = 12.0


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


def predict(image: np.ndarray, labels: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Logits `[C, H, W]` in float32 of an image `[H, W, 3]`, by a network fitted to its labels `[H, W]`.

    Random convolutions of the image and random waves over the position, at a quarter of the resolution; a linear head,
    fitted in closed form; bilinear upsampling. Such logits have the statistics of real ones, at no cost worth naming:
    they are right at most pixels and uncertain at the borders.
    """
    height, width = labels.shape
    features = extract_features(torch.from_numpy(image).permute(2, 0, 1), torch.Generator().manual_seed(seed))
    valid = torch.from_numpy((labels >= 0) & (labels < num_classes))
    share = F.one_hot(torch.where(valid, torch.from_numpy(labels), 0), num_classes).permute(2, 0, 1) * valid
    share = F.avg_pool2d(share[None].float(), STRIDE, ceil_mode=True)[0]

    flat = features.flatten(1)
    covariance = flat @ flat.T + 1e-2 * flat.shape[1] * torch.eye(len(flat))
    head = torch.linalg.solve(covariance, flat @ share.flatten(1).T)
    scores = (head.T @ flat).view(1, num_classes, *features.shape[1:])
    logits = F.interpolate(LARGEST_LOGIT * scores, scale_factor=STRIDE, mode="bilinear")
    return logits[0, :, :height, :width].numpy()


def extract_features(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`[F, ceil(H / 4), ceil(W / 4)]`."""
    first = torch.randn(NUM_FILTERS, 3, 5, 5, generator=generator) / 75**0.5
    second = torch.randn(NUM_FILTERS, NUM_FILTERS, 3, 3, generator=generator) / (9 * NUM_FILTERS) ** 0.5
    centred = (image - image.mean()) / (image.std() + 1e-6)
    hidden = F.relu(F.conv2d(centred[None], first, padding=2))
    hidden = F.avg_pool2d(hidden, STRIDE, ceil_mode=True)
    appearance = F.relu(F.conv2d(hidden, second, padding=1))[0]

    height, width = appearance.shape[1:]
    frequency = torch.randn(NUM_WAVES, 2, generator=generator) * (2 * torch.pi * STRIDE / WAVELENGTH)
    phase = 2 * torch.pi * torch.rand(NUM_WAVES, 1, 1, generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    waves = torch.cos(frequency[:, 0, None, None] * rows + frequency[:, 1, None, None] * columns + phase)
    return torch.cat([appearance, waves, torch.ones(1, height, width)])


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
