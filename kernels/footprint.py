# mypy: ignore-errors
# ruff: noqa: RUF005
"""Tiles of full-resolution pixels, and the footprint of low-resolution ones that they mix.

A merged pixel is f(p) = sum_i A(p, i) x(i) with A(p, i) = 1/xi(p) sum_q M(p, q) rstd(q) B(q, i), for the masked window
M and the bilinear weights B. A does not depend on the class: it is built once for a tile of P pixels and its footprint
of SY x SX low-resolution ones, and what has a class dimension is a product of [P, SY SX] by [SY SX, C].

An axis's interpolation comes in three tables: of each pixel the `lower` low-resolution one and the `fraction`, the
weight of the next, and of each tile the `base`, where its footprint begins.

Values for each low-resolution pixel of a footprint are tuples with one value to a lane, as in `window`: as blocks they
would go through shared memory at every step. Where a footprint has more than 16 pixels, a pixel of the tile has G lanes
that share its columns.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.window import Neighbourhood, is_inside, lane_offset, load_own_labels


class Axis(NamedTuple):
    """An axis's interpolation, as a lane's footprint sees it."""

    lower: Any  # pointers to the tables
    fraction: Any
    base: Any  # where the footprint begins
    size: Any  # of the labels


@triton.jit
def locate_footprint(tile, first, down, W, base_y, base_x, S: tl.constexpr):
    """The image of a tile, its row and column among the tiles, and where its footprint begins.

    Tiles are numbered through `down` rows of them, from row `first`, of each image.
    """
    across = tl.cdiv(W, S.TX)
    n = (tile // across // down).to(tl.int64)
    y = first + tile // across % down
    x = tile % across
    return n, y, x, tl.load(base_y + y), tl.load(base_x + x)


@triton.jit
def tile_pixels(y, x, S: tl.constexpr, G: tl.constexpr):
    """Rows and columns of a tile's pixels, each G times."""
    pixel = tl.arange(0, S.TY * S.TX * G) // G
    return y * S.TY + pixel // S.TX, x * S.TX + pixel % S.TX


@triton.jit
def tile_neighbourhood(labels, rstd, window, n, y, x, H, W, S: tl.constexpr, G: tl.constexpr):
    row, col = tile_pixels(y, x, S, G)
    pixel = n * H * W + lane_offset(row, col, W, 1)
    labels += pixel
    if S.NORMALIZE:
        rstd += pixel
    else:
        rstd = labels  # a function returns no None
    return Neighbourhood(labels, rstd, window, load_own_labels(labels, row, col, H, W, 1)[0], row, col, H, W)


@triton.jit
def join_lanes(block, rows: tl.constexpr, G: tl.constexpr):
    """From `[P G, rows x columns]`, columns of each lane, to `[P, rows x G columns]`."""
    P: tl.constexpr = block.shape[0] // G
    S: tl.constexpr = block.shape[1] * G
    return tl.reshape(tl.permute(tl.reshape(block, [P, G, rows, S // rows // G]), (0, 2, 1, 3)), [P, S])


@triton.jit
def split_lanes(block, rows: tl.constexpr, G: tl.constexpr):
    """From `[P, rows x G columns]` to `[P G, rows x columns]`."""
    P: tl.constexpr = block.shape[0]
    S: tl.constexpr = block.shape[1]
    return tl.reshape(tl.permute(tl.reshape(block, [P, rows, G, S // rows // G]), (0, 2, 1, 3)), [P * G, S // G])


@triton.jit
def sum_lanes(values, G: tl.constexpr):
    """`[P]` of `[P G]`."""
    if G > 1:
        values = tl.sum(tl.reshape(values, [values.shape[0] // G, G]), 1)
    return values


@triton.jit
def repeat_lanes(values, G: tl.constexpr):
    """`[P G]` of `[P]`."""
    if G > 1:
        values = tl.reshape(tl.broadcast_to(values[:, None], [values.shape[0], G]), [values.shape[0] * G])
    return values


@triton.jit
def footprint_pixels(y, x, h, w, SY: tl.constexpr, SX: tl.constexpr):
    """A footprint's low-resolution pixels, counted from the first one of row y.

    Those beyond the image repeat its last, at a weight of 0.
    """
    k = tl.arange(0, SY * SX)
    return tl.minimum(k // SX, h - 1 - y) * w + tl.minimum(x + k % SX, w - 1)


@triton.jit
def bilinear_weights(axis, pixel, N: tl.constexpr):
    """A pixel's bilinear weights along an axis, one value to each of N low-resolution pixels."""
    inside = (pixel >= 0) & (pixel < axis.size)
    lower = tl.load(axis.lower + pixel, mask=inside, other=0) - axis.base
    upper = tl.load(axis.fraction + pixel, mask=inside, other=0.0)
    weights = ()
    for k in tl.static_range(N):
        weights = weights + (tl.where(lower == k, 1.0 - upper, tl.where(lower == k - 1, upper, 0.0)),)
    return weights


@triton.jit
def column_weights(axis, col, S: tl.constexpr, N: tl.constexpr):
    """Those of a window's columns, which all its rows share."""
    KW: tl.constexpr = S.KW
    weights = ()
    for j in tl.static_range(KW):
        weights = weights + (bilinear_weights(axis, col + (j - KW // 2), N),)
    return weights


@triton.jit
def load_row(near, i, xi, S: tl.constexpr):
    """Of a window's row i: the weights w, rstd where the label is the own one or else 0, and xi with what it adds."""
    KW: tl.constexpr = S.KW
    step = i - S.KH // 2
    line = step * near.W
    weights = ()
    scales = ()
    for j in tl.static_range(KW):
        inside = is_inside(near.row + step, near.col + (j - KW // 2), near.H, near.W) & (near.own >= 0)
        same = inside & (tl.load(near.labels + line + (j - KW // 2), mask=inside) == near.own)
        scale = tl.full(near.own.shape, 1.0, tl.float32)
        if S.NORMALIZE:
            scale = tl.load(near.scale + line + (j - KW // 2), mask=inside)
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
def add(left, right):
    total = ()
    for k in tl.static_range(len(left)):
        total = total + (left[k] + right[k],)
    return total


@triton.jit
def outer(left, right, N: tl.constexpr):
    """The products of each value of `left` with each of the N of `right`.

    N keeps functions apart: up to Triton 3.6 they share one where the values of all tuples together are as many.
    """
    products = ()
    for k in tl.static_range(len(left) * N):
        products = products + (left[k // N] * right[k % N],)
    return products


@triton.jit
def pack(values, first: tl.constexpr = 0, step: tl.constexpr = 1):
    """Every step-th of a power of two of values `[P]`, from `first`, as one block `[P, 2, 2, ...]`."""
    if step == len(values):
        block = values[first]
    else:
        block = tl.join(pack(values, first, 2 * step), pack(values, first + step, 2 * step))
    return block


@triton.jit
def unpack(block):
    """The columns of `[P, S]`."""
    P: tl.constexpr = block.shape[0]
    S: tl.constexpr = block.shape[1]
    values = ()
    if S == 1:
        values = (tl.reshape(block, [P]),)
    else:
        even, odd = tl.split(tl.reshape(block, [P, S // 2, 2]))
        even = unpack(even)
        odd = unpack(odd)
        for k in tl.static_range(S // 2):
            values = values + (even[k], odd[k])
    return values


@triton.jit
def mix(near, axis_y, axis_x, S: tl.constexpr, SX: tl.constexpr):
    """A `[P G, SY SX]`, of the SX columns of a lane, and 1 / xi; both are 0 at pixels without a label."""
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    SY: tl.constexpr = S.SY
    own = near.own
    across = column_weights(axis_x, near.col, S, SX)
    mixture = tl.zeros([own.shape[0], SY * SX], tl.float32)
    xi = tl.zeros(own.shape, tl.float32)
    for i in range(KH):
        weights, scales, xi = load_row(near, i, xi, S)
        along = zeros(own, SX)
        for j in tl.static_range(KW):
            along = add(along, outer((weights[j] * scales[j],), across[j], SX))
        down = bilinear_weights(axis_y, near.row + (i - KH // 2), SY)
        # packed here: from a tt.join outside the loop, Triton takes the products' operands for 4-bit numbers' halves
        mixture += tl.reshape(pack(outer(down, along, SX)), mixture.shape)
    inverse = tl.where(xi > 0, tl.div_rn(1.0, xi), 0.0)
    return mixture * inverse[:, None], inverse


@triton.jit
def pair_products(weights, N: tl.constexpr):
    """Of bilinear weights a: a_0 a_0, a_0 a_1, a_1 a_1, ..."""
    products = ()
    for k in tl.static_range(N):
        products = products + (weights[k // 2] * weights[(k + 1) // 2],)
    return products


@triton.jit
def variance_slopes(slope, inverse, near, axis_y, axis_x, S: tl.constexpr, SX: tl.constexpr, G: tl.constexpr):
    """The slopes of the loss by the products x(i) x(j) that the variance of the tile's pixels is made of.

    From A's gradient, `slope` `[P, SY G SX]`: T(i, j) = sum over p and q of M(p, q) / xi(p) rstd(q)^3
    (sum_k B(q, k) slope(p, k)) B(q, i) B(q, j). T comes as `[SY, 2, G SX, 2]`, flattened: j is below i or not, and
    right of it or not; both stand for both diagonals of a cell.
    """
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    SY: tl.constexpr = S.SY
    own = near.own
    NY: tl.constexpr = 2 * SY - 1
    # where there is a next lane, this one's last column makes products with its first
    NX: tl.constexpr = 2 * SX - 1 if G == 1 else 2 * SX
    slope = unpack(split_lanes(slope, SY, G) * inverse[:, None])
    across = column_weights(axis_x, near.col, S, NX // 2 + 1)
    planes = zeros(own, NY * NX)
    for i in range(KH):
        weights, scales, _xi = load_row(near, i, inverse, S)
        down = bilinear_weights(axis_y, near.row + (i - KH // 2), SY)
        along = zeros(own, SX)
        for y in tl.static_range(SY):
            along = add(along, outer((down[y],), slope[y * SX : (y + 1) * SX], SX))
        sums = zeros(own, NX)
        for j in tl.static_range(KW):
            value = repeat_lanes(sum_lanes(dot(along, across[j]), G), G)
            value *= weights[j] * scales[j] * scales[j] * scales[j]
            sums = add(sums, outer((value,), pair_products(across[j], NX), NX))
        planes = add(planes, outer(pair_products(down, NY), sums, NX))
    padded = ()
    for k in tl.static_range(4 * SY * SX):
        if k // (2 * SX) < NY and k % (2 * SX) < NX:
            padded = padded + (planes[k // (2 * SX) * NX + k % (2 * SX)],)
        else:
            padded = padded + (tl.zeros(own.shape, tl.float32),)
    block = join_lanes(tl.reshape(pack(padded), [own.shape[0], 4 * SY * SX]), 2 * SY, G)
    # a sum over the pixels without shuffles
    ones = tl.full([1, block.shape[0]], 1.0, tl.float32)
    return tl.reshape(tl.dot(ones, block, input_precision="ieee"), [block.shape[1]])
