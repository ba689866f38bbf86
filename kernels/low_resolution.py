# mypy: ignore-errors
# ruff: noqa: RUF005
"""What happens at the resolution of the logits where the labels are finer: before the loss, and after its gradient."""

import triton
import triton.language as tl

from lal_triton.kernels.strips import is_inside, kernel


@triton.constexpr_function
def down(k):
    """Rows from a pixel to its neighbour k of 9."""
    return k // 3 - 1


@triton.constexpr_function
def across(k):
    return k % 3 - 1


@triton.constexpr_function
def corner(step):
    """From a pixel to the upper or left one of the pair that a step makes."""
    return min(step, 0)


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
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Logits less their mean over the classes, `[N, h, w, C]`; pixels with a logit that is not finite: 0, and bad."""
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
    for c0 in range(0, C, CLASSES):
        x = load_classes(pointer, stride_c, c0 + classes, mask, C)
        rest += tl.sum(tl.where(c0 + classes < C, x - mean, 0.0), 1)
    rest = rest / C
    finite = tl.abs(rest) < float("inf")
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
    CLASSES: tl.constexpr,
):
    """1 / std of the interpolated pixels, `[N, H, W]`, from the inner products of each cell's four corners.

    In float64: they cancel where the corners do. The pixels of cell i are [start[i], start[i + 1]) along an axis, at
    most `most`.
    """
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = cell < cells
    i = cell // w % h
    j = cell % w
    here = (source + cell * C)[:, None]
    right = tl.where(j + 1 < w, C, 0).to(tl.int64)[:, None]
    below = tl.where(i + 1 < h, w.to(tl.int64) * C, 0)[:, None]
    classes = tl.arange(0, CLASSES)[None, :]
    zero = tl.zeros([BLOCK], tl.float64)
    squares = (zero, zero, zero, zero)
    rightward = (zero, zero)
    downward = (zero, zero)
    diagonal = zero
    for c0 in range(0, C, CLASSES):
        mask = valid[:, None] & (c0 + classes < C)
        p = tl.load(here + c0 + classes, mask=mask, other=0.0).to(tl.float64)
        q = tl.load(here + right + c0 + classes, mask=mask, other=0.0).to(tl.float64)
        r = tl.load(here + below + c0 + classes, mask=mask, other=0.0).to(tl.float64)
        s = tl.load(here + below + right + c0 + classes, mask=mask, other=0.0).to(tl.float64)
        squares = (
            squares[0] + tl.sum(p * p, 1),
            squares[1] + tl.sum(q * q, 1),
            squares[2] + tl.sum(r * r, 1),
            squares[3] + tl.sum(s * s, 1),
        )
        rightward = (rightward[0] + tl.sum(p * q, 1), rightward[1] + tl.sum(r * s, 1))
        downward = (downward[0] + tl.sum(p * r, 1), downward[1] + tl.sum(q * s, 1))
        diagonal += tl.sum(p * s + q * r, 1)
    first_y = tl.load(start_y + i, mask=valid, other=0)
    first_x = tl.load(start_x + j, mask=valid, other=0)
    last_y = tl.load(start_y + i + 1, mask=valid, other=0)
    last_x = tl.load(start_x + j + 1, mask=valid, other=0)
    rstd += (cell // w // h) * H * W
    for k in range(most_y * most_x):
        y = first_y + k // most_x
        x = first_x + k % most_x
        inside = (y < last_y) & (x < last_x)
        v = tl.load(fraction_y + y, mask=inside, other=0.0).to(tl.float64)
        u = tl.load(fraction_x + x, mask=inside, other=0.0).to(tl.float64)
        a = 1.0 - u
        upper = a * a * squares[0] + u * u * squares[1] + 2.0 * a * u * rightward[0]
        lower = a * a * squares[2] + u * u * squares[3] + 2.0 * a * u * rightward[1]
        between = a * a * downward[0] + u * u * downward[1] + a * u * diagonal
        norm = (1.0 - v) * (1.0 - v) * upper + v * v * lower + 2.0 * v * (1.0 - v) * between
        value = 1.0 / tl.sqrt(tl.maximum(norm, 0.0) / C + eps)
        tl.store(rstd + y.to(tl.int64) * W + x, value.to(tl.float32), mask=inside)


@triton.jit
def sum_tiles(parts, pitch, n, y, x, channel, mask, axis_y, axis_x):
    """What the tiles whose frame holds low-resolution pixel (y, x) have for it, summed in their order.

    An axis is (the first of them for each pixel, base, the first tile that has a part, their number, span, most tiles).
    """
    first_y, base_y, begin_y, tiles_y, span_y, most_y = axis_y
    first_x, base_x, _, tiles_x, span_x, most_x = axis_x
    total = tl.zeros(mask.shape, tl.float32)
    tile_y = tl.load(first_y + y, mask=y >= 0, other=0)
    tile_x = tl.load(first_x + x, mask=x >= 0, other=0)
    for k in range(most_y * most_x):
        ty = tile_y + k // most_x
        tx = tile_x + k % most_x
        listed = (ty < begin_y + tiles_y) & (tx < tiles_x) & (y >= 0) & (x >= 0)
        slot_y = y - tl.load(base_y + ty, mask=listed, other=0)
        slot_x = x - tl.load(base_x + tx, mask=listed, other=0)
        listed = listed & (slot_y >= 0) & (slot_y < span_y) & (slot_x >= 0) & (slot_x < span_x)
        part = ((n * tiles_y + ty - begin_y) * tiles_x + tx) * span_y * span_x + slot_y * span_x + slot_x
        total += tl.load(parts + part * pitch + channel, mask=mask & listed, other=0.0)
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
    most_y,
    first_x,
    base_x,
    begin_x,
    tiles_x,
    span_x,
    most_x,
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
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The gradient of rows of the logits: the tiles' parts, less sum_j T(i, j) x(j) over each pixel's neighbours j."""
    axis_y = (first_y, base_y, begin_y, tiles_y, span_y, most_y)
    axis_x = (first_x, base_x, begin_x, tiles_x, span_x, most_x)
    area = rows.to(tl.int64) * w
    blocks = tl.cdiv(area, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK))[:, None]
    inside = pixel < area
    pixel = tl.minimum(pixel, area - 1)
    y = first_row + (pixel // w).to(tl.int32)
    x = (pixel % w).to(tl.int32)
    pitch = C
    slopes = ()
    if NORMALIZE:
        pitch = C + 4
        for k in tl.static_range(9):
            corner_y = y + corner(down(k))
            corner_x = x + corner(across(k))
            channel = C + plane(k)
            slopes = slopes + (sum_tiles(parts, pitch, n, corner_y, corner_x, channel, inside, axis_y, axis_x),)
    out += n * out_n + y.to(tl.int64) * out_h + x.to(tl.int64) * out_w
    source += ((n * h + y) * w + x) * C
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)[None, :]
        mask = inside & (c < C)
        value = sum_tiles(parts, pitch, n, y, x, c, mask, axis_y, axis_x)
        if NORMALIZE:
            for k in tl.static_range(9):
                exists = is_inside(y + down(k), x + across(k), h, w)
                neighbour = source + (down(k) * w.to(tl.int64) + across(k)) * C + c
                value -= slopes[k] * tl.load(neighbour, mask=mask & exists, other=0.0)
        tl.store(out + c * out_c.to(tl.int64), value.to(out.dtype.element_ty), mask=mask)
