"""What several launches take from tensors and options."""

import functools

import torch
from torch import Tensor

from lal_triton.kernels.records import LossOptions, LossSpec, PlaneStrides
from lal_triton.options import LocalLoss


def loss_options(options: LocalLoss) -> LossOptions:
    return LossOptions(options.stride, options.label_smoothing, options.focal_alpha, options.focal_gamma)


def loss_spec(options: LocalLoss, classes: int, has_class_weight: bool) -> LossSpec:
    return LossSpec(
        FOCAL=options.cost == "focal",
        HAS_CLASS_WEIGHT=has_class_weight,
        HAS_SMOOTHING=options.label_smoothing > 0,
        BOUNDED=options.exp_is_bounded(classes),
        STRIDED=options.stride > 1,
    )


def plane_strides(tensor: Tensor | None) -> PlaneStrides:
    return PlaneStrides() if tensor is None else PlaneStrides(*tensor.stride())


def like_on_meta(tensor: Tensor) -> Tensor:
    """A tensor of this shape, these strides and this dtype, without memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@functools.lru_cache(maxsize=64)
def window_table(window: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(window, dtype=torch.float32, device=device)
