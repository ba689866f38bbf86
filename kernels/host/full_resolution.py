"""The launches of a loss whose labels have the size of the logits."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.kernels.backward import local_cost_bwd_kernel, merge_bwd_kernel
from lal_triton.kernels.forward import local_loss_fwd_kernel
from lal_triton.kernels.host import launch
from lal_triton.kernels.host.arguments import like_on_meta, loss_options, loss_spec, window_table
from lal_triton.kernels.host.launch import Launch
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.records import Size, Strides, WindowSpec
from lal_triton.options import LocalLoss


class Group(NamedTuple):
    """The backward of as many images as a scratch holds."""

    images: slice
    merged: Launch  # writes the gradient of the merged logits
    logits: Launch  # makes that of the logits from it


class FullResolution:
    """From logits and labels the map of losses, and from its gradient that of the logits.

    Where the forward saves exp(f_c - f_y), the backward takes the slopes of `pool_bwd_kernel`, and merges once. Else it
    merges the logits again, to the gradient of the merged logits in a scratch, and merges that.
    """

    def __init__(
        self, logits: Tensor, has_class_weight: bool, options: LocalLoss, layout: WorkspaceLayout, band_columns: int
    ) -> None:
        self._options, self._layout, self._band_columns = options, layout, band_columns
        self._device, self._shape = logits.device, logits.shape
        self._like = like_on_meta(logits)
        images, classes, height, width = logits.shape
        self._size = Size(height, width, classes, layout.plane_size)
        self._strides = Strides(*logits.stride())
        self._out_strides = Strides(*torch.empty_like(self._like).stride())
        self._scratch_strides = Strides(classes * height * width, height * width, width, 1)
        self._loss = {"options": loss_options(options), "L": loss_spec(options, classes, has_class_weight)}
        self._images_of_scratch = min(images, max(1, configs.SCRATCH_BYTES // (4 * self._scratch_strides.n)))
        self._forward = self._launch(local_loss_fwd_kernel, "local_loss_fwd", images, self._loss)
        self._merge_saved: Launch | None = None
        self._gradient: Launch | None = None
        self._groups: list[Group] = []
        if layout.saves_exp:
            self._merge_saved = self._merge(images, 0)
        elif len(options.window) == 1 and not options.normalize:  # f(p) is w x(p): nothing to merge
            self._gradient = self._merged_gradient(images, 0, self._out_strides, gain=options.window[0])
        else:
            self._groups = list(self._group_images(images))

    def forward(
        self, stream: int | None, workspace: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None
    ) -> Tensor | None:
        saved = launch.allocate(self._shape, torch.float32, self._device) if self._layout.saves_exp else None
        self._forward(stream, saved, workspace, logits, labels, weight)
        return saved

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        workspace: Tensor,
        saved: Tensor | None,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        out = launch.allocate(self._shape, logits.dtype, self._device, self._out_strides)
        if self._merge_saved:
            self._merge_saved(stream, out, saved, gradient, workspace, logits, labels)
        elif self._gradient:
            self._gradient(stream, out, gradient, workspace, logits, labels, weight)
        else:
            scratch = launch.allocate((self._images_of_scratch, *self._shape[1:]), torch.float32, self._device)
            for images, merged, of_logits in self._groups:
                inputs = workspace, logits[images], labels[images]
                merged(stream, scratch, gradient[images], *inputs, weight)
                of_logits(stream, out[images], scratch, None, *inputs)
        return out

    def _group_images(self, images: int) -> Iterator[Group]:
        for first in range(0, images, self._images_of_scratch):
            count = min(self._images_of_scratch, images - first)
            merged = self._merged_gradient(count, first, self._scratch_strides, gain=1.0)
            yield Group(slice(first, first + count), merged, self._merge(count, first))

    def _merged_gradient(self, images: int, first_image: int, out_strides: Strides, gain: float) -> Launch:
        more = {**self._loss, "out_strides": out_strides, "first_image": first_image, "gain": gain}
        return self._launch(local_cost_bwd_kernel, "local_cost_bwd", images, more)

    def _merge(self, images: int, first_image: int) -> Launch:
        more = {"out_strides": self._out_strides, "first_image": first_image}
        return self._launch(merge_bwd_kernel, "merge_bwd", images, more)

    def _launch(self, kernel: Any, family: str, images: int, more: dict[str, Any]) -> Launch:
        options, backward = self._options, family == "merge_bwd"
        config = configs.find(configs.Setting.of(family, self._like, self._size.H, options), self._device)
        rows, columns, strips, groups = (config.get(name, 1) for name in ("rows", "columns", "strips", "groups"))
        if rows * strips > configs.BAND_ROWS:
            raise ValueError(f"{family} has the configuration {config}, expected rows x strips <= {configs.BAND_ROWS}")
        large = configs.is_large(options)
        window = tuple(options.window[::-1] if backward else options.window)
        spec = WindowSpec(
            WEIGHTS=None if large else window,
            KH=options.kernel_height,
            KW=options.kernel_width,
            ROWS=rows,
            COLUMNS=columns,
            STRIPS=strips,
            GROUPS=groups,
            NORMALIZE=options.normalize,
            BY_WEIGHT=options.average == "weight" and not backward,
            LARGE=large,
            SAVES_EXP=self._layout.saves_exp,
            PLANES=self._layout.planes,
            BAND_COLUMNS=0 if backward else self._band_columns,
        )
        common = {
            "window_ptr": window_table(window, self._device) if large else None,
            "size": self._size,
            "strides": self._strides,
            "S": spec,
        }
        programs = images * triton.cdiv(self._size.H, rows * strips) * triton.cdiv(self._size.W, columns)
        return Launch(kernel, programs, columns * strips * groups, {**common, **more})
