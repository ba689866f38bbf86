"""A task that trains within a second: the class of a pixel is told by its colour."""

import dataclasses
from functools import partial

import torch
from torch import nn

from lal_triton.benchmarks.training.task import Example, Output, Recipe, Task

ITERATIONS = 8


class TinyNetwork(nn.Module):
    """Logits at stride 2. Batch norm is frozen, so that an image does not depend on the others of its rank."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_features = 6
        self.features = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.classifier = nn.Conv2d(6, num_classes, 1)

    def train(self, mode: bool = True) -> "TinyNetwork":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, images: torch.Tensor) -> Output:
        features = torch.relu(self.norm(self.features(images)))
        return Output(self.classifier(features), features)


def make_task(**changes) -> Task:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(3):
        target = torch.randint(0, 3, (4, 5), generator=generator).repeat_interleave(6, 0).repeat_interleave(6, 1)
        image = torch.stack([target == c for c in range(3)]).float()
        image = (0.8 * image + 0.2 * torch.rand(image.shape, generator=generator)).float()
        target[:3] = 255
        examples.append(Example(f"image {index}", image, target))
    few = {"iterations": ITERATIONS, "batch_size": 4, "crop_size": 16, "learning_rate": 0.05, "evaluate_every": 3}
    recipe = Recipe(**(few | changes))
    return Task("tiny", ("red", "green", "blue"), examples, examples[:2], partial(TinyNetwork, 3), recipe)


def make_task_with_void() -> Task:
    """With an example that is void throughout, so that a rank's share at times has no valid pixel."""
    task = make_task()
    unlabelled = Example("void", task.training[0].image, torch.full_like(task.training[0].target, 255))
    return dataclasses.replace(task, training=[*task.training, unlabelled])
