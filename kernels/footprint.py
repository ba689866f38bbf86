# mypy: ignore-errors
# ruff: noqa: RUF005
"""Tiles of full-resolution pixels, and the footprint of low-resolution ones that they mix.

A merged pixel is f(p) = sum_i A(p, i) x(i) with A(p, i) = 1/xi(p) sum_q M(p, q) rstd(q) B(q, i), for the masked window
M and the bilinear weights B. A does not depend on the class: it is built once, and lives in registers through the loop
over the classes.

The pixels of a tile share a footprint of SY x SX low-resolution ones, which lies inside the image. A lane owns ROWS x
COLUMNS pixels of a tile, and as many lanes as that takes, one beside the other, own the tile. Blocks have the shape
`[ROWS, COLUMNS, LANES]`, or 1 in place of ROWS or COLUMNS: one lane holds all of a column. What there is of each
low-resolution pixel of a footprint is a tuple of such blocks.

An axis's interpolation comes in three tables: of each pixel the `lower` low-resolution one and the `fraction`, the
weight of the next, and of each tile the `base`, where its footprint begins. The first tile may begin before the image.
A row's elements stand as often as a tile has lanes beside each other, for these to load neighbouring elements: up to
Triton 3.6 the compiler else spreads a column over lanes, and moves each block that it loads through shared memory.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import bit_or, scaled
from lal_triton.kernels.records import FootprintSpec
from lal_triton.kernels.window import VOID, Neighbourhood, is_inside, like_no_other


class Axis(NamedTuple):
    """An axis's interpolation, as a tile's footprint sees it."""

    lower: Any  # pointers to the tables
    fraction: Any
    base: Any  # where the footprint begins
    size: Any  # of the labels


class Place(NamedTuple):
    """Where the lanes are."""

    n: Any  # the image
    row: Any  # of their pixels, `[ROWS, 1, LANES]`; below the image where there is no tile
    col: Any  # `[1, COLUMNS, LANES]`
    y: Any  # where the tile's footprint begins
    x: Any


# Triton 3.5's interpreter makes a plain tuple of a record that a constexpr_function is called with.
@triton.constexpr_function
def lanes_across(S):
    spec = FootprintSpec(*S)
    return spec.TX // spec.COLUMNS


@triton.constexpr_function
def lanes_of_tile(S):
    spec = FootprintSpec(*S)
    return spec.TY // spec.ROWS * (spec.TX // spec.COLUMNS)


@triton.jit
def locate_lanes(band, size, tables_y, tables_x, S: tl.constexpr):
    """Tiles are numbered through the rows of them in the band, of each image."""
    G: tl.constexpr = lanes_of_tile(S)
    AX: tl.constexpr = lanes_across(S)
    lane = tl.arange(0, S.LANES)[None, None, :]
    number = tl.program_id(0) * (S.LANES // G) + lane // G
    tile = tl.minimum(number, band.tiles - 1)
    across = tl.cdiv(size.W + tables_x.lead, S.TX)
    n = (tile // across // band.tiles_y).to(tl.int64)
    y = band.first_tile + tile // across % band.tiles_y
    x = tile % across
    row = y * S.TY - tables_y.lead + lane % G // AX * S.ROWS + tl.arange(0, S.ROWS)[:, None, None]
    col = x * S.TX - tables_x.lead + lane % AX + tl.arange(0, S.COLUMNS)[None, :, None] * AX
    row = tl.max_constancy(tl.where(number < band.tiles, row, size.H), [1, 1, AX])
    col = tl.max_contiguous(col, [1, 1, AX])
    return Place(n, row, col, tl.load(tables_y.base + y), tl.load(tables_x.base + x))


@triton.jit
def load_neighbourhood(labels, rstd, window, place, size, S: tl.constexpr):
    """With pointers to the image, not to each pixel, which would take registers through the loop over the classes."""
    image = place.n * size.H * size.W
    labels += image
    if S.NORMALIZE:
        rstd += image
    else:
        rstd = labels  # a function returns no None
    inside = is_inside(place.row, place.col, size.H, size.W)
    own = tl.load(labels + (place.row * size.W + place.col), mask=inside, other=VOID)
    return Neighbourhood(labels, rstd, window, own, place.row, place.col, size.H, size.W)


@triton.jit
def is_interior(near, S: tl.constexpr):
    """Whether all windows of the program's pixels lie inside the image."""
    first = is_inside(near.row - S.KH // 2, near.col - S.KW // 2, near.H, near.W)
    last = is_inside(near.row + S.KH // 2, near.col + S.KW // 2, near.H, near.W)
    return tl.min(tl.min(tl.min((first & last).to(tl.int32), 0), 0), 0) != 0


@triton.jit
def bilinear_weights(axis, pixel, N: tl.constexpr, COPIES: tl.constexpr, INTERIOR: tl.constexpr):
    """A pixel's bilinear weights along an axis, one value to each of N low-resolution pixels.

    COPIES: how often each element stands in the axis's tables.
    """
    mask = None if INTERIOR else (pixel >= 0) & (pixel < axis.size)
    lower = tl.load(axis.lower + pixel * COPIES, mask=mask) - axis.base
    upper = tl.load(axis.fraction + pixel * COPIES, mask=mask, other=None if INTERIOR else 0.0)
    weights = ()
    for k in tl.static_range(N):
        weights = weights + (tl.where(lower == k, 1.0 - upper, tl.where(lower == k - 1, upper, 0.0)),)
    return weights


@triton.jit
def column_weights(axis, col, S: tl.constexpr, INTERIOR: tl.constexpr):
    """Those of a window's columns, which all its rows share."""
    KW: tl.constexpr = S.KW
    weights = ()
    for j in tl.static_range(KW):
        weights = weights + (bilinear_weights(axis, col + (j - KW // 2), S.SX, 1, INTERIOR),)
    return weights


@triton.jit
def load_row(near, i, xi, S: tl.constexpr, INTERIOR: tl.constexpr):
    """Of a window's row i: the weights w, rstd where the label is the own one or else 0, and xi with what it adds."""
    KW: tl.constexpr = S.KW
    own = like_no_other((near.own,))[0]
    step = i - S.KH // 2
    pixel = (near.row + step) * near.W + near.col
    weights = ()
    scales = ()
    for j in tl.static_range(KW):
        mask = None if INTERIOR else is_inside(near.row + step, near.col + (j - KW // 2), near.H, near.W)
        same = tl.load(near.labels + pixel + (j - KW // 2), mask=mask, other=None if INTERIOR else VOID) == own
        scale = tl.full(own.shape, 1.0, tl.float32)
        if S.NORMALIZE:
            scale = tl.load(near.scale + pixel + (j - KW // 2), mask=mask, other=None if INTERIOR else 0.0)
        w = tl.load(near.window + i * KW + j)
        xi = tl.where(same, xi + (w if S.BY_WEIGHT else 1.0), xi)
        weights = weights + (w,)
        scales = scales + (tl.where(same, scale, 0.0),)
    return weights, scales, xi


@triton.jit
def zeros(like, N: tl.constexpr):
    values = ()
    for _ in tl.static_range(N):
        values = values + (tl.zeros(like.shape, tl.float32),)
    return values


@triton.jit
def dot(left, right):
    total = left[0] * right[0]
    for k in tl.static_range(1, len(left)):
        total += left[k] * right[k]
    return total


@triton.jit
def add_scaled(total, factor, values):
    new = ()
    for k in tl.static_range(len(total)):
        new = new + (total[k] + factor * values[k],)
    return new


@triton.jit
def add_outer(total, left, right, N: tl.constexpr):
    """Adds the products of each value of `left` with each of the N of `right`.

    N keeps functions apart: up to Triton 3.6 they share one where the values of all tuples together are as many.
    """
    new = ()
    for k in tl.static_range(len(total)):
        new = new + (total[k] + left[k // N] * right[k % N],)
    return new


@triton.jit
def mix_window(near, axis_y, axis_x, S: tl.constexpr, INTERIOR: tl.constexpr):
    """xi A, and xi."""
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    COPIES: tl.constexpr = lanes_across(S)
    across = column_weights(axis_x, near.col, S, INTERIOR)
    mixture = zeros(near.own, S.SY * S.SX)
    xi = tl.zeros(near.own.shape, tl.float32)
    for i in range(KH):
        weights, scales, xi = load_row(near, i, xi, S, INTERIOR)
        along = zeros(near.own, S.SX)
        for j in tl.static_range(KW):
            along = add_scaled(along, weights[j] * scales[j], across[j])
        down = bilinear_weights(axis_y, near.row + (i - KH // 2), S.SY, COPIES, INTERIOR)
        mixture = add_outer(mixture, down, along, S.SX)
    return mixture, xi


@triton.jit
def mix(interior, near, axis_y, axis_x, unit, S: tl.constexpr):
    """A times `unit`, and 1 / xi; both are 0 at pixels without a label."""
    if not S.HAS_INTERIOR:
        mixture, xi = mix_window(near, axis_y, axis_x, S, False)
    elif interior:
        mixture, xi = mix_window(near, axis_y, axis_x, S, True)
    else:
        mixture, xi = mix_window(near, axis_y, axis_x, S, False)
    inverse = tl.where(xi > 0, tl.div_rn(1.0, xi), 0.0)
    return scaled(mixture, inverse * unit), inverse


@triton.jit
def add_pairs(total, left, right):
    """Adds `pair_products` of two."""
    new = ()
    for k in tl.static_range(len(total)):
        new = new + (total[k] + left[k // 2] * right[(k + 1) // 2],)
    return new


@triton.jit
def pair_products(weights, N: tl.constexpr):
    """Of bilinear weights a: a_0 a_0, a_0 a_1, a_1 a_1, ..."""
    products = ()
    for k in tl.static_range(N):
        products = products + (weights[k // 2] * weights[(k + 1) // 2],)
    return products


@triton.jit
def window_slopes(slope, near, axis_y, axis_x, S: tl.constexpr, INTERIOR: tl.constexpr):
    """`variance_slopes` from A's gradient over xi."""
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    COPIES: tl.constexpr = lanes_across(S)
    SY: tl.constexpr = S.SY
    NY: tl.constexpr = 2 * S.SY - 1
    NX: tl.constexpr = 2 * S.SX - 1
    across = column_weights(axis_x, near.col, S, INTERIOR)
    none = tl.zeros(near.own.shape, tl.float32)
    planes = zeros(axis_y.base, NY * NX)
    for i in range(KH):
        weights, scales, _xi = load_row(near, i, none, S, INTERIOR)
        down = bilinear_weights(axis_y, near.row + (i - KH // 2), SY, COPIES, INTERIOR)
        along = zeros(near.own, S.SX)
        for y in tl.static_range(SY):
            along = add_scaled(along, down[y], slope[y * S.SX : (y + 1) * S.SX])
        sums = zeros(near.own, NX)
        for j in tl.static_range(KW):
            value = dot(along, across[j]) * (weights[j] * scales[j] * scales[j] * scales[j])
            sums = add_pairs(sums, scaled(across[j], value), across[j])
        planes = add_pixels(planes, pair_products(down, NY), sum_columns(sums), NX)
    return planes


@triton.jit
def variance_slopes(interior, slope, inverse, near, axis_y, axis_x, S: tl.constexpr):
    """The slopes of the loss by the products x(i) x(j) that the variance of a lane's pixels is made of.

    From A's gradient, `slope`: T(i, j) = sum over p and q of M(p, q) / xi(p) rstd(q)^3 (sum_k B(q, k) slope(p, k))
    B(q, i) B(q, j). T comes as `[2 SY - 1, 2 SX - 1]`, flattened: in odd rows j is below i, in odd columns right of it;
    both stand for both diagonals of a cell.
    """
    slope = scaled(slope, inverse)
    if not S.HAS_INTERIOR:
        planes = window_slopes(slope, near, axis_y, axis_x, S, False)
    elif interior:
        planes = window_slopes(slope, near, axis_y, axis_x, S, True)
    else:
        planes = window_slopes(slope, near, axis_y, axis_x, S, False)
    return planes


@triton.jit
def sum_pixels(values):
    return tl.sum(tl.sum(values, 0, keep_dims=True), 1, keep_dims=True)


@triton.jit
def sum_columns(values):
    sums = ()
    for k in tl.static_range(len(values)):
        sums = sums + (tl.sum(values[k], 1, keep_dims=True),)
    return sums


@triton.jit
def add_pixels(total, left, right, N: tl.constexpr):
    """`add_outer`, summed over the rows."""
    new = ()
    for k in tl.static_range(len(total)):
        new = new + (total[k] + tl.sum(left[k // N] * right[k % N], 0, keep_dims=True),)
    return new


@triton.jit
def repeat(values, N: tl.constexpr):
    """Each of them N times, one beside the other."""
    M: tl.constexpr = values.shape[0]
    return tl.reshape(tl.broadcast_to(values[:, None], [M, N]), [1, 1, M * N])


@triton.jit
def sum_lanes(values, S: tl.constexpr):
    """The sum over the lanes of a tile, in each of them."""
    G: tl.constexpr = lanes_of_tile(S)
    if G > 1:
        values = repeat(tl.sum(tl.reshape(values, [S.LANES // G, G]), 1), G)
    return values


@triton.jit
def join_bits(bits, S: tl.constexpr):
    """Those that some lane of a tile has, in each of them."""
    G: tl.constexpr = lanes_of_tile(S)
    if G > 1:
        bits = repeat(tl.reduce(tl.reshape(bits, [S.LANES // G, G]), 1, bit_or), G)
    return bits
