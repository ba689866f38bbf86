# mypy: ignore-errors
# ruff: noqa: RUF005
"""What happens at the resolution of the logits where the labels are finer: before the loss, and after its gradient."""

import triton
import triton.language as tl

from lal_triton.kernels.launching import kernel
from lal_triton.kernels.strips import is_inside

MOST_SPREAD = tl.constexpr(2.0**40)


@triton.constexpr_function
def down(k):
    """Rows from a pixel to its neighbour k of 9."""
    return k // 3 - 1


@triton.constexpr_function
def across(k):
    return k % 3 - 1


@triton.constexpr_function
def cell(k):
    """Which of the cells that a pixel is a corner of lies towards its neighbour k: 1 to the left, 2 above, 3 both."""
    return 2 * (k // 3 == 0) + (k % 3 == 0)


@triton.constexpr_function
def plane(k):
    """Which plane of T (see `frames.variance_slopes`) couples a pixel with its neighbour k."""
    return 2 * abs(k // 3 - 1) + abs(k % 3 - 1)


@triton.jit
def load_classes(pointer, stride, c, mask, C):
    return tl.load(pointer + c * stride, mask=mask & (c < C), other=0.0).to(tl.float32)


@kernel
def centre_fwd_kernel(
    source,
    bad,
    logits,
    h,
    w,
    C,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Logits less their mean over the classes, `[N, h, w, C]`; pixels with a logit that is not finite: 0, and bad.

    With NORMALIZE, so are those with a logit farther than MOST_SPREAD from the mean: the gradient of a standard score
    has the third power of 1 / std, which would vanish.
    """
    area = h.to(tl.int64) * w
    blocks = tl.cdiv(area, BLOCK)
    n = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    pointer = (logits + n * stride_n + pixel // w * stride_h + pixel % w * stride_w)[:, None]
    stride_c = stride_c.to(tl.int64)
    mask = inside[:, None]
    classes = tl.arange(0, CLASSES)[None, :]
    # the mean as one logit and the mean difference from it, and then what rounding left: a common offset has no effect
    first = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for c0 in range(0, C, CLASSES):
        x = load_classes(pointer, stride_c, c0 + classes, mask, C)
        total += tl.sum(tl.where(c0 + classes < C, x - first, 0.0), 1)
    mean = first + (total / C)[:, None]
    rest = tl.zeros([BLOCK], tl.float32)
    spread = tl.zeros([BLOCK], tl.float32)
    for c0 in range(0, C, CLASSES):
        x = load_classes(pointer, stride_c, c0 + classes, mask, C)
        difference = tl.where(c0 + classes < C, x - mean, 0.0)
        rest += tl.sum(difference, 1)
        spread = tl.maximum(spread, tl.max(tl.abs(difference), 1))
    rest = rest / C
    finite = tl.abs(rest) < float("inf")
    if NORMALIZE:
        finite = finite & (spread < MOST_SPREAD)
    pixel += n * area
    tl.store(bad + pixel, tl.where(finite, 0, 1), mask=inside)
    for c0 in range(0, C, CLASSES):
        x = load_classes(pointer, stride_c, c0 + classes, mask, C) - mean - rest[:, None]
        x = tl.where(finite[:, None], x, 0.0)
        tl.store(source + pixel[:, None] * C + c0 + classes, x, mask=mask & (c0 + classes < C))


@kernel
def interpolated_rstd_kernel(
    rstd,
    source,
    start_y,
    fraction_y,
    start_x,
    fraction_x,
    h,
    w,
    H,
    W,
    C,
    cells,
    most_y,
    most_x,
    eps,
    BLOCK: tl.constexpr,
):
    """1 / std of the interpolated pixels, `[N, H, W]`, from the inner products of each cell's four cells.

    In float64: they cancel where the cells do. The pixels of cell i are [start[i], start[i + 1]) along an axis, at
    most `most`.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < cells
    i = (index // w % h).to(tl.int32)
    j = (index % w).to(tl.int32)
    here = source + index * C
    right = tl.where(j + 1 < w, C, 0)
    below = tl.where(i + 1 < h, w * C, 0)
    zero = tl.zeros([BLOCK], tl.float64)
    squares = (zero, zero, zero, zero)
    rightward = (zero, zero)
    downward = (zero, zero)
    diagonal = zero
    for c in range(C):
        p = tl.load(here + c, mask=valid, other=0.0).to(tl.float64)
        q = tl.load(here + (right + c), mask=valid, other=0.0).to(tl.float64)
        r = tl.load(here + (below + c), mask=valid, other=0.0).to(tl.float64)
        s = tl.load(here + (below + right + c), mask=valid, other=0.0).to(tl.float64)
        squares = (squares[0] + p * p, squares[1] + q * q, squares[2] + r * r, squares[3] + s * s)
        rightward = (rightward[0] + p * q, rightward[1] + r * s)
        downward = (downward[0] + p * r, downward[1] + q * s)
        diagonal += p * s + q * r
    first_y = tl.load(start_y + i, mask=valid, other=0)
    first_x = tl.load(start_x + j, mask=valid, other=0)
    last_y = tl.load(start_y + i + 1, mask=valid, other=0)
    last_x = tl.load(start_x + j + 1, mask=valid, other=0)
    rstd += (index // w // h) * H * W
    for m in range(most_y):
        y = first_y + m
        v = tl.load(fraction_y + y, mask=y < last_y, other=0.0).to(tl.float64)
        # of the cell's sides at this height: the squares, and the product of the two
        left = (1.0 - v) * (1.0 - v) * squares[0] + v * v * squares[2] + 2.0 * v * (1.0 - v) * downward[0]
        far = (1.0 - v) * (1.0 - v) * squares[1] + v * v * squares[3] + 2.0 * v * (1.0 - v) * downward[1]
        product = (1.0 - v) * (1.0 - v) * rightward[0] + v * v * rightward[1] + v * (1.0 - v) * diagonal
        for k in range(most_x):
            x = first_x + k
            inside = (y < last_y) & (x < last_x)
            u = tl.load(fraction_x + x, mask=inside, other=0.0).to(tl.float64)
            norm = (1.0 - u) * (1.0 - u) * left + u * u * far + 2.0 * u * (1.0 - u) * product
            value = tl.rsqrt(tl.maximum(norm, 0.0) / C + eps)
            tl.store(rstd + y.to(tl.int64) * W + x, value.to(tl.float32), mask=inside)


@triton.jit
def list_parts(n, y, x, axis_y, axis_x, MOST_Y: tl.constexpr, MOST_X: tl.constexpr):
    """Where the parts of the tiles for low-resolution pixel (y, x) are among all parts; -1 where there are no more.

    An axis is (the first of the tiles whose frame holds a pixel, base, the first tile that has a part, their number,
    span).
    """
    first_y, base_y, begin_y, tiles_y, span_y = axis_y
    first_x, base_x, _, tiles_x, span_x = axis_x
    tile_y = tl.load(first_y + y, mask=y >= 0, other=0)
    tile_x = tl.load(first_x + x, mask=x >= 0, other=0)
    listed = ()
    for k in tl.static_range(MOST_Y * MOST_X):
        ty = tile_y + k // MOST_X
        tx = tile_x + k % MOST_X
        exists = (ty < begin_y + tiles_y) & (tx < tiles_x) & (y >= 0) & (x >= 0)
        slot_y = y - tl.load(base_y + ty, mask=exists, other=0)
        slot_x = x - tl.load(base_x + tx, mask=exists, other=0)
        exists = exists & (slot_y >= 0) & (slot_y < span_y) & (slot_x >= 0) & (slot_x < span_x)
        part = ((n * tiles_y + ty - begin_y) * tiles_x + tx) * span_y * span_x + slot_y * span_x + slot_x
        listed = listed + (tl.where(exists, part, -1),)
    return listed


@triton.jit
def sum_parts(parts, listed, pitch, channel, mask, MOST: tl.constexpr):
    """The sum of a channel, in the order of the tiles."""
    total = tl.zeros(mask.shape, tl.float32)
    for k in tl.static_range(MOST):
        here = parts + listed[k].to(tl.int64) * pitch + channel
        total += tl.load(here, mask=mask & (listed[k] >= 0), other=0.0)
    return total


@kernel
def gather_bwd_kernel(
    out,
    parts,
    source,
    first_y,
    base_y,
    begin_y,
    tiles_y,
    span_y,
    first_x,
    base_x,
    begin_x,
    tiles_x,
    span_x,
    first_row,
    rows,
    h,
    w,
    C,
    out_n,
    out_c,
    out_h,
    out_w,
    NORMALIZE: tl.constexpr,
    MOST_Y: tl.constexpr,
    MOST_X: tl.constexpr,
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The gradient of rows of the logits: the tiles' parts, less sum_j T(i, j) x(j) over each pixel's neighbours j."""
    axis_y = (first_y, base_y, begin_y, tiles_y, span_y)
    axis_x = (first_x, base_x, begin_x, tiles_x, span_x)
    most: tl.constexpr = MOST_Y * MOST_X
    area = rows * w
    blocks = tl.cdiv(area, BLOCK)
    n = tl.program_id(0) // blocks
    pixel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK))[:, None]
    inside = pixel < area
    pixel = tl.minimum(pixel, area - 1)
    y = first_row + pixel // w
    x = pixel % w
    own = list_parts(n, y, x, axis_y, axis_x, MOST_Y, MOST_X)
    pitch = C
    slopes = ()
    if NORMALIZE:
        pitch = C + 4
        cells = (own,)
        for k in tl.static_range(1, 4):
            cells = cells + (list_parts(n, y - k // 2, x - k % 2, axis_y, axis_x, MOST_Y, MOST_X),)
        for k in tl.static_range(9):
            slopes = slopes + (sum_parts(parts, cells[cell(k)], pitch, C + plane(k), inside, most),)
    n = n.to(tl.int64)
    out += n * out_n + y.to(tl.int64) * out_h + x.to(tl.int64) * out_w
    source += ((n * h + y) * w + x) * C
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)[None, :]
        mask = inside & (c < C)
        value = sum_parts(parts, own, pitch, c, mask, most)
        if NORMALIZE:
            for k in tl.static_range(9):
                exists = is_inside(y + down(k), x + across(k), h, w)
                neighbour = source + (down(k) * w.to(tl.int64) + across(k)) * C + c
                value -= slopes[k] * tl.load(neighbour, mask=mask & exists, other=0.0)
        tl.store(out + c * out_c.to(tl.int64), value.to(out.dtype.element_ty), mask=mask)
