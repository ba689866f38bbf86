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


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss) -> tuple[Tensor, Tensor]:
    """The losses `[N, H, W]` as `reference.local_loss`, and the planes that the backward needs (`_named_planes`)."""
    losses = arguments.empty(labels.shape, torch.float32, logits.device)
    planes = configs.state_planes(options, logits.shape[1], upsampled=True)
    state = arguments.empty((planes, *losses.shape), torch.float32, logits.device)
    tables = _tables_of(logits, labels, options)
    with arguments.on_device(logits):
        source, bad = _centre(logits)
        if options.normalize:
            _interpolated_rstd(state[0], source, tables, options)
        upsampled_loss_fwd_kernel[(len(labels) * len(tables[0].base) * len(tables[1].base),)](
            losses,
            source=source,
            bad=bad,
            labels=labels.contiguous(),
            **_named_planes(state, options),
            **_mixture_arguments(source, labels, tables, options),
            **arguments.cost_arguments(weight, options, logits.shape[1]),
            CLASSES=configs.CLASSES_FORWARD,
        )
    return losses, state


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, state: Tensor, options: LocalLoss
) -> Tensor:
    """The gradient of the logits from that of the losses.

    Each tile writes what it has for its frame; what it gives a low-resolution pixel is then gathered in a fixed order.
    """
    out = arguments.empty_like(logits)
    images, classes = logits.shape[:2]
    labels = labels.contiguous()
    tables = _tables_of(logits, labels, options)
    down, across = tables
    row_shape = (len(across.base), down.span * across.span, classes + 4 * options.normalize)
    affordable = configs.SCRATCH_BYTES // (4 * math.prod(row_shape))
    group = min(images, max(1, affordable // len(down.base)))
    bands = list(_bands(down, affordable))
    most_rows = max(band.tiles for band in bands)
    with arguments.on_device(logits):
        scratch = arguments.empty((group * most_rows, *row_shape), torch.float32, logits.device)
        source, bad = _centre(logits)
        constant = {
            "span_y": down.span,
            "span_x": across.span,
            **arguments.strides("gradient", gradient, "nhw"),
            **_mixture_arguments(source, labels, tables, options),
            **arguments.cost_arguments(weight, options, classes),
            "CLASSES": configs.CLASSES_BACKWARD,
        }
        for first, band in itertools.product(range(0, images, group), bands):
            part = slice(first, first + group)
            upsampled_loss_bwd_kernel[(len(labels[part]) * band.tiles * len(across.base),)](
                scratch,
                gradient[part],
                source=source[part],
                bad=bad[part],
                labels=labels[part],
                **_named_planes(state[:, part], options),
                first_tile=band.first_tile,
                tiles_y=band.tiles,
                **constant,
            )
            _gather(out[part], scratch, source[part], band, tables, options)
    return out


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


def _centre(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits less their mean over the classes, `[N, h, w, C]`, and where they are not finite, `[N, h, w]`."""
    images, classes, height, width = logits.shape
    source = arguments.empty((images, height, width, classes), torch.float32, logits.device)
    bad = arguments.empty((images, height, width), torch.int8, logits.device)
    centre_fwd_kernel[(images * triton.cdiv(height * width, configs.LOW_RESOLUTION_BLOCK),)](
        source,
        bad,
        logits,
        height,
        width,
        classes,
        *logits.stride(),
        **_low_resolution_arguments(logits),
    )
    return source, bad


def _interpolated_rstd(rstd: Tensor, source: Tensor, tables: tuple[Tables, Tables], options: LocalLoss) -> None:
    images, height, width, classes = source.shape
    down, across = tables
    interpolated_rstd_kernel[(triton.cdiv(images * height * width, configs.LOW_RESOLUTION_BLOCK),)](
        rstd,
        source,
        down.start,
        down.fraction,
        across.start,
        across.fraction,
        height,
        width,
        *rstd.shape[1:],
        classes,
        images * height * width,
        down.most_pixels,
        across.most_pixels,
        options.eps,
        **_low_resolution_arguments(source),
    )


def _gather(
    out: Tensor,
    parts: Tensor,
    source: Tensor,
    band: Band,
    tables: tuple[Tables, Tables],
    options: LocalLoss,
) -> None:
    images, height, width, classes = source.shape
    down, across = tables
    gather_bwd_kernel[(images * triton.cdiv(band.rows * width, configs.LOW_RESOLUTION_BLOCK),)](
        out,
        parts,
        source,
        *(down.first, down.base, band.first_tile, band.tiles, down.span, down.most_tiles),
        *(across.first, across.base, 0, len(across.base), across.span, across.most_tiles),
        band.first_row,
        band.rows,
        height,
        width,
        classes,
        *out.stride(),
        NORMALIZE=options.normalize,
        **_low_resolution_arguments(source),
    )


def _tables_of(logits: Tensor, labels: Tensor, options: LocalLoss) -> tuple[Tables, Tables]:
    kernel = options.kernel_height, options.kernel_width
    low, high = logits.shape[2:], labels.shape[1:]
    return _tables(tuple(low), tuple(high), options.align_corners, kernel, logits.device)


def _mixture_arguments(
    source: Tensor, labels: Tensor, tables: tuple[Tables, Tables], options: LocalLoss
) -> dict[str, Any]:
    _, low_height, low_width, classes = source.shape
    down, across = tables
    slots_y, slots_x = configs.padded_span(down.span), configs.padded_span(across.span)
    return {
        "window": arguments.window_table(tuple(options.window), source.device),
        "lower_y": down.lower,
        "fraction_y": down.fraction,
        "base_y": down.base,
        "lower_x": across.lower,
        "fraction_x": across.fraction,
        "base_x": across.base,
        "h": low_height,
        "w": low_width,
        "H": labels.shape[1],
        "W": labels.shape[2],
        "C": classes,
        "KH": options.kernel_height,
        "KW": options.kernel_width,
        "TY": down.tile,
        "TX": across.tile,
        "SY": slots_y,
        "SX": slots_x,
        "NORMALIZE": options.normalize,
        "BY_WEIGHT": options.average == "weight",
        "PRECISION": arguments.dot_precision(source.device),
        "num_warps": arguments.num_warps(configs.LANES_PER_SLOT * slots_y * slots_x, source.device),
        "num_stages": 1,  # what is loaded ahead takes registers that the products need
    }


def _low_resolution_arguments(tensor: Tensor) -> dict[str, int]:
    return {
        "BLOCK": configs.LOW_RESOLUTION_BLOCK,
        "CLASSES": configs.LOW_RESOLUTION_CLASSES,
        "num_warps": arguments.num_warps(configs.LOW_RESOLUTION_LANES, tensor.device),
    }


def _named_planes(state: Tensor, options: LocalLoss) -> dict[str, Tensor | None]:
    """The interpolated score's 1 / std, the highest f_c, and the sum over c != y of exp(f_c - top)."""
    rstd = state[0] if options.normalize else None
    top = state[-2] if len(state) - options.normalize == 2 else None
    return {"rstd": rstd, "top": top, "total": state[-1]}
