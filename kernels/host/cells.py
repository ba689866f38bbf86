"""The launches of a loss without a window whose labels are finer than the logits."""

import functools

import torch
import triton
from torch import Tensor

from lal_triton.bilinear import Cells
from lal_triton.kernels import configs
from lal_triton.kernels.cell_loss import cell_loss_bwd_kernel, cell_loss_fwd_kernel
from lal_triton.kernels.host import launch
from lal_triton.kernels.host.arguments import like_on_meta, loss_options, loss_spec
from lal_triton.kernels.host.launch import Launch
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.low_resolution import logit_range_kernel
from lal_triton.kernels.records import CellAxis, CellSpec, Strides, UpsampledSize
from lal_triton.options import LocalLoss


@functools.lru_cache(maxsize=256)
def cell_axis(low: int, high: int, align_corners: bool, device: torch.device) -> tuple[CellAxis, int]:
    """What kernels read of an axis, and the most pixels of its cells; made on the host, once."""
    cells = Cells.of(low, high, align_corners)
    return CellAxis(cells.start.int().to(device), cells.fraction.float().to(device), cells.step), cells.most


def _divide(pixels: int, most: int) -> tuple[int, int]:
    """Of so many pixels of a cell along an axis: those of a patch, no more than `most`, and the patches."""
    patches = triton.cdiv(pixels, most)
    return triton.cdiv(pixels, patches), patches


class CellLoss:
    """From low-resolution logits and labels the map of losses, and from the slopes the gradient of the logits."""

    def __init__(
        self, logits: Tensor, labels: Tensor, has_class_weight: bool, options: LocalLoss, layout: WorkspaceLayout
    ) -> None:
        self._options, self._layout, self._device = options, layout, logits.device
        self._like = like_on_meta(logits)
        images, classes, height, width = self._shape = logits.shape
        (axis_y, self._pixels_y), (axis_x, self._pixels_x) = (
            cell_axis(low, high, options.align_corners, logits.device)
            for low, high in zip(logits.shape[2:], labels.shape[1:], strict=True)
        )
        self._size = UpsampledSize(height, width, *labels.shape[1:], classes, layout.plane_size)
        self._strides = Strides(*logits.stride())
        self._out_strides = Strides(*torch.empty_like(self._like).stride())
        self._common = {
            "axis_y": axis_y,
            "axis_x": axis_x,
            "size": self._size,
            "range_begin": layout.range_begin,
            "strides": self._strides,
            "gain": options.window[0] if options.average == "count" else 1.0,
            "L": loss_spec(options, classes, has_class_weight),
        }
        self._range = self._prepare_range(images)
        self._forward = self._prepare_forward(images)
        self._holds = logits.dtype != torch.float32  # parts of the gradient, in float32
        self._backward = self._prepare_backward(images)

    def forward(
        self, stream: int | None, workspace: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None
    ) -> None:
        self._range(stream, workspace[self._layout.range_begin :], logits)
        self._forward(stream, workspace, logits, labels, weight)

    def backward(
        self,
        stream: int | None,
        slopes: Tensor,
        workspace: Tensor,
        saved: None,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        out = launch.allocate(self._shape, logits.dtype, self._device, self._out_strides)
        held = launch.allocate(self._shape, torch.float32, self._device) if self._holds else out
        self._backward(stream, out, held, slopes, workspace, logits, labels, weight)
        return out

    def _prepare_range(self, images: int) -> Launch:
        size, lanes = self._size, configs.LOW_RESOLUTION_LANES
        arguments = {"h": size.h, "w": size.w, "C": size.C, "strides": self._strides, "BLOCK": lanes}
        return Launch(logit_range_kernel, images * triton.cdiv(size.h * size.w, lanes), lanes, arguments)

    def _prepare_forward(self, images: int) -> Launch:
        size, spec = self._size, self._spec("cell_loss_fwd")
        patches = (size.h + 1) * spec.QY * (size.w + 1) * spec.QX
        arguments = {**self._common, "options": loss_options(self._options), "S": spec}
        return Launch(cell_loss_fwd_kernel, images * triton.cdiv(patches, spec.LANES), spec.LANES, arguments)

    def _prepare_backward(self, images: int) -> Launch:
        size, spec = self._size, self._spec("cell_loss_bwd")
        patches = triton.cdiv(size.h, spec.ROWS) * (size.w + 1) * spec.QX
        blocks = images * triton.cdiv(patches, spec.LANES - (2 * spec.QX - 1))
        contiguous = Strides(size.C * size.h * size.w, size.h * size.w, size.w, 1)
        arguments = {
            **self._common,
            "out_strides": self._out_strides,
            "held_strides": contiguous if self._holds else self._out_strides,
            "S": spec,
        }
        return Launch(cell_loss_bwd_kernel, blocks * triton.cdiv(size.C, spec.CLASSES), spec.LANES, arguments)

    def _spec(self, family: str) -> CellSpec:
        setting = configs.Setting.of(family, self._like, self._size.H, self._options)
        config = configs.find(setting, self._device)
        rows, patches_y = _divide(self._pixels_y, configs.PATCH_ROWS)
        columns, patches_x = _divide(self._pixels_x, config["columns"])
        extents = ((self._size.h - 1) * s.h + (self._size.w - 1) * s.w for s in (self._strides, self._out_strides))
        return CellSpec(
            PY=rows,
            PX=columns,
            QY=patches_y,
            QX=patches_x,
            LANES=config["lanes"],
            WIDE=max(extents) > configs.MOST_OFFSET,
            PLANES=self._layout.planes,
            ROWS=config.get("rows", 0),
            CLASSES=config.get("classes", 0),
        )
