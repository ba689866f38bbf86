"""A small U-Net, which learns the embedded tasks on a CPU within seconds."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lal_triton.benchmarks.training.recipe import Recipe
from lal_triton.benchmarks.training.task import Example, Output, Task

RECIPE = Recipe(  # rate and optimiser were chosen on cross-entropy alone; Adam's steps do not grow with a loss's scale
    iterations=300,
    crop_size=96,
    scales=(0.8, 1.25),
    optimizer="adam",
    learning_rate=0.005,
    weight_decay=0.0,
    evaluate_every=30,
)
WIDTHS = (32, 64)  # at strides 2 and 4
GROUPS = 8  # of the group normalisation, which needs no batch


def make_task(
    name: str,
    class_names: tuple[str, ...],
    training: Sequence[Example],
    evaluation: Sequence[Example],
    recipe: Recipe = RECIPE,
) -> Task:
    """With the small network, which standardises by the training images (of one size)."""
    pixels = torch.stack([example.image for example in training])
    make_network = partial(SmallNetwork, len(class_names), pixels.mean().item(), pixels.std().item())
    return Task(name, class_names, training, evaluation, make_network, recipe)


class SmallNetwork(nn.Module):
    """U-Net (Ronneberger et al. 2015) that predicts at stride 2.

    Images `[N, 3, H, W]` in [0, 1], standardised by `mean` and `std`, to logits `[N, C, ceil(H / 2), ceil(W / 2)]`
    and the features `[N, num_features, ceil(H / 2), ceil(W / 2)]` that they are a linear function of.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, mean: float, std: float) -> None:
        super().__init__()
        self.num_features = WIDTHS[0]
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        inputs = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(narrow, wide, stride=2), _convolution(wide, wide))
            for narrow, wide in zip(inputs, WIDTHS, strict=True)
        )
        self.up = nn.ModuleList(_convolution(narrow + wide, narrow) for narrow, wide in pairwise(WIDTHS))
        self.classifier = nn.Conv2d(self.num_features, num_classes, 1)

    def forward(self, images: Tensor) -> Output:
        x = (images - self.mean) / self.std
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
        for block, skip in zip(reversed(self.up), reversed(skipped[:-1]), strict=True):
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return Output(self.classifier(x), x)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU())
