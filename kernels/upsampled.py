# mypy: ignore-errors
"""The loss of low-resolution logits and full-resolution labels: no upsampled logits, only a block of a tile at a time.

The products over a footprint run on the tensor cores where PRECISION is "bf16x6": six products of bfloat16 parts make
one of float32 accuracy.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.footprint import (
    Axis,
    footprint_pixels,
    join_lanes,
    locate_footprint,
    mix,
    sum_lanes,
    tile_neighbourhood,
    tile_pixels,
    unpack,
    variance_slopes,
)
from lal_triton.kernels.pixel_loss import (
    gather_class_weights,
    nll_and_one_minus_p,
    pixel_loss,
    pixel_loss_slope,
    sum_class_weights,
)
from lal_triton.kernels.window import INVALID, LOG2E, VOID, is_inside, lane_offset, load_own_labels


class Tile(NamedTuple):
    """A tile of pixels `[P]`, and what it mixes of its footprint `[points]`, for all classes."""

    row: Any
    col: Any
    plane: Any  # where the pixels are in a plane
    inside: Any  # which exist
    own: Any  # their labels
    labels: Any  # pointers to these
    mixture: Any  # A `[P, points]`
    own_merged: Any  # f_y
    source: Any  # the source from the footprint's first row on
    points: Any  # of the footprint, from there
    spoiled: Any  # the pixels that mix a logit that is not finite
    holes: Any  # the points that those mix


class Lanes(NamedTuple):
    """The lanes that share the pixels of a tile."""

    near: Any
    axis_y: Any
    axis_x: Any
    inverse: Any  # 1 / xi


@triton.jit
def load_source(source, points, c, C):
    """`[points, classes]` of a footprint."""
    return tl.load(source + (points[:, None] * C + c[None, :]), mask=c[None, :] < C, other=0.0)


@triton.jit
def own_logit(source, y, x, size, mixture, own, SY: tl.constexpr, SX: tl.constexpr):
    """A lane's part of f_y, 0 where there is no label; its points begin at low-resolution pixel (y, x)."""
    total = tl.zeros_like(own).to(tl.float32)
    weights = unpack(mixture)
    for i in tl.static_range(SY):
        line = source + own + tl.minimum(i, size.h - 1 - y) * (size.w * size.C)
        part = tl.zeros_like(total)  # fewer roundings than in one long sum
        for j in tl.static_range(SX):
            logit = tl.load(line + tl.minimum(x + j, size.w - 1) * size.C, mask=own >= 0, other=0.0)
            part += weights[i * SX + j] * logit
        total += part
    return total


@triton.jit
def find_spoiled(bad, mixture):
    """The pixels that mix a point with a logit that is not finite, and the points that those mix."""
    point = tl.arange(0, mixture.shape[1])
    bits = tl.sum((bad > 0).to(tl.int64) << point, 0)
    spoiled = tl.zeros([mixture.shape[0]], tl.int1)
    holes = tl.zeros([mixture.shape[1]], tl.int1)
    if bits != 0:
        mixed = (mixture != 0).to(tl.int32)
        spoiled = tl.max(mixed * (bits >> point & 1).to(tl.int32)[None, :], 1) > 0
        holes = tl.max(tl.where(spoiled[:, None], mixed, 0), 0) > 0
    return spoiled, holes


@triton.jit
def mix_tile(tile, first_tile, tiles_y, source, bad, labels, rstd, window, tables_y, tables_x, size, S: tl.constexpr):
    """The tile, and its lanes."""
    G: tl.constexpr = S.SY * S.SX // 16
    LX: tl.constexpr = S.SX // G
    n, tile_y, tile_x, base_y, base_x = locate_footprint(
        tile, first_tile, tiles_y, size.W, tables_y.base, tables_x.base, S
    )
    near = tile_neighbourhood(labels, rstd, window, n, tile_y, tile_x, size.H, size.W, S, G)
    lane_x = base_x + tl.arange(0, S.TY * S.TX * G) % G * LX
    axis_y = Axis(tables_y.lower, tables_y.fraction, base_y, size.H)
    axis_x = Axis(tables_x.lower, tables_x.fraction, lane_x, size.W)
    parts, inverse = mix(near, axis_y, axis_x, S, LX)
    mixture = join_lanes(parts, S.SY, G)
    line = (n * size.h + base_y) * size.w
    source += line * size.C
    own_merged = sum_lanes(own_logit(source, base_y, lane_x, size, parts, near.own, S.SY, LX), G)
    points = footprint_pixels(base_y, base_x, size.h, size.w, S.SY, S.SX)
    spoiled, holes = find_spoiled(tl.load(bad + line + points), mixture)

    row, col = tile_pixels(tile_y, tile_x, S, 1)
    plane = n * size.H * size.W + lane_offset(row, col, size.W, 1)
    labels += plane
    own = load_own_labels(labels, row, col, size.H, size.W, 1)[0]
    inside = is_inside(row, col, size.H, size.W)
    pixels = Tile(row, col, plane, inside, own, labels, mixture, own_merged, source, points, spoiled, holes)
    return pixels, Lanes(near, axis_y, axis_x, inverse)


@triton.jit
def upsampled_loss_fwd_kernel(
    losses_ptr,
    top_ptr,
    total_ptr,
    source_ptr,
    bad_ptr,
    labels_ptr,
    rstd_ptr,
    class_weight_ptr,
    window_ptr,
    tables_y,
    tables_x,
    size,
    options,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """The planes `losses`, `total` and `top` of a tile.

    1. Build A, the weights of the footprint's low-resolution pixels in each merged pixel, and f_y.
    2. Over blocks of classes: the product of A and the source, and the sums of exp(f_c - top).
    3. Each pixel's loss, 0 at void and between centres, NaN at labels out of range.
    """
    C = size.C
    tile, _lanes = mix_tile(
        tl.program_id(0),
        0,
        tl.cdiv(size.H, S.TY),
        source_ptr,
        bad_ptr,
        labels_ptr,
        rstd_ptr,
        window_ptr,
        tables_y,
        tables_x,
        size,
        S,
    )
    highest = tile.own_merged
    others = tl.zeros_like(tile.own_merged)
    smoothing_sum = tl.zeros_like(tile.own_merged)
    for c0 in range(0, C, S.CLASSES):
        c = c0 + tl.arange(0, S.CLASSES)
        merged = tl.dot(tile.mixture, load_source(tile.source, tile.points, c, C), input_precision=S.PRECISION)
        difference = merged - tile.own_merged[:, None]
        # without the own class, whose term is known, what is small keeps its digits
        counts = (c[None, :] < C) & (c[None, :] != tile.own[:, None])
        if L.BOUNDED:
            others += tl.sum(tl.where(counts, tl.exp2(difference * LOG2E), 0.0), 1)
        else:
            # of `merged` itself: the backward has the same bits, and large logits leave no others
            now = tl.maximum(highest, tl.max(tl.where(counts, merged, float("-inf")), 1))
            others = others * tl.exp(highest - now)
            others += tl.sum(tl.where(counts, tl.exp(merged - now[:, None]), 0.0), 1)
            highest = now
        if L.HAS_SMOOTHING:
            if L.HAS_CLASS_WEIGHT:
                difference *= tl.load(class_weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
            smoothing_sum += tl.sum(tl.where(counts, difference, 0.0), 1)

    tl.store(total_ptr + tile.plane, others, mask=tile.inside)
    if not L.BOUNDED:
        tl.store(top_ptr + tile.plane, highest, mask=tile.inside)
    # loaded anew, the labels have one pixel to a lane, and so has what follows from them
    row = tile.row
    col = tile.col
    own = load_own_labels(tile.labels, row, col, size.H, size.W, 1)[0]
    others = tl.where(own >= 0, others, 0.0)
    nll, one_minus_p = nll_and_one_minus_p(highest - tile.own_merged, others)
    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    own_weight = gather_class_weights(class_weight_ptr, (own,), L)[0]
    loss = pixel_loss(nll, one_minus_p, smoothing_sum, own_weight, weight_sum, options, C, L)
    loss = tl.where((own == INVALID) | tile.spoiled, float("nan"), loss)
    centre = (own != VOID) & (row % options.centre_stride == 0) & (col % options.centre_stride == 0)
    tl.store(losses_ptr + tile.plane, tl.where(centre, loss, 0.0), mask=tile.inside)


@triton.jit
def upsampled_loss_bwd_kernel(
    parts_ptr,
    gradient_ptr,
    top_ptr,
    total_ptr,
    source_ptr,
    bad_ptr,
    labels_ptr,
    rstd_ptr,
    class_weight_ptr,
    window_ptr,
    tables_y,
    tables_x,
    size,
    band,
    options,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """Of a band of tiles the parts `[tiles, span_y span_x, C]`: A^T G; with NORMALIZE four more, the planes of T.

    1. Build A, as the forward.
    2. From `total` and `top` that the forward left: the slope of each pixel's loss.
    3. Over blocks of classes: G from the product of A and the source, and A^T G.
    4. With NORMALIZE: T from the gradient of A.
    """
    C = size.C
    tile_index = tl.program_id(0)
    tile, lanes = mix_tile(
        tile_index,
        band.first_tile,
        band.tiles_y,
        source_ptr,
        bad_ptr,
        labels_ptr,
        rstd_ptr,
        window_ptr,
        tables_y,
        tables_x,
        size,
        S,
    )
    own = tile.own
    others = tl.load(total_ptr + tile.plane, mask=tile.inside, other=0.0)
    highest = tile.own_merged
    max_minus_own = tl.zeros_like(highest)
    if not L.BOUNDED:
        highest = tl.load(top_ptr + tile.plane, mask=tile.inside, other=0.0)
        max_minus_own = highest - tile.own_merged
    nll, one_minus_p = nll_and_one_minus_p(max_minus_own, others)
    taken = (own >= 0) & (tile.row % options.centre_stride == 0) & (tile.col % options.centre_stride == 0)
    coefficient, own_gradient, uniform = pixel_loss_slope(
        tl.load(gradient_ptr + tile.plane, mask=taken & ~tile.spoiled, other=0.0),
        nll,
        one_minus_p,
        gather_class_weights(class_weight_ptr, (own,), L)[0],
        sum_class_weights(class_weight_ptr, C, L),
        options,
        C,
        L,
    )
    factor = tl.div_rn(coefficient, tl.exp(-max_minus_own) + others)

    pitch = C
    if S.NORMALIZE:
        pitch = C + 4
    SX: tl.constexpr = S.SX
    point = tl.arange(0, S.SY * SX)
    kept = (point // SX < band.span_y) & (point % SX < band.span_x)
    parts_ptr += tile_index.to(tl.int64) * band.span_y * band.span_x * pitch
    slope = tl.zeros_like(tile.mixture)
    for c0 in range(0, C, S.CLASSES):
        c = c0 + tl.arange(0, S.CLASSES)
        x = load_source(tile.source, tile.points, c, C)
        merged = tl.dot(tile.mixture, x, input_precision=S.PRECISION) - highest[:, None]
        g = factor[:, None] * (tl.exp2(merged * LOG2E) if L.BOUNDED else tl.exp(merged))
        if L.HAS_SMOOTHING:
            if L.HAS_CLASS_WEIGHT:
                g -= uniform[:, None] * tl.load(class_weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
            else:
                g -= uniform[:, None]
        g = tl.where(c[None, :] == own[:, None], own_gradient[:, None], g)
        if S.NORMALIZE:
            slope += tl.dot(g, tl.trans(x), input_precision=S.PRECISION)
        part = tl.trans(tl.dot(tl.trans(g), tile.mixture, input_precision=S.PRECISION))
        part = tl.where(tile.holes[:, None], float("nan"), part)
        tl.store(
            parts_ptr + (point // SX * band.span_x + point % SX)[:, None] * pitch + c[None, :],
            part,
            mask=kept[:, None] & (c[None, :] < C),
        )
    if S.NORMALIZE:
        G: tl.constexpr = S.SY * SX // 16
        slopes = variance_slopes(slope, lanes.inverse / C, lanes.near, lanes.axis_y, lanes.axis_x, S, SX // G, G)
        k = tl.arange(0, 4 * S.SY * SX)
        row = k // (2 * SX)
        col = k % (2 * SX)
        kept = (row // 2 < band.span_y) & (col // 2 < band.span_x)
        at = (row // 2 * band.span_x + col // 2) * pitch + C + row % 2 * 2 + col % 2
        tl.store(parts_ptr + at, slopes, mask=kept)
