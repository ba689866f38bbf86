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
from lal_triton.kernels.host.cells import cell_axis
from lal_triton.kernels.host.launch import Launch
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.kernels.low_resolution import centre_fwd_kernel, gather_bwd_kernel, interpolated_rstd_kernel
from lal_triton.kernels.records import (
    AxisTables,
    Band,
    CellSpec,
    FootprintSpec,
    GatherSpec,
    PartsAxis,
    Strides,
    UpsampledSize,
)
from lal_triton.kernels.upsampled import upsampled_loss_bwd_kernel, upsampled_loss_fwd_kernel
from lal_triton.options import LocalLoss


class Tables(NamedTuple):
    """What the kernels read of an axis: the interpolation, its tiles, and where to look for a low-resolution pixel."""

    lower: Tensor
    fraction: Tensor
    base: Tensor  # [tiles], the first low-resolution pixel of each footprint
    first: Tensor  # [low], the first tile whose windows reach it
    tile: int  # pixels
    lead: int  # pixels of the first tile that lie before the image
    lane: int  # pixels of a tile's lane
    span: int  # low-resolution pixels of a footprint
    most_tiles: int  # whose windows reach the same low-resolution pixel
    tiles: tuple[tuple[int, int], ...]  # [low], the first of these tiles, and the one after the last

    @classmethod
    def of(cls, axis: Axis, reach: int, tile: int, lane: int, device: torch.device) -> "Tables":
        """With the tiles where the windows of each reach the fewest low-resolution pixels."""
        lead = min(range(tile), key=lambda lead: _span(*_reached(axis, reach, tile, lead)))
        base, last = _reached(axis, reach, tile, lead)
        span = _span(base, last)
        low = torch.arange(axis.low)
        first, end = torch.searchsorted(last, low), torch.searchsorted(base, low, right=True)
        return cls(
            lower=axis.lower.int().to(device),
            fraction=axis.fraction.float().to(device),
            base=base.clamp(max=axis.low - span).int().to(device),  # footprints lie inside the image
            first=first.int().to(device),
            tile=tile,
            lead=lead,
            lane=lane,
            span=span,
            most_tiles=int((end - first).max()),
            tiles=tuple(zip(first.tolist(), end.tolist(), strict=True)),
        )

    def for_kernels(self, copies: int) -> AxisTables:
        lower, fraction = (table.repeat_interleave(copies) for table in (self.lower, self.fraction))
        return AxisTables(lower, fraction, self.base, self.lead)


def _reached(axis: Axis, reach: int, tile: int, lead: int) -> tuple[Tensor, Tensor]:
    """The first and the last low-resolution pixel that the windows of each tile reach."""
    pixel = torch.arange(-lead, axis.high, tile)
    base = axis.lower[(pixel - reach).clamp(min=0)]
    last = axis.lower[(pixel + tile - 1 + reach).clamp(max=axis.high - 1)]
    return base, (last + 1).clamp(max=axis.low - 1)


def _span(base: Tensor, last: Tensor) -> int:
    return int((last - base).max()) + 1


@functools.lru_cache(maxsize=256)
def _tables(
    low: tuple[int, int], high: tuple[int, int], align_corners: bool, kernel: tuple[int, int], device: torch.device
) -> tuple[Tables, Tables]:
    """Of both axes, for the first of the tiles whose footprint is small enough; made on the host, once."""
    axes = [Axis.of(size, full, align_corners) for size, full in zip(low, high, strict=True)]
    for tile, lane in configs.TILES:
        down, across = (
            Tables.of(axis, extent // 2, pixels, own, device)
            for axis, extent, pixels, own in zip(axes, kernel, tile, lane, strict=True)
        )
        if configs.footprint_fits((down.span, across.span), lane, kernel):
            return down, across
    raise NotImplementedError(f"logits are {low} and target {high}, expected a larger ratio between them")


class Group(NamedTuple):
    """A share of the backward: so many images, and rows of tiles, as the scratch holds the parts of."""

    images: slice
    parts: Launch  # of each tile, for the gradient of its footprint
    coupling: Launch | None  # the parts of each low-resolution pixel, for how a standard score couples it with others
    gather: Launch  # those for the gradient of the logits


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
            "tables_y": self._down.for_kernels(copies=self._across.tile // self._across.lane),
            "tables_x": self._across.for_kernels(copies=1),
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
        normalize = self._options.normalize
        images, _classes, height, width = self._shape
        coupling = launch.allocate((images, 4, height, width), torch.float32, self._device) if normalize else None
        for share, parts, couple, gather in self._groups:
            names = "own_logit", "top", "total", "rstd"
            own, top, total, rstd = (planes[name][share] if name in planes else None for name in names)
            inputs = source[share], bad[share], labels[share], rstd, weight
            parts(stream, scratch, gradient[share], own, top, total, *inputs)
            if couple is not None and coupling is not None:
                couple(stream, coupling[share], scratch, None, None)
                gather(stream, out[share], scratch, coupling[share], source[share])
            else:
                gather(stream, out[share], scratch, None, None)
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
        size, lanes = self._size, configs.LOW_RESOLUTION_LANES
        (axis_y, pixels_y), (axis_x, pixels_x) = (
            cell_axis(low, high, self._options.align_corners, self._device)
            for low, high in ((size.h, size.H), (size.w, size.W))
        )
        cells = images * (size.h + 1) * (size.w + 1)
        arguments = {
            "axis_y": axis_y,
            "axis_x": axis_x,
            "size": size,
            "cells": cells,
            "eps": self._options.eps,
            "S": CellSpec(
                PY=pixels_y,
                PX=pixels_x,
                QY=1,
                QX=1,
                LANES=lanes,
                WIDE=size.h * size.w > configs.MOST_OFFSET,
            ),
        }
        return Launch(interpolated_rstd_kernel, triton.cdiv(cells, lanes), lanes, arguments)

    def _prepare_share(self, images: int, share: "Share") -> tuple[Launch, Launch | None, Launch]:
        size, normalize = self._size, self._options.normalize
        parts = self._launch(upsampled_loss_bwd_kernel, "upsampled_loss_bwd", images, share)
        planes = Strides(4 * size.h * size.w, size.h * size.w, size.w, 1)
        coupling = self._prepare_gather(images, share, size.C, 4, planes, normalize=False) if normalize else None
        gather = self._prepare_gather(images, share, 0, size.C, self._out_strides, normalize)
        return parts, coupling, gather

    def _prepare_gather(
        self, images: int, share: "Share", first_channel: int, channels: int, out_strides: Strides, normalize: bool
    ) -> Launch:
        size, down, across = self._size, self._down, self._across
        pixels, lanes = images * share.rows * size.w, configs.LOW_RESOLUTION_LANES
        arguments = {
            "axis_y": PartsAxis(down.first, down.base, share.first_tile, share.tiles, down.span),
            "axis_x": PartsAxis(across.first, across.base, 0, len(across.base), across.span),
            "first_row": share.first_row,
            "rows": share.rows,
            "h": size.h,
            "w": size.w,
            "first_channel": first_channel,
            "channels": channels,
            "pixels": pixels,
            "out_strides": out_strides,
            "S": GatherSpec(
                NORMALIZE=normalize,
                TILES=self._tiles_together(self._spec("upsampled_loss_bwd")),
                MOST_Y=down.most_tiles,
                MOST_X=across.most_tiles,
                BLOCK=lanes,
            ),
        }
        return Launch(gather_bwd_kernel, triton.cdiv(pixels, lanes), lanes, arguments)

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
