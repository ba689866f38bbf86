# mypy: ignore-errors
# ruff: noqa: RUF005
"""The loss of low-resolution logits and full-resolution labels: no upsampled logits, only those of a lane at a time."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.footprint import (
    Axis,
    add_scaled,
    dot,
    is_interior,
    join_bits,
    lanes_across,
    lanes_of_tile,
    load_neighbourhood,
    locate_lanes,
    mix,
    sum_lanes,
    sum_pixels,
    variance_slopes,
    zeros,
)
from lal_triton.kernels.pixel_loss import (
    at_centres,
    class_weight,
    gather_class_weights,
    nll_and_one_minus_p_from,
    pixel_loss,
    pixel_loss_slope,
    sum_class_weights,
)
from lal_triton.kernels.window import INVALID, LN2, LOG2E, VOID, is_inside, lane_offset


class Lane(NamedTuple):
    """The lanes' pixels, and what they mix of their footprints, for all classes."""

    near: Any
    axis_y: Any
    axis_x: Any
    plane: Any  # where the pixels are in a plane
    inside: Any  # which exist
    interior: Any  # whether all windows lie inside the image
    mixture: Any  # A, with BOUNDED in units of ln 2
    inverse: Any  # 1 / xi
    source: Any  # pointers to the footprints' first low-resolution pixels
    spoiled: Any  # the pixels that mix a logit that is not finite
    holes: Any  # the bits of the low-resolution pixels that those mix


@triton.jit
def load_footprint(source, w, S: tl.constexpr):
    """One class of a footprint."""
    SPAN: tl.constexpr = S.SY * S.SX
    values = ()
    for i in tl.static_range(SPAN):
        values = values + (tl.load(source + i // S.SX * w + i % S.SX),)
    return values


@triton.jit
def find_spoiled(bad, mixture):
    """The pixels that mix a point with a logit that is not finite, and the bits of the points that those mix."""
    some = bad[0]
    for i in tl.static_range(1, len(bad)):
        some = some | bad[i]
    spoiled = tl.zeros(mixture[0].shape, tl.int1)
    holes = tl.zeros(some.shape, tl.int64)
    if tl.max(tl.max(tl.max(some.to(tl.int32), 2), 1), 0) != 0:
        for i in tl.static_range(len(bad)):
            spoiled = spoiled | ((mixture[i] != 0) & (bad[i] > 0))
        for i in tl.static_range(len(bad)):
            mixed = (spoiled & (mixture[i] != 0)).to(tl.int64)
            holes |= tl.max(tl.max(mixed, 0, keep_dims=True), 1, keep_dims=True) << i
    return spoiled, holes


@triton.jit
def mix_lanes(band, source, bad, labels, rstd, window, tables_y, tables_x, size, S: tl.constexpr, L: tl.constexpr):
    place = locate_lanes(band, size, tables_y, tables_x, S)
    near = load_neighbourhood(labels, rstd, window, place, size, S)
    copy = tl.arange(0, S.LANES)[None, None, :] % lanes_across(S)
    axis_y = Axis(tables_y.lower + copy, tables_y.fraction + copy, place.y, size.H)
    axis_x = Axis(tables_x.lower, tables_x.fraction, place.x, size.W)
    interior = is_interior(near, S)
    mixture, inverse = mix(interior, near, axis_y, axis_x, LOG2E if L.BOUNDED else 1.0, S)
    area = size.h.to(tl.int64) * size.w
    first = lane_offset(place.y, place.x, size.w, 1)
    source += place.n * size.C * area + first
    spoiled, holes = find_spoiled(load_footprint(bad + place.n * area + first, size.w, S), mixture)
    plane = place.n * size.H * size.W + lane_offset(place.row, place.col, size.W, 1)
    inside = is_inside(place.row, place.col, size.H, size.W)
    return Lane(near, axis_y, axis_x, plane, inside, interior, mixture, inverse, source, spoiled, holes)


@triton.jit
def add_exp(highest, others, merged, counts, L: tl.constexpr):
    """The running maximum, 0 with BOUNDED, and the sum of exp(f_c - maximum) over the classes that count."""
    if L.BOUNDED:
        others += tl.where(counts, tl.exp2(merged), 0.0)
    else:
        # of `merged` itself: the backward has the same bits, and large logits leave no others
        now = tl.maximum(highest, merged)
        others = others * tl.exp(highest - now) + tl.where(counts, tl.exp(merged - now), 0.0)
        highest = now
    return highest, others


@triton.jit
def top_minus_own(top, own_merged, L: tl.constexpr):
    difference = top - own_merged
    return difference * LN2 if L.BOUNDED else difference


@triton.jit
def upsampled_loss_fwd_kernel(
    losses_ptr,
    own_ptr,
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
    """The planes `losses`, `own_logit`, `total` and `top` of the lanes' pixels.

    With BOUNDED f is in units of ln 2, and top is 0, for which there is no plane.

    1. Build A, the weights of the footprint's low-resolution pixels in each merged pixel.
    2. Over the classes: merge, f_y, and the sums of exp(f_c - top).
    3. Each pixel's loss, 0 at void and between centres, NaN at labels out of range.
    """
    C = size.C
    lane = mix_lanes(band, source_ptr, bad_ptr, labels_ptr, rstd_ptr, window_ptr, tables_y, tables_x, size, S, L)
    own = lane.near.own
    source = lane.source
    area = size.h.to(tl.int64) * size.w
    own_merged = tl.zeros(lane.inverse.shape, tl.float32)
    others = own_merged
    smoothing_sum = own_merged
    highest = own_merged if L.BOUNDED else own_merged + float("-inf")
    for c in range(C):
        merged = dot(lane.mixture, load_footprint(source, size.w, S))
        source += area
        counts = own != c  # without the own class, whose term is known, what is small keeps its digits
        own_merged = tl.where(counts, own_merged, merged)
        highest, others = add_exp(highest, others, merged, counts, L)
        if L.HAS_SMOOTHING:
            smoothing_sum += class_weight(class_weight_ptr, c, L) * merged

    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    if L.HAS_SMOOTHING:
        smoothing_sum -= weight_sum * own_merged
        if L.BOUNDED:
            smoothing_sum *= LN2
    tl.store(own_ptr + lane.plane, own_merged, mask=lane.inside)
    tl.store(total_ptr + lane.plane, others, mask=lane.inside)
    if not L.BOUNDED:
        tl.store(top_ptr + lane.plane, highest, mask=lane.inside)
    others = tl.where(own >= 0, others, 0.0)
    nll, one_minus_p = nll_and_one_minus_p_from(top_minus_own(highest, own_merged, L), others)
    own_weight = gather_class_weights(class_weight_ptr, (own,), L)[0]
    loss = pixel_loss(nll, one_minus_p, smoothing_sum, own_weight, weight_sum, options, C, L)
    loss = tl.where((own == INVALID) | lane.spoiled, float("nan"), loss)
    centre = at_centres(own != VOID, lane.near.row, lane.near.col, options.centre_stride, L.STRIDED)
    loss = tl.where(centre, loss, 0.0)
    tl.store(losses_ptr + lane.plane, loss, mask=lane.inside)


@triton.jit
def load_slopes(gradient, own_merged, top, total, class_weight_ptr, lane, options, C, L: tl.constexpr):
    """The maximum, the factor of exp(f_c - maximum), and the slopes by f_y and by all f_c."""
    own = lane.near.own
    others = tl.load(total + lane.plane, mask=lane.inside, other=0.0)
    own_merged = tl.load(own_merged + lane.plane, mask=lane.inside, other=0.0)
    highest = tl.zeros_like(own_merged)
    if not L.BOUNDED:
        highest = tl.load(top + lane.plane, mask=lane.inside, other=0.0)
    difference = top_minus_own(highest, own_merged, L)
    nll, one_minus_p = nll_and_one_minus_p_from(difference, others)
    taken = at_centres(own >= 0, lane.near.row, lane.near.col, options.centre_stride, L.STRIDED)
    coefficient, own_slope, uniform = pixel_loss_slope(
        tl.load(gradient + lane.plane, mask=taken & ~lane.spoiled, other=0.0),
        nll,
        one_minus_p,
        gather_class_weights(class_weight_ptr, (own,), L)[0],
        sum_class_weights(class_weight_ptr, C, L),
        options,
        C,
        L,
    )
    factor = tl.div_rn(coefficient, tl.exp(-difference) + others)
    if L.BOUNDED:  # by f / ln 2
        factor *= LN2
        own_slope *= LN2
        uniform *= LN2
    return highest, factor, own_slope, uniform


@triton.jit
def class_slope(c, merged, highest, factor, own, own_slope, uniform, class_weight_ptr, L: tl.constexpr):
    """G of a pixel and a class."""
    g = factor * (tl.exp2(merged) if L.BOUNDED else tl.exp(merged - highest))
    if L.HAS_SMOOTHING:
        g -= uniform * class_weight(class_weight_ptr, c, L)
    return tl.where(own == c, own_slope, g)


@triton.jit
def upsampled_loss_bwd_kernel(
    parts_ptr,
    gradient_ptr,
    own_ptr,
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
    """Of a band of tiles the parts `[C, programs, SY SX, tiles]`: A^T G; with NORMALIZE four more, the planes of T.

    1. Build A, as the forward.
    2. From the planes that the forward left: the slope of each pixel's loss.
    3. Over the classes: G, and A^T G.
    4. With NORMALIZE: T from the gradient of A.
    """
    C = size.C
    lane = mix_lanes(band, source_ptr, bad_ptr, labels_ptr, rstd_ptr, window_ptr, tables_y, tables_x, size, S, L)
    near = lane.near
    mixture = lane.mixture
    highest, factor, own_slope, uniform = load_slopes(
        gradient_ptr, own_ptr, top_ptr, total_ptr, class_weight_ptr, lane, options, C, L
    )
    G: tl.constexpr = lanes_of_tile(S)
    TILES: tl.constexpr = S.LANES // G
    SPAN: tl.constexpr = S.SY * S.SX
    number = tl.arange(0, S.LANES)[None, None, :]
    first = number % G == 0
    pitch = tl.num_programs(0).to(tl.int64) * (SPAN * TILES)
    parts_ptr += tl.program_id(0).to(tl.int64) * (SPAN * TILES) + number // G
    source = lane.source
    area = size.h.to(tl.int64) * size.w
    slope = zeros(highest, SPAN)
    part_ptr = parts_ptr
    for c in range(C):
        x = load_footprint(source, size.w, S)
        source += area
        merged = dot(mixture, x)
        g = class_slope(c, merged, highest, factor, near.own, own_slope, uniform, class_weight_ptr, L)
        if S.NORMALIZE:
            slope = add_scaled(slope, g, x)
        for i in tl.static_range(SPAN):
            tl.store(part_ptr + i * TILES, sum_lanes(sum_pixels(g * mixture[i]), S), mask=first)
        part_ptr += pitch
    if tl.max(tl.max(tl.max(tl.where(lane.holes != 0, 1, 0), 2), 1), 0) != 0:
        spoil_parts(parts_ptr, pitch, C, tl.where(first, join_bits(lane.holes, S), 0), S)
    if S.NORMALIZE:
        unit = LOG2E / C if L.BOUNDED else 1.0 / C
        planes = variance_slopes(lane.interior, slope, lane.inverse * unit, near, lane.axis_y, lane.axis_x, S)
        store_planes(parts_ptr + C * pitch, pitch, planes, first, S)


@triton.jit
def spoil_parts(parts_ptr, pitch, C, holes, S: tl.constexpr):
    """NaN at the low-resolution pixels that a pixel mixes whose loss is NaN for a logit that is not finite."""
    SPAN: tl.constexpr = S.SY * S.SX
    TILES: tl.constexpr = S.LANES // lanes_of_tile(S)
    nan = tl.full(holes.shape, float("nan"), tl.float32)
    for _ in range(C):
        for i in tl.static_range(SPAN):
            tl.store(parts_ptr + i * TILES, nan, mask=(holes >> i & 1) != 0)
        parts_ptr += pitch


@triton.jit
def store_planes(planes_ptr, pitch, slopes, mask, S: tl.constexpr):
    """The four planes of T from its sums over each tile's lanes; those of the last row and column are 0."""
    TILES: tl.constexpr = S.LANES // lanes_of_tile(S)
    NY: tl.constexpr = 2 * S.SY - 1
    NX: tl.constexpr = 2 * S.SX - 1
    for y in tl.static_range(NY + 1):
        for x in tl.static_range(NX + 1):
            value = tl.zeros_like(slopes[0])
            if y < NY and x < NX:
                value = sum_lanes(slopes[y * NX + x], S)
            tl.store(planes_ptr + (y % 2 * 2 + x % 2) * pitch + (y // 2 * S.SX + x // 2) * TILES, value, mask=mask)
