"""What a network is trained on: examples, classes, network and recipe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from lal_triton.benchmarks.training.recipe import Recipe


class Example(NamedTuple):
    name: str
    image: Tensor  # [3, H, W], float32 in [0, 1]
    target: Tensor  # [H, W], int64, 255 = void


class Output(NamedTuple):
    logits: Tensor  # [N, C, h, w]
    features: Tensor  # [N, D, h, w], what center loss sees


@dataclass(frozen=True)
class Task:
    """Examples are whole images, of any sizes, and may be read when they are indexed.

    The network that `make_network` makes maps images `[N, 3, H, W]` in [0, 1] to an `Output`, draws no random numbers
    when it does, and has the attribute `num_features`. If it has an `align_corners` that is true, then its logits lie
    at every `output_stride`-th pixel from the first one on, otherwise they cover the image as pixels of that size do.
    """

    name: str
    class_names: tuple[str, ...]
    training: Sequence[Example]
    evaluation: Sequence[Example]
    make_network: Callable[[], nn.Module]
    recipe: Recipe
