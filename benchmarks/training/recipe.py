"""The values of a training run, with where each comes from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

PAPER, OURS = "paper", "our reading"


def _value(default: Any, source: str, remark: str = "") -> Any:
    return field(default=default, metadata={"source": source, "remark": remark})


@dataclass(frozen=True)
class Recipe:
    """The defaults are those of DeepLabV2 on VOC 2012 with the paper's losses; `recipe_table` lists them.

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
        counts = ("iterations", "batch_size", "crop_size", "evaluate_every", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f'optimizer = {self.optimizer!r}, expected "sgd" or "adam"')


OF_THE_NETWORK = (
    ("network", "DeepLabV2, ResNet-101", PAPER, ""),
    ("output stride", "8", PAPER, "the last two stages have dilations 2 and 4 instead of strides"),
    ("ASPP rates", "6, 12, 18, 24", PAPER, ""),
    ("batch norm", "frozen", OURS, "statistics and affine parameters; a batch of 2 estimates neither"),
    ("upsampling of the logits", "bilinear, inside the loss", OURS, "the paper's baseline learns it: `--head deconv`"),
    ("corners of that upsampling", "aligned", OURS, "DeepLab's; the logits of a crop of 8k + 1 lie at every 8th pixel"),
    ("feature that center loss sees", "last stage, 2048 channels", OURS, ""),
    ("stride of a bottleneck", "in its 3 x 3 convolution", OURS, "that of the pretrained weights (“v1.5”)"),
    ("CRF, multi-scale input", "none", OURS, "neither is part of what is compared"),
)


def recipe_table() -> str:
    """The defaults in markdown, one value a line."""
    values = [
        (value.name, _format(value.default), value.metadata["source"], value.metadata["remark"])
        for value in dataclasses.fields(Recipe)
    ]
    lines = [("value", "default", "source", "remark"), ("---",) * 4, *values, *OF_THE_NETWORK]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(map(_format, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
