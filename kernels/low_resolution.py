# mypy: ignore-errors
# ruff: noqa: RUF005
"""What happens at the resolution of the logits where the labels are finer: before the loss, and after its gradient."""

import triton
import triton.language as tl

from lal_triton.kernels.cells import corner_offsets, locate_side, pixel_exists, upper_weight

MOST_DEVIATION = tl.constexpr(2.0**40)


@triton.constexpr_function
def rows_below(k):
    """Rows from a pixel to its neighbour k of 9."""
    return k // 3 - 1


@triton.constexpr_function
def columns_right(k):
    return k % 3 - 1


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

    With NORMALIZE, so are those with a logit farther than MOST_DEVIATION from the mean: the gradient of a standard
    score has the third power of 1 / std, which would vanish.

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
        finite = finite & (spread < MOST_DEVIATION)
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
def interpolate_product(t, near, mixed, far):
    """(1 - t)^2 near + 2 t (1 - t) mixed + t^2 far."""
    return near + t * (2.0 * (mixed - near) + t * (near - 2.0 * mixed + far))


@triton.jit
def interpolated_rstd_kernel(rstd_ptr, source_ptr, axis_y, axis_x, size, cells, eps, S: tl.constexpr):
    """1 / std of the interpolated pixels, `[N, H, W]`, from the inner products of each cell's four corners.

    In float64: they cancel where the corners do. A lane has one patch, all of a cell.

    1. Over the classes: the inner products.
    2. Over the rows of a cell's pixels: those of its sides at that height.
    3. Over their columns: the squared norm of the pixel, and from it 1 / std.
    """
    C = size.C
    index = tl.program_id(0).to(tl.int64) * S.LANES + tl.arange(0, S.LANES)
    exists = index < cells
    n = index // (size.w + 1) // (size.h + 1)
    down = locate_side(axis_y, index // (size.w + 1) % (size.h + 1), 0, exists, size.h, S.PY)
    across = locate_side(axis_x, index % (size.w + 1), 0, exists, size.w, S.PX)
    area = size.h.to(tl.int64) * size.w
    source_ptr += tl.where(exists, n, 0) * C * area
    offsets = corner_offsets(size.w, 1, down, across, S)
    zero = tl.zeros(index.shape, tl.float64)
    squares = (zero, zero, zero, zero)
    rightward = (zero, zero)
    downward = (zero, zero)
    diagonal = zero
    for _ in range(C):
        a = tl.load(source_ptr + offsets.a).to(tl.float64)
        b = tl.load(source_ptr + offsets.b).to(tl.float64)
        c = tl.load(source_ptr + offsets.c).to(tl.float64)
        d = tl.load(source_ptr + offsets.d).to(tl.float64)
        source_ptr += area
        squares = (squares[0] + a * a, squares[1] + b * b, squares[2] + c * c, squares[3] + d * d)
        rightward = (rightward[0] + a * b, rightward[1] + c * d)
        downward = (downward[0] + a * c, downward[1] + b * d)
        diagonal += a * d + b * c
    share = 1.0 / C.to(tl.float64)
    rstd_ptr += (n * size.H + down.first) * size.W + across.first
    for k in range(S.PY):
        y = upper_weight(down, k).to(tl.float64)
        # of the cell's sides at this height: the squares, and the product of the two
        left = interpolate_product(y, squares[0], downward[0], squares[2])
        right = interpolate_product(y, squares[1], downward[1], squares[3])
        product = interpolate_product(y, rightward[0], 0.5 * diagonal, rightward[1])
        for j in range(S.PX):
            norm = interpolate_product(upper_weight(across, j).to(tl.float64), left, product, right)
            value = tl.div_rn(1.0, tl.sqrt_rn(tl.maximum(norm * share + eps, eps).to(tl.float32)))
            tl.store(rstd_ptr + j, value, mask=pixel_exists(down, across, k, j))
        rstd_ptr += size.W


@triton.jit
def list_tiles(low, axis, MOST: tl.constexpr):
    """Along an axis: the tiles whose footprints hold a low-resolution pixel, and where; -1 where no more are."""
    first = tl.load(axis.first + low)
    tiles = ()
    places = ()
    for k in tl.static_range(MOST):
        exists = first + k < axis.begin + axis.tiles
        place = low - tl.load(axis.base + first + k, mask=exists, other=0)
        tiles = tiles + (first + k - axis.begin,)
        places = places + (tl.where(exists & (first + k >= axis.begin) & (place < axis.span), place, -1),)
    return tiles, places


@triton.jit
def list_parts(n, y, x, axis_y, axis_x, S: tl.constexpr):
    """Where the parts of a low-resolution pixel are in a channel of them; -1 where no more are."""
    MOST: tl.constexpr = S.MOST_Y * S.MOST_X
    down = list_tiles(y, axis_y, S.MOST_Y)
    across = list_tiles(x, axis_x, S.MOST_X)
    listed = ()
    for k in tl.static_range(MOST):
        tile = (n * axis_y.tiles + down[0][k // S.MOST_X]) * axis_x.tiles + across[0][k % S.MOST_X]
        in_y = down[1][k // S.MOST_X]
        in_x = across[1][k % S.MOST_X]
        part = (tile // S.TILES * (axis_y.span * axis_x.span) + in_y * axis_x.span + in_x) * S.TILES + tile % S.TILES
        listed = listed + (tl.where((in_y >= 0) & (in_x >= 0), part, -1),)
    return listed


@triton.jit
def load_coupling(coupling_ptr, y, x, h, w):
    """T(i, j) of a pixel and each of its nine neighbours, and where these are; those outside are others, with 0."""
    area = h.to(tl.int64) * w
    values = ()
    neighbours = ()
    for k in tl.static_range(9):
        row = y - (k // 3 == 0)  # of the upper left corner of the cell that both are corners of
        col = x - (k % 3 == 0)
        values = values + (
            tl.load(coupling_ptr + plane(k) * area + row * w + col, mask=(row >= 0) & (col >= 0), other=0.0),
        )
        below = tl.minimum(tl.maximum(y + rows_below(k), 0), h - 1)
        neighbours = neighbours + (below * w + tl.minimum(tl.maximum(x + columns_right(k), 0), w - 1),)
    return values, neighbours


@triton.jit
def gather_bwd_kernel(
    out_ptr,
    parts_ptr,
    coupling_ptr,
    source_ptr,
    axis_y,
    axis_x,
    first_row,
    rows,
    h,
    w,
    first_channel,
    channels,
    pixels,
    out_strides,
    S: tl.constexpr,
):
    """Of rows of low-resolution pixels the sum of the tiles' parts, in the order of the tiles.

    The channels of the parts are those of the logits, then with NORMALIZE the planes of T. These are gathered first, as
    `coupling`. From the gradient of the logits it then takes sum_j T(i, j) x(j) over each pixel's neighbours j.
    """
    index = tl.program_id(0) * S.BLOCK + tl.arange(0, S.BLOCK)
    inside = index < pixels
    index = tl.minimum(index, pixels - 1)
    n = index // (rows * w)
    y = first_row + index // w % rows
    x = index % w
    listed = list_parts(n, y, x, axis_y, axis_x, S)
    tiles = pixels // (rows * w) * axis_y.tiles * axis_x.tiles
    pitch = tl.cdiv(tiles, S.TILES).to(tl.int64) * axis_y.span * axis_x.span * S.TILES
    parts_ptr += first_channel * pitch
    n = n.to(tl.int64)
    area = h.to(tl.int64) * w
    if S.NORMALIZE:
        coupling, neighbours = load_coupling(coupling_ptr + 4 * n * area, y, x, h, w)
        source_ptr += n * channels * area
    out_ptr += n * out_strides.n + y.to(tl.int64) * out_strides.h + x.to(tl.int64) * out_strides.w
    for _ in range(channels):
        value = tl.zeros(index.shape, tl.float32)
        for k in tl.static_range(len(listed)):
            value += tl.load(parts_ptr + listed[k], mask=listed[k] >= 0, other=0.0)
        if S.NORMALIZE:
            for k in tl.static_range(9):
                value -= coupling[k] * tl.load(source_ptr + neighbours[k])
            source_ptr += area
        tl.store(out_ptr, value.to(out_ptr.dtype.element_ty), mask=inside)
        parts_ptr += pitch
        out_ptr += out_strides.c.to(tl.int64)
