"""What every launch takes from tensors and options."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import make_backend
from triton.runtime import driver

from lal_triton.options import LocalLoss


def cost_arguments(weight: Tensor | None, options: LocalLoss, classes: int) -> dict[str, Any]:
    focal = options.cost == "focal"
    class_weight = None if weight is None or focal else weight.to(torch.float32).contiguous()
    return {
        "class_weight": class_weight,
        "smoothing": options.label_smoothing,
        "alpha": options.focal_alpha,
        "gamma": options.focal_gamma,
        "centre_stride": options.stride,
        "FOCAL": focal,
        "WEIGHTED": class_weight is not None,
        "SMOOTHING": options.label_smoothing > 0,
        "BOUNDED": options.exp_is_bounded(classes),
    }


def strides(name: str, tensor: Tensor, dimensions: str) -> dict[str, int]:
    return {f"{name}_{d}": stride for d, stride in zip(dimensions, tensor.stride(), strict=True)}


@functools.lru_cache(maxsize=64)
def num_warps(lanes: int, device: torch.device) -> int:
    """As many warps as give each thread one lane."""
    size = torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32
    return max(1, lanes // size)


@functools.lru_cache(maxsize=64)
def dot_precision(device: torch.device) -> str:
    """Float32 products by tensor cores where the device's compiler has them, by multiply-adds elsewhere."""
    if device.type == "cpu":
        return "ieee"
    backend = make_backend(driver.active.get_current_target())
    return "bf16x6" if "bf16x6" in backend.parse_options({}).allowed_dot_input_precisions else "ieee"


@functools.lru_cache(maxsize=64)
def window_table(window: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(window, dtype=torch.float32, device=device)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)
