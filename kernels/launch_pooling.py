"""The launches that pool the map of losses, and give its gradient."""

from typing import Any

import torch
import triton
from torch import Tensor

from lal_triton.kernels import arguments, configs
from lal_triton.kernels.launching import Launch
from lal_triton.kernels.layouts import State
from lal_triton.kernels.pooling import pool_bwd_kernel, pool_fwd_kernel
from lal_triton.options import LocalLoss, Pooling


class BatchPooling:
    """From the map of losses `[N, H, W]` the pooled loss, and from its gradient that of the map, or the slopes.

    Slopes are what `merge_bwd_kernel` takes of the gradient where the forward kept exp(f_c - f_y).
    """

    def __init__(
        self,
        target: Tensor,
        classes: int,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        cost_weighted: bool,
        options: LocalLoss,
        pooling: Pooling,
        state: State,
    ) -> None:
        images, height, width = self._size = target.shape
        self._device, self._map = target.device, pooling.reduction == "none"
        common = {
            "N": images,
            "H": height,
            "W": width,
            **state.arguments,
            "pooled_begin": state.pooled_begin,
            **arguments.strides("weight", pixel_weight, "nhw"),
            "centre_stride": options.stride,
            "p": pooling.p,
            "WEIGHTED": weight is not None,
            "WEIGHTED_COST": cost_weighted,
            "POINTED": pixel_weight is not None,
            "REDUCTION": pooling.reduction,
            "num_warps": arguments.num_warps(configs.POOL_LANES, self._device),
        }
        self._forward = Launch(
            pool_fwd_kernel,
            images * triton.cdiv(height * width, configs.POOL_CHUNK),
            {
                **common,
                "BLOCK": configs.POOL_CHUNK,
                "IMAGES": configs.POOL_IMAGES,
                "CHUNKS": configs.POOL_CHUNKS,
            },
        )
        self._backward_arguments = {
            **common,
            "C": classes,
            "alpha": options.focal_alpha,
            "gamma": options.focal_gamma,
            "BLOCK": configs.SLOPES_BLOCK,
            "PRECISE": pooling.p > 4,
            "SLOPES": state.keep,
            "FOCAL": options.cost == "focal",
        }
        self._backward: dict[Any, Launch] = {}

    def forward(
        self,
        stream: int | None,
        state: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
    ) -> Tensor:
        value = arguments.empty(self._size if self._map else (), torch.float32, self._device)
        self._forward(stream, value, state, labels, weight, pixel_weight)
        return value

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        state: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
    ) -> Tensor:
        out = arguments.empty(self._size, torch.float32, self._device)
        launch = self._backward.get(gradient.stride())
        if launch is None:
            images, height, width = self._size
            launch = self._backward[gradient.stride()] = Launch(
                pool_bwd_kernel,
                images * triton.cdiv(height * width, configs.SLOPES_BLOCK),
                {**self._backward_arguments, **arguments.strides("gradient", gradient if self._map else None, "nhw")},
            )
        launch(stream, out, gradient, state, labels, weight, pixel_weight)
        return out
