"""What a run is made of: examples, a network for them, and the recipe that it is trained by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

PAPER, OURS = "paper", "our reading"


def _value(default: Any, source: str, remark: str = "") -> Any:
    return field(default=default, metadata={"source": source, "remark": remark})


@dataclass(frozen=True)
class Recipe:
    """The defaults are those of DeepLabV2 on VOC 2012 with the paper's losses; benchmarks/REPRODUCTION.md lists them.

    `batch_size` is the global one, over all ranks. `head_lr_factor` and `head_bias_lr_factor` multiply the learning
    rate of the parameters whose names begin with `head.`; `momentum` is SGD's alone.
    """

    iterations: int = _value(20_000, PAPER)
    batch_size: int = _value(2, PAPER)
    crop_size: int = _value(321, PAPER, "pixels")
    scales: tuple[float, float] = _value((0.5, 1.5), PAPER, "uniform")
    flip: bool = _value(True, PAPER, "of left and right, with probability 1/2")
    optimizer: str = _value("sgd", PAPER)
    learning_rate: float = _value(2.5e-4, PAPER)
    momentum: float = _value(0.9, PAPER, "of its “decay rate and momentum 0.9”")
    poly_power: float = _value(0.9, OURS, "its “decay rate”, read as the power of DeepLab's (1 - t / T)^power")
    head_lr_factor: float = _value(10.0, OURS, "DeepLabV2's")
    head_bias_lr_factor: float = _value(20.0, OURS, "DeepLabV2's, which does not decay them either")
    weight_decay: float = _value(5e-4, OURS, "DeepLabV2's")
    evaluate_every: int = _value(2_000, OURS, "iterations")
    checkpoint_every: int = _value(500, OURS, "iterations; it does not change the outcome")

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "crop_size", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f'optimizer = {self.optimizer!r}, expected "sgd" or "adam"')


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
