# mypy: ignore-errors
# ruff: noqa: RUF005
"""Tiles of full-resolution pixels, and the frame of low-resolution ones that they mix.

A merged pixel is f(p) = sum_i A(p, i) x(i) with A(p, i) = 1/xi(p) sum_q M(p, q) rstd(q) B(q, i), for the masked window
M and the bilinear weights B. A does not depend on the class: it is built once for a tile of P pixels and its frame of
SY x SX low-resolution ones, and what has a class dimension is a product of [P, SY SX] by [SY SX, C].

Pixels are lanes, as in `strips`, with the same `site`. An axis's interpolation comes in three tables: of each pixel the
`lower` low-resolution one and the `fraction`, the weight of the next, and of each tile the `base`, where its frame
begins. A `frame` is (lower_y, fraction_y, base_y, lower_x, fraction_x, base_x) with the bases of this tile.
"""

import triton
import triton.language as tl

from lal_triton.kernels.strips import load_tap


@triton.jit
def place_tile(tile, first, down, W, base_y, base_x, TY: tl.constexpr, TX: tl.constexpr):
    """The image of a tile, its pixels' rows and columns, and where its frame begins.

    Tiles are numbered through `down` rows of them, from row `first`, of each image.
    """
    across = tl.cdiv(W, TX)
    n = (tile // across // down).to(tl.int64)
    y = first + tile // across % down
    x = tile % across
    lane = tl.arange(0, TY * TX)
    return n, y * TY + lane // TX, x * TX + lane % TX, tl.load(base_y + y), tl.load(base_x + x)


@triton.jit
def frame_pixels(n, y, x, h, w, SY: tl.constexpr, SX: tl.constexpr):
    """The low-resolution pixels of a frame's slots; those beyond the image repeat its last, at a weight of 0."""
    slot = tl.arange(0, SY * SX)
    row = tl.minimum(y + slot // SX, h - 1)
    column = tl.minimum(x + slot % SX, w - 1)
    return (n * h + row) * w + column


@triton.jit
def source_slot(lower, fraction, pixel, size, base):
    """Along one axis, `[P]`: the lower of a pixel's two slots, and the weight of the next."""
    inside = (pixel >= 0) & (pixel < size)
    slot = tl.load(lower + pixel, mask=inside, other=0) - base
    return slot, tl.load(fraction + pixel, mask=inside, other=0.0)


@triton.jit
def spread(slot, upper, S: tl.constexpr):
    """A pixel's two bilinear weights in their slots, `[P, S]`."""
    slots = tl.arange(0, S)[None, :]
    return tl.where(slots == slot, 1.0 - upper, tl.where(slots == slot + 1, upper, 0.0))


@triton.jit
def spread_product(slot, upper, S: tl.constexpr):
    """The product of the two at the lower slot, `[P, S]`."""
    return tl.where(tl.arange(0, S)[None, :] == slot, upper * (1.0 - upper), 0.0)


@triton.jit
def zeros(like, S: tl.constexpr):
    values = ()
    for _ in tl.static_range(S):
        values = values + (tl.zeros(like.shape, tl.float32),)
    return values


@triton.jit
def add_spread(values, weight, slot, upper, S: tl.constexpr):
    """`values` of S slots plus weight x the bilinear weights, one value to a lane."""
    total = ()
    for s in tl.static_range(S):
        part = tl.where(slot == s, 1.0 - upper, tl.where(slot == s - 1, upper, 0.0))
        total = total + (values[s] + weight * part,)
    return total


@triton.jit
def pack(values, first: tl.constexpr, step: tl.constexpr, S: tl.constexpr):
    """Every step-th of S values `[P]`, from `first`, as one block `[P, 2, 2, ...]`."""
    if step == S:
        block = values[first]
    else:
        block = tl.join(pack(values, first, 2 * step, S), pack(values, first + step, 2 * step, S))
    return block


@triton.jit
def mix(
    site,
    frame,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
):
    """A `[P, SY SX]` and 1 / xi `[P]`; both are 0 at pixels without a label."""
    _, _, window, own, row, col, H, W = site
    lower_y, fraction_y, base_y, lower_x, fraction_x, base_x = frame
    P: tl.constexpr = own.shape[0]
    mixture = tl.zeros([P, SY, SX], tl.float32)
    xi = tl.zeros([P], tl.float32)
    for i in range(KH):
        along = zeros(own, SX)
        for j in range(KW):
            near, scale, _logit = load_tap(site, (), i - KH // 2, j - KW // 2, 0.0, NORMALIZE, False)
            w = tl.load(window + i * KW + j)
            xi += tl.where(near == own, w if BY_WEIGHT else 1.0, 0.0)
            weight = tl.where(near == own, w * scale, 0.0)
            slot, upper = source_slot(lower_x, fraction_x, col + (j - KW // 2), W, base_x)
            along = add_spread(along, weight, slot, upper, SX)
        slot, upper = source_slot(lower_y, fraction_y, row + (i - KH // 2), H, base_y)
        down = spread(slot[:, None], upper[:, None], SY)
        mixture += down[:, :, None] * tl.reshape(pack(along, 0, 1, SX), [P, 1, SX])
    inverse = tl.where(xi > 0, tl.div_rn(1.0, xi), 0.0)
    return tl.reshape(mixture, [P, SY * SX]) * inverse[:, None], inverse


@triton.jit
def variance_slopes(
    slope,
    inverse,
    site,
    frame,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
):
    """What A's gradient, `slope` `[P, SY SX]`, is to the inner products of the frame's low-resolution pixels.

    T(i, j) = sum over p and q of M(p, q) / xi(p) rstd(q)^3 (sum_k B(q, k) slope(p, k)) B(q, i) B(q, j), in planes of
    SY SX each: i = j, j right of i, j below i, and one for both diagonals of the cell right and below i.
    """
    _, _, window, own, row, col, H, W = site
    lower_y, fraction_y, base_y, lower_x, fraction_x, base_x = frame
    P: tl.constexpr = own.shape[0]
    slope = tl.reshape(slope * inverse[:, None], [P, SY, SX])
    same = tl.zeros([P, SY, SX], tl.float32)
    right = tl.zeros([P, SY, SX], tl.float32)
    below = tl.zeros([P, SY, SX], tl.float32)
    diagonal = tl.zeros([P, SY, SX], tl.float32)
    for i in range(KH):
        slot, upper = source_slot(lower_y, fraction_y, row + (i - KH // 2), H, base_y)
        down = spread(slot[:, None], upper[:, None], SY)
        down_product = spread_product(slot[:, None], upper[:, None], SY)[:, :, None]
        along = tl.sum(slope * down[:, :, None], 1)
        squares = tl.zeros([P, SX], tl.float32)
        products = tl.zeros([P, SX], tl.float32)
        for j in range(KW):
            near, rstd, _logit = load_tap(site, (), i - KH // 2, j - KW // 2, 0.0, True, False)
            w = tl.load(window + i * KW + j)
            slot, upper = source_slot(lower_x, fraction_x, col + (j - KW // 2), W, base_x)
            across = spread(slot[:, None], upper[:, None], SX)
            value = tl.where(near == own, w * rstd, 0.0) * tl.sum(along * across, 1) * rstd * rstd
            squares += value[:, None] * across * across
            products += value[:, None] * spread_product(slot[:, None], upper[:, None], SX)
        down_square = (down * down)[:, :, None]
        same += down_square * squares[:, None, :]
        right += down_square * products[:, None, :]
        below += down_product * squares[:, None, :]
        diagonal += down_product * products[:, None, :]
    return sum_pixels(same), sum_pixels(right), sum_pixels(below), sum_pixels(diagonal)


@triton.jit
def sum_pixels(plane):
    return tl.reshape(tl.sum(plane, 0), [plane.shape[1] * plane.shape[2]])
