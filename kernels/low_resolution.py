# mypy: ignore-errors
# ruff: noqa: RUF005
"""What happens at the resolution of the logits where the labels are finer: before the loss, and after its gradient."""

import triton
import triton.language as tl

from lal_triton.kernels.window import is_inside

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
    """Which plane of T (see `footprint.variance_slopes`) couples a pixel with its neighbour k."""
    return 2 * abs(k // 3 - 1) + abs(k % 3 - 1)


@triton.jit
def load_classes(pointer, stride, c, mask, C):
    return tl.load(pointer + c * stride, mask=mask & (c < C), other=0.0).to(tl.float32)


@triton.jit
def centre_fwd_kernel(
    source_ptr,
    bad_ptr,
    logits_ptr,
    h,
    w,
    C,
    strides,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Logits less their mean over the classes, `[N, h, w, C]`; pixels with a logit that is not finite: 0, and bad.

    With NORMALIZE, so are those with a logit farther than MOST_SPREAD from the mean: the gradient of a standard score
    has the third power of 1 / std, which would vanish.

    1. The mean over the classes, from differences of the first logit: a common offset has no effect.
    2. What rounding left of it, and the largest difference from it.
    3. The differences.
    """
    area = h.to(tl.int64) * w
    blocks = tl.cdiv(area, BLOCK)
    n = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    pointer = (logits_ptr + n * strides.n + pixel // w * strides.h + pixel % w * strides.w)[:, None]
    stride_c = strides.c.to(tl.int64)
    mask = inside[:, None]
    classes = tl.arange(0, CLASSES)[None, :]
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
    tl.store(bad_ptr + pixel, tl.where(finite, 0, 1), mask=inside)
    for c0 in range(0, C, CLASSES):
        x = load_classes(pointer, stride_c, c0 + classes, mask, C) - mean - rest[:, None]
        x = tl.where(finite[:, None], x, 0.0)
        tl.store(source_ptr + pixel[:, None] * C + c0 + classes, x, mask=mask & (c0 + classes < C))


@triton.jit
def logit_range_kernel(range_ptr, logits_ptr, h, w, C, strides, BLOCK: tl.constexpr):
    """The highest and the lowest logit of each pixel, `[N, 2, h, w]`; with a NaN among them the highest is infinite."""
    area = h.to(tl.int64) * w
    blocks = tl.cdiv(area, BLOCK)
    n = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    logits_ptr += n * strides.n + pixel // w * strides.h + pixel % w * strides.w
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    lowest = -highest
    for _ in range(C):
        x = tl.load(logits_ptr, mask=inside, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, x, propagate_nan=tl.PropagateNan.ALL)
        lowest = tl.minimum(lowest, x)
        logits_ptr += strides.c
    highest = tl.where(highest == highest, highest, float("inf"))
    range_ptr += 2 * n * area + pixel
    tl.store(range_ptr, highest, mask=inside)
    tl.store(range_ptr + area, lowest, mask=inside)


@triton.jit
def interpolated_rstd_kernel(
    rstd_ptr,
    source_ptr,
    cells_y,
    cells_x,
    size,
    cells,
    most_y,
    most_x,
    eps,
    BLOCK: tl.constexpr,
):
    """1 / std of the interpolated pixels, `[N, H, W]`, from the inner products of each cell's four cells.

    In float64: they cancel where the cells do. The pixels of cell i are [start[i], start[i + 1]) along an axis, at
    most `most`.

    1. Over the classes: the inner products.
    2. Over the rows of a cell's pixels: those of its sides at that height.
    3. Over their columns: the squared norm of the pixel, and from it 1 / std.
    """
    w = size.w
    C = size.C
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < cells
    i = (index // w % size.h).to(tl.int32)
    j = (index % w).to(tl.int32)
    here = source_ptr + index * C
    right = tl.where(j + 1 < w, C, 0)
    below = tl.where(i + 1 < size.h, w * C, 0)
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
    first_y = tl.load(cells_y.start + i, mask=valid, other=0)
    first_x = tl.load(cells_x.start + j, mask=valid, other=0)
    last_y = tl.load(cells_y.start + i + 1, mask=valid, other=0)
    last_x = tl.load(cells_x.start + j + 1, mask=valid, other=0)
    rstd_ptr += (index // w // size.h) * size.H * size.W
    for m in range(most_y):
        y = first_y + m
        v = tl.load(cells_y.fraction + y, mask=y < last_y, other=0.0).to(tl.float64)
        # of the cell's sides at this height: the squares, and the product of the two
        left = (1.0 - v) * (1.0 - v) * squares[0] + v * v * squares[2] + 2.0 * v * (1.0 - v) * downward[0]
        far = (1.0 - v) * (1.0 - v) * squares[1] + v * v * squares[3] + 2.0 * v * (1.0 - v) * downward[1]
        product = (1.0 - v) * (1.0 - v) * rightward[0] + v * v * rightward[1] + v * (1.0 - v) * diagonal
        for k in range(most_x):
            x = first_x + k
            inside = (y < last_y) & (x < last_x)
            u = tl.load(cells_x.fraction + x, mask=inside, other=0.0).to(tl.float64)
            norm = (1.0 - u) * (1.0 - u) * left + u * u * far + 2.0 * u * (1.0 - u) * product
            value = tl.rsqrt(tl.maximum(norm, 0.0) / C + eps)
            tl.store(rstd_ptr + y.to(tl.int64) * size.W + x, value.to(tl.float32), mask=inside)


@triton.jit
def list_parts(n, y, x, axis_y, axis_x, S: tl.constexpr):
    """Where the parts of the tiles for low-resolution pixel (y, x) are among all parts; -1 where there are no more."""
    MOST: tl.constexpr = S.MOST_Y * S.MOST_X
    tile_y = tl.load(axis_y.first + y, mask=y >= 0, other=0)
    tile_x = tl.load(axis_x.first + x, mask=x >= 0, other=0)
    listed = ()
    for k in tl.static_range(MOST):
        ty = tile_y + k // S.MOST_X
        tx = tile_x + k % S.MOST_X
        exists = (ty < axis_y.begin + axis_y.tiles) & (tx < axis_x.tiles) & (y >= 0) & (x >= 0)
        in_y = y - tl.load(axis_y.base + ty, mask=exists, other=0)
        in_x = x - tl.load(axis_x.base + tx, mask=exists, other=0)
        exists = exists & (in_y >= 0) & (in_y < axis_y.span) & (in_x >= 0) & (in_x < axis_x.span)
        tile = (n * axis_y.tiles + ty - axis_y.begin) * axis_x.tiles + tx
        part = tile * axis_y.span * axis_x.span + in_y * axis_x.span + in_x
        listed = listed + (tl.where(exists, part, -1),)
    return listed


@triton.jit
def sum_parts(parts_ptr, listed, pitch, channel, mask):
    """The sum of a channel, in the order of the tiles."""
    total = tl.zeros(mask.shape, tl.float32)
    for k in tl.static_range(len(listed)):
        here = parts_ptr + listed[k].to(tl.int64) * pitch + channel
        total += tl.load(here, mask=mask & (listed[k] >= 0), other=0.0)
    return total


@triton.jit
def gather_bwd_kernel(
    out_ptr,
    parts_ptr,
    source_ptr,
    axis_y,
    axis_x,
    first_row,
    rows,
    h,
    w,
    C,
    out_strides,
    S: tl.constexpr,
):
    """The gradient of rows of the logits: the tiles' parts, less sum_j T(i, j) x(j) over each pixel's neighbours j.

    1. List the parts of each pixel, with NORMALIZE those of its neighbours above and to the left, too.
    2. With NORMALIZE sum T(i, j) for each of the nine neighbours.
    3. Over the classes: sum the parts, and subtract T(i, j) x(j).
    """
    area = rows * w
    blocks = tl.cdiv(area, S.BLOCK)
    n = tl.program_id(0) // blocks
    pixel = (tl.program_id(0) % blocks * S.BLOCK + tl.arange(0, S.BLOCK))[:, None]
    inside = pixel < area
    pixel = tl.minimum(pixel, area - 1)
    y = first_row + pixel // w
    x = pixel % w
    own = list_parts(n, y, x, axis_y, axis_x, S)
    pitch = C
    slopes = ()
    if S.NORMALIZE:
        pitch = C + 4
        cells = (own,)
        for k in tl.static_range(1, 4):
            cells = cells + (list_parts(n, y - k // 2, x - k % 2, axis_y, axis_x, S),)
        for k in tl.static_range(9):
            slopes = slopes + (sum_parts(parts_ptr, cells[cell(k)], pitch, C + plane(k), inside),)
    n = n.to(tl.int64)
    out_ptr += n * out_strides.n + y.to(tl.int64) * out_strides.h + x.to(tl.int64) * out_strides.w
    source_ptr += ((n * h + y) * w + x) * C
    for c0 in range(0, C, S.CLASSES):
        c = c0 + tl.arange(0, S.CLASSES)[None, :]
        mask = inside & (c < C)
        value = sum_parts(parts_ptr, own, pitch, c, mask)
        if S.NORMALIZE:
            for k in tl.static_range(9):
                exists = is_inside(y + down(k), x + across(k), h, w)
                neighbour = source_ptr + (down(k) * w.to(tl.int64) + across(k)) * C + c
                value -= slopes[k] * tl.load(neighbour, mask=mask & exists, other=0.0)
        tl.store(out_ptr + c * out_strides.c.to(tl.int64), value.to(out_ptr.dtype.element_ty), mask=mask)
