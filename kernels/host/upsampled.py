"""The launches of a loss whose labels are finer than the logits."""

import bisect
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lal_triton.bilinear import Axis
from lal_triton.kernels import configs
from lal_triton.kernels.host import launch
from lal_triton.kernels.host.arguments import like_on_meta, loss_options, loss_spec, window_table
from lal_triton.kernels.host.launch import Launch
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.low_resolution import centre_fwd_kernel, gather_bwd_kernel, interpolated_rstd_kernel
from lal_triton.kernels.records import (
    AxisTables,
    Band,
    Cells,
    FootprintSpec,
    GatherSpec,
    PartsAxis,
    Strides,
    UpsampledSize,
)
from lal_triton.kernels.upsampled import upsampled_loss_bwd_kernel, upsampled_loss_fwd_kernel
from lal_triton.options import LocalLoss


class Tables(NamedTuple):
    """What the kernels read of an axis: `bilinear.Axis`, and where to look for a low-resolution pixel."""

    lower: Tensor
    fraction: Tensor
    base: Tensor
    start: Tensor  # [low + 1], the first full-resolution pixel of each cell
    first: Tensor  # [low], the first tile whose windows reach it
    tile: int  # pixels
    lane: int  # pixels of a tile's lane
    span: int
    most_pixels: int  # of a cell
    most_tiles: int  # whose windows reach the same low-resolution pixel
    tiles: tuple[tuple[int, int], ...]  # [low], which tiles those of a low-resolution pixel and the one before it are

    @classmethod
    def of(cls, axis: Axis, lane: int, device: torch.device) -> "Tables":
        low = torch.arange(axis.low + 1)
        start = torch.searchsorted(axis.lower, low)
        base = axis.base.clamp(max=axis.low - axis.span)  # footprints lie inside the image
        first = torch.searchsorted(axis.last, low[:-1])
        last = torch.searchsorted(axis.base, low[:-1], right=True)
        earlier = torch.cat([first[:1], first[:-1]])
        return cls(
            lower=axis.lower.int().to(device),
            fraction=axis.fraction.float().to(device),
            base=base.int().to(device),
            start=start.int().to(device),
            first=first.int().to(device),
            tile=axis.tile,
            lane=lane,
            span=axis.span,
            most_pixels=int(start.diff().max()),
            most_tiles=int((last - first).max()),
            tiles=tuple(zip(earlier.tolist(), last.tolist(), strict=True)),
        )


@functools.lru_cache(maxsize=256)
def _tables(
    low: tuple[int, int], high: tuple[int, int], align_corners: bool, kernel: tuple[int, int], device: torch.device
) -> tuple[Tables, Tables]:
    """Of both axes, for the first of the tiles whose footprint is small enough; made on the host, once."""
    cpu = torch.device("cpu")
    for tile, lane in configs.TILES:
        down, across = (
            Axis.of(size, full, align_corners, extent // 2, cpu, pixels)
            for size, full, extent, pixels in zip(low, high, kernel, tile, strict=True)
        )
        if configs.footprint_fits((down.span, across.span), lane, kernel):
            return Tables.of(down, lane[0], device), Tables.of(across, lane[1], device)
    raise NotImplementedError(f"logits are {low} and target {high}, expected a larger ratio between them")


class Group(NamedTuple):
    """A share of the backward: so many images, and rows of tiles, as the scratch holds the parts of."""

    images: slice
    parts: Launch  # of each tile, for the gradient of its footprint
    gather: Launch  # the parts of each low-resolution pixel


class Upsampled:
    """From low-resolution logits and labels the map of losses, and from its gradient that of the logits."""

    def __init__(
        self, logits: Tensor, labels: Tensor, has_class_weight: bool, options: LocalLoss, layout: WorkspaceLayout
    ) -> None:
        self._options, self._layout, self._device = options, layout, logits.device
        self._like = like_on_meta(logits)
        images, classes, height, width = self._shape = logits.shape
        low, high = (height, width), tuple(labels.shape[1:])
        kernel = options.kernel_height, options.kernel_width
        self._down, self._across = _tables(low, high, options.align_corners, kernel, logits.device)
        self._size = UpsampledSize(height, width, *high, classes, layout.plane_size)
        self._out_strides = Strides(*torch.empty_like(self._like).stride())
        tiles = len(self._down.base), len(self._across.base)
        self._loss = {
            "window_ptr": window_table(tuple(options.window), logits.device),
            "tables_y": AxisTables(self._down.lower, self._down.fraction, self._down.base),
            "tables_x": AxisTables(self._across.lower, self._across.fraction, self._across.base),
            "size": self._size,
            "options": loss_options(options),
            "L": loss_spec(options, classes, has_class_weight),
        }
        self._centre = self._prepare_centre(images)
        self._rstd = self._prepare_rstd(images)
        whole = Share(0, height, 0, tiles[0])
        self._forward = self._launch(upsampled_loss_fwd_kernel, "upsampled_loss_fwd", images, whole)
        row_of_parts = (tiles[1], self._down.span * self._across.span, classes + 4 * options.normalize)
        affordable = configs.SCRATCH_BYTES // (4 * math.prod(row_of_parts))
        together = min(images, max(1, affordable // tiles[0]))
        shares = list(_shares(self._down, affordable))
        block = self._tiles_together(self._spec("upsampled_loss_bwd"))
        blocks = triton.cdiv(together * max(share.tiles for share in shares) * tiles[1], block)
        self._scratch_shape = (row_of_parts[2], blocks, row_of_parts[1], block)
        prepare = functools.cache(self._prepare_share)
        self._groups = [
            Group(slice(first, first + together), *prepare(min(together, images - first), share))
            for first, share in itertools.product(range(0, images, together), shares)
        ]

    def forward(
        self, stream: int | None, workspace: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None
    ) -> None:
        planes = self._layout.views(workspace)
        rstd = planes.get("rstd")
        source, bad = self._centred(stream, logits)
        if rstd is not None:
            self._rstd(stream, rstd, source)
        outputs = planes["losses"], planes["own_logit"], planes.get("top"), planes["total"]
        self._forward(stream, *outputs, source, bad, labels, rstd, weight)

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        workspace: Tensor,
        saved: None,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Each tile writes its parts to a scratch; then each pixel's parts are gathered in a fixed order."""
        out = launch.allocate(self._shape, logits.dtype, self._device, self._out_strides)
        scratch = launch.allocate(self._scratch_shape, torch.float32, self._device)
        source, bad = self._centred(stream, logits)
        planes = self._layout.views(workspace)
        for images, parts, gather in self._groups:
            names = "own_logit", "top", "total", "rstd"
            own, top, total, rstd = (planes[name][images] if name in planes else None for name in names)
            inputs = source[images], bad[images], labels[images], rstd, weight
            parts(stream, scratch, gradient[images], own, top, total, *inputs)
            gather(stream, out[images], scratch, source[images])
        return out

    def _centred(self, stream: int | None, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits less their mean over the classes, `[N, C, h, w]`, and where they are not finite, `[N, h, w]`."""
        images, _classes, height, width = self._shape
        source = launch.allocate(self._shape, torch.float32, self._device)
        bad = launch.allocate((images, height, width), torch.int8, self._device)
        self._centre(stream, source, bad, logits)
        return source, bad

    def _prepare_centre(self, images: int) -> Launch:
        size, lanes = self._size, configs.LOW_RESOLUTION_LANES
        pixels = images * size.h * size.w
        arguments = {
            "h": size.h,
            "w": size.w,
            "C": size.C,
            "pixels": pixels,
            "strides": Strides(*self._like.stride()),
            "NORMALIZE": self._options.normalize,
            "BLOCK": lanes,
        }
        return Launch(centre_fwd_kernel, triton.cdiv(pixels, lanes), lanes, arguments)

    def _prepare_rstd(self, images: int) -> Launch:
        cells, lanes = images * self._size.h * self._size.w, configs.LOW_RESOLUTION_LANES
        arguments = {
            "cells_y": Cells(self._down.start, self._down.fraction),
            "cells_x": Cells(self._across.start, self._across.fraction),
            "size": self._size,
            "cells": cells,
            "most_y": self._down.most_pixels,
            "most_x": self._across.most_pixels,
            "eps": self._options.eps,
            "BLOCK": lanes,
        }
        return Launch(interpolated_rstd_kernel, triton.cdiv(cells, lanes), lanes, arguments)

    def _prepare_share(self, images: int, share: "Share") -> tuple[Launch, Launch]:
        size, down, across = self._size, self._down, self._across
        pixels, lanes = images * share.rows * size.w, configs.LOW_RESOLUTION_LANES
        parts = self._launch(upsampled_loss_bwd_kernel, "upsampled_loss_bwd", images, share)
        arguments = {
            "axis_y": PartsAxis(down.first, down.base, share.first_tile, share.tiles, down.span),
            "axis_x": PartsAxis(across.first, across.base, 0, len(across.base), across.span),
            "first_row": share.first_row,
            "rows": share.rows,
            "h": size.h,
            "w": size.w,
            "C": size.C,
            "pixels": pixels,
            "out_strides": self._out_strides,
            "S": GatherSpec(
                NORMALIZE=self._options.normalize,
                TILES=self._tiles_together(self._spec("upsampled_loss_bwd")),
                MOST_Y=down.most_tiles,
                MOST_X=across.most_tiles,
                BLOCK=lanes,
            ),
        }
        return parts, Launch(gather_bwd_kernel, triton.cdiv(pixels, lanes), lanes, arguments)

    def _launch(self, kernel: Any, family: str, images: int, share: "Share") -> Launch:
        band = Band(share.first_tile, share.tiles, images * share.tiles * len(self._across.base))
        spec = self._spec(family)
        arguments = {**self._loss, "band": band, "S": spec}
        return Launch(kernel, triton.cdiv(band.tiles, self._tiles_together(spec)), spec.LANES, arguments)

    def _spec(self, family: str) -> FootprintSpec:
        options, down, across = self._options, self._down, self._across
        config = configs.find(configs.Setting.of(family, self._like, self._size.H, options), self._device)
        return FootprintSpec(
            KH=options.kernel_height,
            KW=options.kernel_width,
            TY=down.tile,
            TX=across.tile,
            ROWS=down.lane,
            COLUMNS=across.lane,
            SY=down.span,
            SX=across.span,
            LANES=config["lanes"],
            NORMALIZE=options.normalize,
            BY_WEIGHT=options.average == "weight",
            HAS_INTERIOR=options.kernel_height * options.kernel_width * down.span * across.span <= configs.MOST_CODE,
        )

    @staticmethod
    def _tiles_together(spec: FootprintSpec) -> int:
        """Tiles of a program."""
        return spec.LANES // (spec.TY // spec.ROWS * (spec.TX // spec.COLUMNS))


class Share(NamedTuple):
    """Rows of the logits whose gradient is made at once, and the rows of tiles that it needs."""

    first_row: int
    rows: int
    first_tile: int
    tiles: int


def _shares(down: Tables, affordable: int) -> Iterator[Share]:
    """Shares of at most `affordable` rows of tiles, or as many as one row of logits needs."""
    row = 0
    while row < len(down.tiles):
        first_tile, needed = down.tiles[row]
        end = max(needed, min(first_tile + affordable, len(down.base)))
        last_row = bisect.bisect_right(down.tiles, end, key=lambda tiles: tiles[1])
        yield Share(row, last_row - row, first_tile, end - first_tile)
        row = last_row
