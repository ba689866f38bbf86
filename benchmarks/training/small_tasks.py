"""Two tasks that a small U-Net learns on a CPU within minutes: the shipped nuclei, and scenes of handwritten digits."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from lal_triton.benchmarks.scenes import VOID, outline, read_instances
from lal_triton.benchmarks.training.task import Example, Output, Recipe, Task

RECIPE = Recipe(  # rate and optimiser were chosen on cross-entropy alone; Adam's steps do not grow with a loss's scale
    iterations=300,
    crop_size=96,
    scales=(0.8, 1.25),
    optimizer="adam",
    learning_rate=0.005,
    weight_decay=0.0,
    evaluate_every=30,
)
HALF, QUARTER = 32, 64  # channels at strides 2 and 4
GROUPS = 8  # of the group normalisation, which needs no batch


class SmallNetwork(nn.Module):
    """U-Net (Ronneberger et al. 2015) that predicts at stride 2.

    Images `[N, 3, H, W]` in [0, 1], standardised by `mean` and `std`, to logits `[N, C, ceil(H / 2), ceil(W / 2)]`
    and the features `[N, num_features, ceil(H / 2), ceil(W / 2)]` that they are a linear function of.
    """

    mean: Tensor
    std: Tensor
    num_features = HALF

    def __init__(self, num_classes: int, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.down = nn.ModuleList(
            [
                nn.Sequential(_convolution(3, HALF, stride=2), _convolution(HALF, HALF)),
                nn.Sequential(_convolution(HALF, QUARTER, stride=2), _convolution(QUARTER, QUARTER)),
            ]
        )
        self.up = nn.ModuleList([_convolution(HALF + QUARTER, HALF)])
        self.classifier = nn.Conv2d(HALF, num_classes, 1)

    def forward(self, images: Tensor) -> Output:
        half = self.down[0]((images - self.mean) / self.std)
        quarter = self.down[1](half)
        upsampled = F.interpolate(quarter, half.shape[2:], mode="bilinear", align_corners=False)
        features = self.up[0](torch.cat([half, upsampled], dim=1))
        return Output(self.classifier(features), features)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU())


def _make_task(
    name: str, class_names: tuple[str, ...], training: Sequence[Example], evaluation: Sequence[Example], recipe: Recipe
) -> Task:
    """With the small network, which standardises by the training images (of one size)."""
    pixels = torch.stack([example.image for example in training])
    make_network = partial(SmallNetwork, len(class_names), pixels.mean().item(), pixels.std().item())
    return Task(name, class_names, training, evaluation, make_network, recipe)


# ---- the shipped fluorescence image: one side of it for training, the other held out

NUCLEI_CLASSES = ("background", "nucleus", "boundary")
NUCLEI_SPLIT = 320  # columns to the left of it are for training, the others are held out
HEIGHT = 128  # rows of an example


def make_nuclei() -> Task:
    """Training on four images of 128 x 320 pixels, evaluation on four of 128 x 192."""
    image, instances = read_instances()
    pixels, target = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label_nuclei(instances))
    rows = [slice(top, top + HEIGHT) for top in range(0, len(target), HEIGHT)]
    training, evaluation = (
        [Example(f"rows from {r.start}", pixels[:, r, columns], target[r, columns]) for r in rows]
        for columns in (slice(NUCLEI_SPLIT), slice(NUCLEI_SPLIT, None))
    )
    return _make_task("nuclei", NUCLEI_CLASSES, training, evaluation, RECIPE)


def label_nuclei(instances: np.ndarray) -> np.ndarray:
    """Classes `[H, W]` of instances `[H, W]`, 0 = background.

    The boundary is the two outermost pixels of a nucleus, also where nuclei touch. The background's pixels that touch
    a nucleus are void, as the rim around VOC's objects is: no annotation is better than a pixel.
    """
    rim = outline(instances)
    rim |= outline(np.where(rim, 0, instances))
    labels = np.where(rim, 2, np.minimum(instances, 1))
    labels[outline((instances == 0).astype(np.int64))] = VOID
    return labels


# ---- handwritten digits on photographs, both shipped with scikit-learn

DIGITS_CLASSES = ("background", *(str(digit) for digit in range(10)))
DIGITS_SPLIT = 1200  # of the 1,797 digits, the first are for training and the others are held out
CELLS, CELL = 4, 18  # cells of a scene along each side, and their side in pixels
SIZES = (14, 18)  # least and greatest side of a digit, which is 8 pixels in the data
DIMMED = 0.5  # brightness of the photographs, on which the digits are bright
INK, RIM = 0.5, 0.25  # coverage by ink from which a pixel is the digit's, and from which it is void


def make_digits(training_scenes: int = 200, evaluation_scenes: int = 40) -> Task:
    """Digits and parts of photographs in the training scenes are in none of the evaluation."""
    digits, labels = load_digits(return_X_y=True)
    inks = torch.from_numpy(digits).float().view(-1, 8, 8) / 16
    photographs = [torch.tensor(photograph).permute(2, 0, 1) / 255 for photograph in load_sample_images().images]
    left, right = zip(*(photograph.chunk(2, dim=2) for photograph in photographs), strict=True)
    training, evaluation = (
        [make_scene(inks[part], labels[part], half, seed) for seed in range(count)]
        for part, half, count in (
            (slice(DIGITS_SPLIT), left, training_scenes),
            (slice(DIGITS_SPLIT, None), right, evaluation_scenes),
        )
    )
    recipe = replace(RECIPE, iterations=600, crop_size=CELLS * CELL, scales=(1.0, 1.0), flip=False, evaluate_every=60)
    return _make_task("digits", DIGITS_CLASSES, training, evaluation, recipe)


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
