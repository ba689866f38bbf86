"""From tensors and options to kernel launches, where the labels are finer than the logits."""

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
from lal_triton.kernels import arguments, configs
from lal_triton.kernels.launching import Launch
from lal_triton.kernels.layouts import State
from lal_triton.kernels.low_resolution import centre_fwd_kernel, gather_bwd_kernel, interpolated_rstd_kernel
from lal_triton.kernels.upsampled import upsampled_loss_bwd_kernel, upsampled_loss_fwd_kernel
from lal_triton.options import LocalLoss


class Tables(NamedTuple):
    """What the kernels read of an axis: `bilinear.Axis`, and where to look for a low-resolution pixel."""

    lower: Tensor
    fraction: Tensor
    base: Tensor
    start: Tensor  # [low + 1], the first full-resolution pixel of each cell
    first: Tensor  # [low], the first tile whose frame holds it
    tile: int
    span: int
    most_pixels: int  # of a cell
    most_tiles: int  # whose frames hold the same low-resolution pixel
    tiles: tuple[tuple[int, int], ...]  # [low], which tiles those of a low-resolution pixel and the one before it are

    @classmethod
    def of(cls, axis: Axis, device: torch.device) -> "Tables":
        low = torch.arange(axis.low + 1)
        start = torch.searchsorted(axis.lower, low)
        first = torch.searchsorted(axis.base + axis.span, low[:-1], right=True)
        last = torch.searchsorted(axis.base, low[:-1], right=True)
        earlier = torch.cat([first[:1], first[:-1]])
        return cls(
            lower=axis.lower.int().to(device),
            fraction=axis.fraction.float().to(device),
            base=axis.base.int().to(device),
            start=start.int().to(device),
            first=first.int().to(device),
            tile=axis.tile,
            span=axis.span,
            most_pixels=int(start.diff().max()),
            most_tiles=int((last - first).max()),
            tiles=tuple(zip(earlier.tolist(), last.tolist(), strict=True)),
        )


@functools.lru_cache(maxsize=256)
def _tables(
    low: tuple[int, int], high: tuple[int, int], align_corners: bool, kernel: tuple[int, int], device: torch.device
) -> tuple[Tables, Tables]:
    """Of both axes, for the first of the tiles whose frame has few enough slots; made on the host, once."""
    cpu = torch.device("cpu")
    for tile in configs.TILES:
        down, across = (
            Axis.of(size, full, align_corners, extent // 2, cpu, pixels)
            for size, full, extent, pixels in zip(low, high, kernel, tile, strict=True)
        )
        if configs.padded_span(down.span) * configs.padded_span(across.span) <= configs.MOST_SLOTS:
            return Tables.of(down, device), Tables.of(across, device)
    raise NotImplementedError(f"logits are {low} and target {high}, expected a larger ratio between them")


class Upsampled:
    """From low-resolution logits and labels the map of losses, and from its gradient that of the logits.

    Each tile writes what it has for the gradient of its frame, for as many rows of tiles at once as a scratch holds;
    what they give a low-resolution pixel is then gathered in a fixed order.
    """

    def __init__(self, logits: Tensor, labels: Tensor, weighted: bool, options: LocalLoss, state: State) -> None:
        self._options, self._device, self._state = options, logits.device, state
        images, classes, height, width = logits.shape
        low, high = (height, width), tuple(labels.shape[1:])
        self._low, self._classes = low, classes
        kernel = options.kernel_height, options.kernel_width
        down, across = self._tables = _tables(low, high, options.align_corners, kernel, logits.device)
        self._constants = {
            **arguments.cost_arguments(weighted, options, classes),
            **self._mixture_arguments(high),
        }
        self._settings = {
            family: configs.find(configs.Setting.of(family, logits, high[0], options), logits.device)
            for family in ("upsampled_loss_fwd", "upsampled_loss_bwd")
        }
        self._low_resolution = {
            "h": height,
            "w": width,
            "C": classes,
            "BLOCK": configs.LOW_RESOLUTION_BLOCK,
            "CLASSES": configs.LOW_RESOLUTION_CLASSES,
            "num_warps": arguments.num_warps(configs.LOW_RESOLUTION_LANES, logits.device),
        }
        self._tensors = {
            "window": arguments.window_table(tuple(options.window), logits.device),
            "lower_y": down.lower,
            "fraction_y": down.fraction,
            "base_y": down.base,
            "lower_x": across.lower,
            "fraction_x": across.fraction,
            "base_x": across.base,
        }
        self._launches: dict[Any, Launch] = {}
        blocks = triton.cdiv(height * width, configs.LOW_RESOLUTION_BLOCK)
        self._centre = Launch(
            centre_fwd_kernel,
            images * blocks,
            {**self._low_resolution, **arguments.strides("stride", logits, "nchw"), "NORMALIZE": options.normalize},
        )
        self._rstd = Launch(
            interpolated_rstd_kernel,
            triton.cdiv(images * height * width, configs.CELLS),
            {
                "h": height,
                "w": width,
                "C": classes,
                "BLOCK": configs.CELLS,
                "num_warps": arguments.num_warps(configs.CELLS, logits.device),
                "start_y": down.start,
                "fraction_y": down.fraction,
                "start_x": across.start,
                "fraction_x": across.fraction,
                "H": high[0],
                "W": high[1],
                "cells": images * height * width,
                "most_y": down.most_pixels,
                "most_x": across.most_pixels,
                "eps": options.eps,
            },
        )
        self._forward = Launch(
            upsampled_loss_fwd_kernel,
            images * len(down.base) * len(across.base),
            {**self._constants, **self._tensors, **self._block_arguments("upsampled_loss_fwd")},
        )
        row_shape = (len(across.base), down.span * across.span, classes + 4 * options.normalize)
        affordable = configs.SCRATCH_BYTES // (4 * math.prod(row_shape))
        self._group = min(images, max(1, affordable // len(down.base)))
        self._bands = list(_bands(down, affordable))
        self._scratch_shape = (self._group * max(band.tiles for band in self._bands), *row_shape)

    def forward(self, stream: int | None, state: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        planes = self._state.planes(state)
        rstd = planes.get("rstd")
        source, bad = self._centred(stream, logits)
        if rstd is not None:
            self._rstd(stream, rstd, source)
        self._forward(stream, planes["losses"], planes.get("top"), planes["total"], source, bad, labels, rstd, weight)

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        state: Tensor,
        kept: None,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        out = arguments.empty_like(logits)
        scratch = arguments.empty(self._scratch_shape, torch.float32, self._device)
        source, bad = self._centred(stream, logits)
        planes = self._state.planes(state)
        for first, band in itertools.product(range(0, len(logits), self._group), self._bands):
            part = slice(first, first + self._group)
            top, total, rstd = (planes[name][part] if name in planes else None for name in ("top", "total", "rstd"))
            backward, gather = self._backward(out[part], band)
            backward(stream, scratch, gradient[part], top, total, source[part], bad[part], labels[part], rstd, weight)
            gather(stream, out[part], scratch, source[part])
        return out

    def _centred(self, stream: int | None, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits less their mean over the classes, `[N, h, w, C]`, and where they are not finite, `[N, h, w]`."""
        shape = (len(logits), *self._low)
        source = arguments.empty((*shape, self._classes), torch.float32, self._device)
        bad = arguments.empty(shape, torch.int8, self._device)
        self._centre(stream, source, bad, logits)
        return source, bad

    def _backward(self, out: Tensor, band: "Band") -> tuple[Launch, Launch]:
        key = len(out), band
        if key not in self._launches:
            down, across = self._tables
            backward = Launch(
                upsampled_loss_bwd_kernel,
                len(out) * band.tiles * len(across.base),
                {
                    **self._constants,
                    **self._tensors,
                    **self._block_arguments("upsampled_loss_bwd"),
                    "first_tile": band.first_tile,
                    "tiles_y": band.tiles,
                    "span_y": down.span,
                    "span_x": across.span,
                },
            )
            gather = Launch(
                gather_bwd_kernel,
                len(out) * triton.cdiv(band.rows * self._low[1], configs.GATHER_BLOCK),
                {
                    **self._low_resolution,
                    "BLOCK": configs.GATHER_BLOCK,
                    **arguments.strides("out", out, "nchw"),
                    "first_y": down.first,
                    "base_y": down.base,
                    "begin_y": band.first_tile,
                    "tiles_y": band.tiles,
                    "span_y": down.span,
                    "first_x": across.first,
                    "base_x": across.base,
                    "begin_x": 0,
                    "tiles_x": len(across.base),
                    "span_x": across.span,
                    "MOST_Y": down.most_tiles,
                    "MOST_X": across.most_tiles,
                    "first_row": band.first_row,
                    "rows": band.rows,
                    "NORMALIZE": self._options.normalize,
                },
            )
            self._launches[key] = backward, gather
        return self._launches[key]

    def _mixture_arguments(self, high: tuple[int, ...]) -> dict[str, Any]:
        options = self._options
        down, across = self._tables
        return {
            "h": self._low[0],
            "w": self._low[1],
            "H": high[0],
            "W": high[1],
            "C": self._classes,
            "KH": options.kernel_height,
            "KW": options.kernel_width,
            "TY": down.tile,
            "TX": across.tile,
            "SY": configs.padded_span(down.span),
            "SX": configs.padded_span(across.span),
            "NORMALIZE": options.normalize,
            "BY_WEIGHT": options.average == "weight",
            "PRECISION": arguments.dot_precision(self._device),
        }

    def _block_arguments(self, family: str) -> dict[str, int]:
        config = self._settings[family]
        lanes = config["lanes_per_slot"] * self._constants["SY"] * self._constants["SX"]
        return {
            "CLASSES": config["classes"],
            "num_warps": arguments.num_warps(lanes, self._device),
            "num_stages": config["num_stages"],
        }


class Band(NamedTuple):
    """Rows of the logits whose gradient is made at once, and the rows of tiles that it needs."""

    first_row: int
    rows: int
    first_tile: int
    tiles: int


def _bands(down: Tables, affordable: int) -> Iterator[Band]:
    """Bands of at most `affordable` rows of tiles, or as many as one row of logits needs."""
    row = 0
    while row < len(down.tiles):
        first_tile, needed = down.tiles[row]
        end = max(needed, min(first_tile + affordable, len(down.base)))
        last_row = bisect.bisect_right(down.tiles, end, key=lambda tiles: tiles[1])
        yield Band(row, last_row - row, first_tile, end - first_tile)
        row = last_row
