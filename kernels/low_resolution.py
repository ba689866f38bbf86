# mypy: ignore-errors
# ruff: noqa: RUF005
"""What happens at the resolution of the logits where the labels are finer: before the loss, and after its gradient."""

import triton
import triton.language as tl

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
def centre_fwd_kernel(
    source_ptr,
    bad_ptr,
    logits_ptr,
    h,
    w,
    C,
    pixels,
    strides,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logits less their mean over the classes, `[N, C, h, w]`; pixels with a logit that is not finite: 0, and bad.

    With NORMALIZE, so are those with a logit farther than MOST_SPREAD from the mean: the gradient of a standard score
    has the third power of 1 / std, which would vanish.

    1. The mean over the classes, from differences of the first logit: a common offset has no effect.
    2. What rounding left of it, and the largest difference from it.
    3. The differences.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < pixels
    area = h.to(tl.int64) * w
    n = index // area
    pixel = index % area
    logits_ptr += n * strides.n + pixel // w * strides.h + pixel % w * strides.w
    stride_c = strides.c.to(tl.int64)
    first = tl.load(logits_ptr, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        total += tl.load(logits_ptr + c * stride_c, mask=inside, other=0.0).to(tl.float32) - first
    mean = first + total / C
    rest = tl.zeros([BLOCK], tl.float32)
    spread = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        difference = tl.load(logits_ptr + c * stride_c, mask=inside, other=0.0).to(tl.float32) - mean
        rest += difference
        spread = tl.maximum(spread, tl.abs(difference))
    rest = rest / C
    finite = tl.abs(rest) < float("inf")
    if NORMALIZE:
        finite = finite & (spread < MOST_SPREAD)
    tl.store(bad_ptr + index, tl.where(finite, 0, 1), mask=inside)
    source_ptr += n * C * area + pixel
    for c in range(C):
        x = tl.load(logits_ptr + c * stride_c, mask=inside, other=0.0).to(tl.float32) - mean - rest
        tl.store(source_ptr + c * area, tl.where(finite, x, 0.0), mask=inside)


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
    area = size.h.to(tl.int64) * w
    here = source_ptr + index // area * C * area + index % area
    right = tl.where(j + 1 < w, 1, 0)
    below = tl.where(i + 1 < size.h, w, 0)
    zero = tl.zeros([BLOCK], tl.float64)
    squares = (zero, zero, zero, zero)
    rightward = (zero, zero)
    downward = (zero, zero)
    diagonal = zero
    for _ in range(C):
        p = tl.load(here, mask=valid, other=0.0).to(tl.float64)
        q = tl.load(here + right, mask=valid, other=0.0).to(tl.float64)
        r = tl.load(here + below, mask=valid, other=0.0).to(tl.float64)
        s = tl.load(here + (below + right), mask=valid, other=0.0).to(tl.float64)
        here += area
        squares = (squares[0] + p * p, squares[1] + q * q, squares[2] + r * r, squares[3] + s * s)
        rightward = (rightward[0] + p * q, rightward[1] + r * s)
        downward = (downward[0] + p * r, downward[1] + q * s)
        diagonal += p * s + q * r
    first_y = tl.load(cells_y.start + i, mask=valid, other=0)
    first_x = tl.load(cells_x.start + j, mask=valid, other=0)
    last_y = tl.load(cells_y.start + i + 1, mask=valid, other=0)
    last_x = tl.load(cells_x.start + j + 1, mask=valid, other=0)
    share = 1.0 / C.to(tl.float64)
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
            value = tl.div_rn(1.0, tl.sqrt_rn((tl.maximum(norm, 0.0) * share + eps).to(tl.float32)))
            tl.store(rstd_ptr + y.to(tl.int64) * size.W + x, value, mask=inside)


@triton.jit
def list_tiles(low, axis, MOST: tl.constexpr):
    """Along an axis: the tiles whose footprints hold a low-resolution pixel, and where; -1 where no more are."""
    first = tl.load(axis.first + low, mask=low >= 0, other=0)
    tiles = ()
    places = ()
    for k in tl.static_range(MOST):
        exists = (first + k < axis.begin + axis.tiles) & (low >= 0)
        place = low - tl.load(axis.base + first + k, mask=exists, other=0)
        tiles = tiles + (first + k - axis.begin,)
        places = places + (tl.where(exists & (first + k >= axis.begin) & (place < axis.span), place, -1),)
    return tiles, places


@triton.jit
def list_parts(n, down, across, axis_y, axis_x, S: tl.constexpr):
    """Where the parts of these tiles are in a channel of them; -1 where no more are."""
    MOST: tl.constexpr = S.MOST_Y * S.MOST_X
    listed = ()
    for k in tl.static_range(MOST):
        tile = (n * axis_y.tiles + down[0][k // S.MOST_X]) * axis_x.tiles + across[0][k % S.MOST_X]
        in_y = down[1][k // S.MOST_X]
        in_x = across[1][k % S.MOST_X]
        part = (tile // S.TILES * (axis_y.span * axis_x.span) + in_y * axis_x.span + in_x) * S.TILES + tile % S.TILES
        listed = listed + (tl.where((in_y >= 0) & (in_x >= 0), part, -1),)
    return listed


@triton.jit
def sum_parts(channel_ptr, listed, mask):
    """The sum of a channel's parts, in the order of the tiles."""
    total = tl.zeros(mask.shape, tl.float32)
    for k in tl.static_range(len(listed)):
        total += tl.load(channel_ptr + listed[k], mask=mask & (listed[k] >= 0), other=0.0)
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
    pixels,
    out_strides,
    S: tl.constexpr,
):
    """The gradient of rows of the logits: the tiles' parts, less sum_j T(i, j) x(j) over each pixel's neighbours j.

    1. List the parts of each pixel, with NORMALIZE those of its neighbours above and to the left, too.
    2. With NORMALIZE sum T(i, j) for each of the nine neighbours.
    3. Over the classes: sum the parts, and subtract T(i, j) x(j).
    """
    index = tl.program_id(0) * S.BLOCK + tl.arange(0, S.BLOCK)
    inside = index < pixels
    index = tl.minimum(index, pixels - 1)
    n = index // (rows * w)
    y = first_row + index // w % rows
    x = index % w
    tiles = pixels // (rows * w) * axis_y.tiles * axis_x.tiles
    pitch = tl.cdiv(tiles, S.TILES).to(tl.int64) * axis_y.span * axis_x.span * S.TILES
    down_tiles = list_tiles(y, axis_y, S.MOST_Y)
    across_tiles = list_tiles(x, axis_x, S.MOST_X)
    own = list_parts(n, down_tiles, across_tiles, axis_y, axis_x, S)
    slopes = ()
    neighbours = ()  # where they are; those outside are others, with a slope of 0
    if S.NORMALIZE:
        above = list_tiles(y - 1, axis_y, S.MOST_Y)
        left = list_tiles(x - 1, axis_x, S.MOST_X)
        cells = (
            own,
            list_parts(n, down_tiles, left, axis_y, axis_x, S),
            list_parts(n, above, across_tiles, axis_y, axis_x, S),
            list_parts(n, above, left, axis_y, axis_x, S),
        )
        for k in tl.static_range(9):
            slopes = slopes + (sum_parts(parts_ptr + (C + plane(k)) * pitch, cells[cell(k)], inside),)
            row = tl.minimum(tl.maximum(y + down(k), 0), h - 1)
            neighbours = neighbours + (row * w + tl.minimum(tl.maximum(x + across(k), 0), w - 1),)
    n = n.to(tl.int64)
    out_ptr += n * out_strides.n + y.to(tl.int64) * out_strides.h + x.to(tl.int64) * out_strides.w
    area = h.to(tl.int64) * w
    source_ptr += n * C * area
    for _ in range(C):
        value = sum_parts(parts_ptr, own, inside)
        if S.NORMALIZE:
            for k in tl.static_range(9):
                value -= slopes[k] * tl.load(source_ptr + neighbours[k])
        tl.store(out_ptr, value.to(out_ptr.dtype.element_ty), mask=inside)
        parts_ptr += pitch
        source_ptr += area
        out_ptr += out_strides.c.to(tl.int64)
