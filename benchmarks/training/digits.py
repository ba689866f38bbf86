"""Handwritten digits on photographs, both shipped with scikit-learn, as a task of eleven classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.training import small_network
from lal_triton.benchmarks.training.task import Example, Task

CLASS_NAMES = ("background", *(str(digit) for digit in range(10)))
SPLIT = 1200  # of the 1,797 digits, the first are for training and the others are held out
CELLS, CELL = 4, 18  # cells of a scene along each side, and their side in pixels
SIZES = (14, 18)  # least and greatest side of a digit, which is 8 pixels in the data
DIMMED = 0.5  # brightness of the photographs, on which the digits are bright
INK, RIM = 0.5, 0.25  # coverage by ink from which a pixel is the digit's, and from which it is void


def make_task(training_scenes: int = 200, evaluation_scenes: int = 40) -> Task:
    """Digits and parts of photographs in the training scenes are in none of the evaluation."""
    digits, labels = load_digits(return_X_y=True)
    inks = torch.from_numpy(digits).float().view(-1, 8, 8) / 16
    photographs = [torch.tensor(photograph).permute(2, 0, 1) / 255 for photograph in load_sample_images().images]
    halves = zip(*(photograph.chunk(2, dim=2) for photograph in photographs), strict=True)
    parts = zip((slice(SPLIT), slice(SPLIT, None)), halves, (training_scenes, evaluation_scenes), strict=True)
    training, evaluation = (
        [make_scene(inks[part], labels[part], half, seed) for seed in range(count)] for part, half, count in parts
    )
    recipe = replace(
        small_network.RECIPE,
        iterations=600,
        crop_size=CELLS * CELL,
        scales=(1.0, 1.0),
        flip=False,
        evaluate_every=60,
    )
    return small_network.make_task("digits", CLASS_NAMES, training, evaluation, recipe)


def make_scene(inks: Tensor, labels: np.ndarray, photographs: Sequence[Tensor], seed: int) -> Example:
    """One digit of `inks` `[M, 8, 8]` in every cell, over a part of one of the photographs `[3, H, W]`."""
    rng = np.random.default_rng(seed)
    side = CELLS * CELL
    photograph = photographs[int(rng.integers(len(photographs)))]
    top, left = (rng.integers(length - side + 1) for length in photograph.shape[1:])
    image = DIMMED * photograph[:, top : top + side, left : left + side]
    target = torch.zeros(side, side, dtype=torch.int64)
    for row in range(0, side, CELL):
        for column in range(0, side, CELL):
            index, size = int(rng.integers(len(inks))), int(rng.integers(SIZES[0], SIZES[1] + 1))
            top, left = (start + rng.integers(CELL - size + 1) for start in (row, column))
            box = (..., slice(top, top + size), slice(left, left + size))
            ink = F.interpolate(inks[None, None, index], (size, size), mode="bilinear", align_corners=False)[0, 0]
            colour = torch.from_numpy(rng.uniform(0.7, 1, (3, 1, 1))).float()
            image[box] = torch.lerp(image[box], colour, ink)
            target[box][ink > RIM] = VOID
            target[box][ink > INK] = labels[index] + 1
    return Example(f"scene {seed}", image, target)
