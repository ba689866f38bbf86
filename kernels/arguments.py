"""What every launch takes from tensors and options."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import make_backend
from triton.runtime import driver

from lal_triton.options import LocalLoss


def cost_arguments(weighted: bool, options: LocalLoss, classes: int) -> dict[str, Any]:
    return {
        "smoothing": options.label_smoothing,
        "alpha": options.focal_alpha,
        "gamma": options.focal_gamma,
        "centre_stride": options.stride,
        "FOCAL": options.cost == "focal",
        "WEIGHTED": weighted,
        "SMOOTHING": options.label_smoothing > 0,
        "BOUNDED": options.exp_is_bounded(classes),
    }


def outline(tensor: Tensor) -> Tensor:
    """The tensor's shape, strides and dtype, without its memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def strides(name: str, tensor: Tensor | None, dimensions: str) -> dict[str, int]:
    """The arguments name_n, name_h, ... of a kernel: a tensor's strides, or 0 where there is none."""
    values = [0] * len(dimensions) if tensor is None else tensor.stride()
    return {f"{name}_{d}": stride for d, stride in zip(dimensions, values, strict=True)}


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
    if device.type == "meta":  # launches are recorded, for a target whose compiler has them
        return "bf16x6"
    backend = make_backend(driver.active.get_current_target())
    return "bf16x6" if "bf16x6" in backend.parse_options({}).allowed_dot_input_precisions else "ieee"


@functools.lru_cache(maxsize=64)
def window_table(window: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(window, dtype=torch.float32, device=device)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)
