"""A step of a loss on tensors of certain shapes, strides and dtypes: its launches, prepared once."""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.kernels.host import launch
from lal_triton.kernels.host.arguments import plane_strides
from lal_triton.kernels.host.cells import CellLoss
from lal_triton.kernels.host.full_resolution import FullResolution
from lal_triton.kernels.host.launch import Launch, current_stream
from lal_triton.kernels.host.pooling import BatchPooling
from lal_triton.kernels.host.upsampled import Upsampled
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.preparation import prepare_fwd_kernel
from lal_triton.kernels.records import PreparationSpec, Size, Strides
from lal_triton.options import LocalLoss, Pooling, weighs_in_loss

_nothing = contextlib.nullcontext()


class Saved(NamedTuple):
    """What the forward leaves for the backward, besides its arguments."""

    labels: Tensor  # int32, as `labels.encode_labels` gives them
    workspace: Tensor  # see `workspace.WorkspaceLayout`
    exp: Tensor | None  # exp(f_c - f_y), float32 of the logits' shape


class Plan:
    """The forward and the backward of a step; with `saves_exp` None the configuration says what the forward saves."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        options: LocalLoss,
        pooling: Pooling,
        saves_exp: bool | None,
    ) -> None:
        classes, height = logits.shape[1], target.shape[1]
        self._device, self._shape = logits.device, target.shape
        self.ignore_index = pooling.ignore_index
        setting = configs.Setting.of("prepare", logits, height, options)
        columns = configs.find(setting, self._device)["columns"]
        if saves_exp is None:
            kernel_size = options.kernel_height, options.kernel_width
            saves_exp = configs.saves_exp(kernel_size, logits.dtype, logits.device)
        layout = WorkspaceLayout(logits.shape, target.shape, options, pooling, saves_exp)
        self._workspace_size = layout.size
        self._weighs_loss = weight is not None and weighs_in_loss(options, pooling.reduction)
        self._prepare = _preparation(logits, target, options, pooling, layout, columns)
        self._local: CellLoss | FullResolution | Upsampled
        if layout.on_cells:
            self._local = CellLoss(logits, target, self._weighs_loss, options, layout)
        elif layout.upsampled:
            self._local = Upsampled(logits, target, self._weighs_loss, options, layout)
        else:
            self._local = FullResolution(logits, self._weighs_loss, options, layout, columns)
        self._pooling = BatchPooling(target, classes, weight, pixel_weight, self._weighs_loss, options, pooling, layout)

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
    ) -> tuple[Tensor, Saved]:
        """The pooled loss, or the map `[N, H, W]` with the reduction "none"."""
        device = self._device
        with _on(device):
            stream = current_stream(device)
            labels = launch.allocate(self._shape, torch.int32, device)
            workspace = launch.allocate((self._workspace_size,), torch.float32, device)
            self._prepare(stream, labels, target, workspace, logits)
            exp = self._local.forward(stream, workspace, logits, labels, weight if self._weighs_loss else None)
            value = self._pooling.forward(stream, workspace, labels, weight, pixel_weight)
        return value, Saved(labels, workspace, exp)

    def backward(
        self,
        gradient: Tensor,
        logits: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        saved: Saved,
    ) -> Tensor:
        """The gradient of the logits from that of `forward`'s value."""
        labels, workspace, exp = saved
        with _on(self._device):
            stream = current_stream(self._device)
            gradient = self._pooling.backward(stream, gradient, workspace, labels, weight, pixel_weight)
            weight = weight if self._weighs_loss else None
            return self._local.backward(stream, gradient, workspace, exp, logits, labels, weight)


def _preparation(
    logits: Tensor, target: Tensor, options: LocalLoss, pooling: Pooling, layout: WorkspaceLayout, columns: int
) -> Launch:
    """The launch of the kernel that comes first; through an upsampling it encodes the labels and no more."""
    full = not layout.upsampled
    images, height, width = target.shape
    arguments = {
        "size": Size(height, width, logits.shape[1], layout.plane_size),
        "pooled_begin": layout.pooled_begin,
        "target_strides": plane_strides(target),
        "strides": Strides(*logits.stride()),
        "ignore_index": pooling.ignore_index,
        "eps": options.eps,
        "S": PreparationSpec(
            ROWS=configs.BAND_ROWS,
            COLUMNS=columns,
            HAS_OWN_LOGIT=full,
            HAS_MOMENTS=full and options.normalize,
            HAS_VOID_CHECK=full and len(options.window) > 1,
            PLANES=layout.planes,
        ),
    }
    programs = images * triton.cdiv(height, configs.BAND_ROWS) * triton.cdiv(width, columns)
    return Launch(prepare_fwd_kernel, programs, configs.BAND_ROWS * columns // configs.PIXELS_PER_LANE, arguments)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device; to ask which that is costs less than to set it."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _nothing
    return torch.cuda.device(device)
