"""The launches that pool the map of losses, and give its gradient."""

from typing import Any

import torch
import triton
from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.kernels.host import launch
from lal_triton.kernels.host.arguments import loss_options, loss_spec, plane_strides
from lal_triton.kernels.host.launch import Launch
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.pooling import pool_bwd_kernel, pool_fwd_kernel
from lal_triton.kernels.records import PlaneStrides, PoolingSpec, Size
from lal_triton.options import LocalLoss, Pooling


class BatchPooling:
    """From the map of losses `[N, H, W]` the pooled loss, and from its gradient that of the map, or slopes.

    Slopes are what `merge_bwd_kernel` takes of the gradient where the forward saves exp(f_c - f_y), and what
    `cell_loss_bwd_kernel` takes, `[1, N, H, W]`, and with label smoothing `[2, N, H, W]`.
    """

    def __init__(
        self,
        target: Tensor,
        classes: int,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        weights_in_loss: bool,
        options: LocalLoss,
        pooling: Pooling,
        layout: WorkspaceLayout,
    ) -> None:
        self._shape, self._device, self._map = target.shape, target.device, pooling.reduction == "none"
        self._maps = (1 + (options.label_smoothing > 0),) if layout.on_cells else ()
        images, height, width = target.shape
        spec = PoolingSpec(
            BLOCK=configs.POOL_CHUNK,
            REDUCTION=pooling.reduction,
            HAS_POWER=pooling.p != 1,
            HAS_CLASS_WEIGHT=weight is not None,
            HAS_PIXEL_WEIGHT=pixel_weight is not None,
            STRIDED=options.stride > 1,
            WEIGHTS_IN_LOSS=weights_in_loss,
            PLANES=layout.planes,
            SLOPES="cells" if layout.on_cells else "saved" if layout.saves_exp else "",
        )
        common = {
            "N": images,
            "pooled_begin": layout.pooled_begin,
            "weight_strides": plane_strides(pixel_weight),
            "p": pooling.p,
        }
        of_forward = {
            "H": height,
            "W": width,
            "plane_size": layout.plane_size,
            "centre_stride": options.stride,
            "S": spec,
            "IMAGES": configs.POOL_IMAGES,
            "CHUNKS": configs.POOL_CHUNKS,
        }
        programs = images * triton.cdiv(height * width, configs.POOL_CHUNK)
        self._forward = Launch(pool_fwd_kernel, programs, configs.POOL_LANES, {**common, **of_forward})
        self._of_backward: dict[str, Any] = {
            **common,
            "size": Size(height, width, classes, layout.plane_size),
            "options": loss_options(options),
            "S": spec._replace(BLOCK=configs.SLOPES_BLOCK),
            "L": loss_spec(options, classes, weights_in_loss),
            "PRECISE": pooling.p > 4,
        }
        self._backward: dict[PlaneStrides, Launch] = {}

    def forward(
        self,
        stream: int | None,
        workspace: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
    ) -> Tensor:
        value = launch.allocate(self._shape if self._map else (), torch.float32, self._device)
        self._forward(stream, value, workspace, labels, weight, pixel_weight)
        return value

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        workspace: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
    ) -> Tensor:
        out = launch.allocate((*self._maps, *self._shape), torch.float32, self._device)
        strides = plane_strides(gradient) if self._map else PlaneStrides()
        backward = self._backward.get(strides)
        if backward is None:
            images, height, width = self._shape
            programs = images * triton.cdiv(height * width, configs.SLOPES_BLOCK)
            arguments = {**self._of_backward, "gradient_strides": strides}
            backward = self._backward[strides] = Launch(pool_bwd_kernel, programs, configs.POOL_LANES, arguments)
        backward(stream, out, gradient, workspace, labels, weight, pixel_weight)
        return out
