"""Random inputs, and the value and gradient of a loss on them."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from criterion import Comparison

from lal_triton.functional import locally_adaptive_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
cpu_only = pytest.mark.skipif(DEVICE != "cpu", reason="the tensors are on a GPU")

# Every option of the loss, each at a value that is not its default.
WINDOW = [[0.5, 0.0, 2.0], [1.0, 1.5, 0.25], [3.0, 1.0, 0.0]]
OPTIONS: dict[str, dict[str, Any]] = {
    "kernel_size 1": {"kernel_size": 1},
    "kernel_size 3": {"kernel_size": 3},
    "kernel_size 7": {"kernel_size": 7},
    "kernel_size (3, 5)": {"kernel_size": (3, 5)},
    "kernel_size (1, 7)": {"kernel_size": (1, 7)},
    "kernel_size (5, 1)": {"kernel_size": (5, 1)},
    "uniform window": {"window": "uniform"},
    "asymmetric window": {"window": WINDOW, "kernel_size": 3},
    "asymmetric window by weight": {"window": WINDOW, "kernel_size": 3, "average": "weight"},
    "stride 2": {"stride": 2},
    "stride 3": {"stride": 3, "reduction": "none"},
    "average by weight": {"average": "weight"},
    "not normalized": {"normalize": False},
    "eps": {"eps": 0.5},
    "focal": {"cost": "focal"},
    "focal alpha": {"cost": "focal", "focal_alpha": 0.5},
    "focal gamma 0": {"cost": "focal", "focal_gamma": 0.0},
    "focal gamma 0.5": {"cost": "focal", "focal_gamma": 0.5},
    "weight": {"weight": True},
    "weight, mean": {"weight": True, "reduction": "mean"},
    "weight, sum": {"weight": True, "reduction": "sum"},
    "weight, none": {"weight": True, "reduction": "none"},
    "weight, focal, mean": {"weight": True, "cost": "focal", "reduction": "mean"},
    "pixel_weight": {"pixel_weight": True},
    "pixel_weight, mean": {"pixel_weight": True, "reduction": "mean"},
    "pixel_weight, none": {"pixel_weight": True, "reduction": "none"},
    "label_smoothing": {"label_smoothing": 0.2},
    "label_smoothing, weights, minkowski": {"label_smoothing": 0.2, "weight": True, "pixel_weight": True},
    "label_smoothing, weights, mean": {
        "label_smoothing": 0.2,
        "weight": True,
        "pixel_weight": True,
        "reduction": "mean",
    },
    "label_smoothing, weights, none": {
        "label_smoothing": 0.2,
        "weight": True,
        "pixel_weight": True,
        "reduction": "none",
    },
    "mean": {"reduction": "mean"},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "p 1": {"p": 1.0},
    "p 2": {"p": 2.0},
    "p 5": {"p": 5.0},
    "p 20": {"p": 20.0},
    "pool batch": {"pool": "batch"},
    "ignore_index": {"ignore_index": 1},
}


def make_problem(
    shape: tuple[int, int, int, int] = (3, 4, 6, 9),
    *,
    seed: int = 0,
    labels: int = 3,
    scale: float = 2.0,
    offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits and a target with void; the images hold different numbers of valid pixels, the last none."""
    generator = torch.Generator().manual_seed(seed)
    images, classes, height, width = shape
    logits = scale * torch.randn(shape, generator=generator) + offset
    target = torch.randint(0, min(labels, classes), (images, height, width), generator=generator)
    void = torch.rand(images, height, width, generator=generator) < torch.linspace(0.1, 0.6, images)[:, None, None]
    target[void] = 255
    if images > 1:
        target[-1] = 255
    return logits.to(DEVICE), target.to(DEVICE)


def make_case(
    options: dict[str, Any], shape: tuple[int, int, int, int] = (3, 4, 6, 9), **problem: Any
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """A problem for these options, in which `True` is replaced by random weights and void is their ignore_index."""
    logits, target = make_problem(shape, **problem)
    target = torch.where(target == 255, options.get("ignore_index", 255), target)
    generator = torch.Generator().manual_seed(1)
    filled = dict(options)
    if options.get("weight") is True:
        filled["weight"] = (torch.rand(logits.shape[1], generator=generator) + 0.1).to(logits.device)
    if options.get("pixel_weight") is True:
        filled["pixel_weight"] = torch.rand(target.shape, generator=generator).to(logits.device)
    return logits, target, filled


def in_layout(logits: torch.Tensor, layout: str) -> torch.Tensor:
    """The logits "channels_last", "sliced" out of others that are NaN, or the first image "expanded" to all."""
    if layout == "channels_last":
        return logits.to(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.stack([logits, torch.full_like(logits, torch.nan)], -1).flatten(3)[..., ::2]
    return logits[:1].expand(len(logits), -1, -1, -1)


def value_and_gradient(
    logits: torch.Tensor, target: torch.Tensor, dtype: torch.dtype, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of its sum with an uneven, non-unit grad_output; logits keep their strides."""
    leaf = logits.detach().to(dtype).requires_grad_()
    options = {
        name: value.to(leaf.dtype) if name in ("weight", "pixel_weight") and dtype == torch.float64 else value
        for name, value in options.items()
    }
    loss = locally_adaptive_loss(leaf, target, **options)
    ramp = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype, device=loss.device).view(loss.shape)
    (gradient,) = torch.autograd.grad(loss, leaf, ramp)
    return loss.detach(), gradient


def step_of(loss_fn: Any, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of a loss, and its gradient with respect to the inputs, whose strides it keeps."""
    leaf = inputs.detach().requires_grad_()
    loss = loss_fn(leaf, target)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def eager_samples(
    logits: torch.Tensor, target: torch.Tensor, **options: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The float32 reference on the problem and with the classes reversed, mapped back: they differ in rounding only."""
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend="reference", **options)
    classes, ignore_index = logits.shape[1], options.get("ignore_index", 255)
    reversed_target = torch.where(target == ignore_index, ignore_index + classes, classes - 1 - target.long())
    options = options | {"ignore_index": ignore_index + classes}
    if options.get("weight") is not None:
        options["weight"] = options["weight"].flip(0)
    flipped, flipped_gradient = value_and_gradient(
        logits.flip(1), reversed_target, torch.float32, backend="reference", **options
    )
    return [loss, flipped], [gradient, flipped_gradient.flip(1)]


def compare_with_reference(
    logits: torch.Tensor, target: torch.Tensor, backend: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Comparison, Comparison]:
    """The loss and the gradient, of logits in this dtype."""
    logits = logits.to(dtype)
    loss, gradient = value_and_gradient(logits, target, dtype, backend=backend, **options)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    oracle, oracle_gradient = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    losses, gradients = eager_samples(logits, target, **options)
    if loss.dim() == 0:
        # The error of a single number is luck: what it pools is no worse than the map.
        options = {name: value for name, value in options.items() if name not in ("p", "pool")} | {"reduction": "none"}
        map_oracle, _ = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
        maps, _ = eager_samples(logits, target, **options)
        norm = map_oracle.norm()
        losses += [oracle * (1 + (sample.double() - map_oracle).norm() / norm) for sample in maps if norm > 0]
    truncated = backend == "triton" and DEVICE == "cpu" and dtype == torch.bfloat16
    return Comparison(loss, losses, oracle), Comparison(gradient, gradients, oracle_gradient, truncated)


def thinned(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters of which `make test` runs every so many, and `make test-long` the others."""
    return [
        value
        if i % every == 0
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
        for i, value in enumerate(values)
    ]
