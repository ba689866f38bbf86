# mypy: ignore-errors
# ruff: noqa: RUF005
"""Cells: the squares between four neighbouring low-resolution pixels, whose pixels interpolate these four.

An axis of `low` low-resolution pixels has low + 1 cells. Cell i lies between pixels i - 1 and i; the first and the last
reach over the border, where both corners are the same pixel. A lane owns a patch of PY x PX pixels of a cell, and takes
the four corners' logits once for each class. The pixels of a patch's column are equally spaced, so that
exp(f) there is a geometric sequence: two exponentials make it, however many pixels it has.

Values for each pixel of a patch are tuples, row by row, with one value to a lane.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import bit_or

# Of a cell's logits, in powers of two. A sequence's last pixel has the rounding of the growth several times: where
# neighbours differ by more, it would err by more than F.interpolate does.
MOST_SPREAD = tl.constexpr(56.0)


class Side(NamedTuple):
    """Of a lane's patch along an axis."""

    first: Any  # pixel
    end: Any  # of its pixels
    lower: Any  # low-resolution pixel
    upper: Any
    fraction: Any  # the upper one's weight at the first pixel
    step: Any  # what it grows by from pixel to pixel


class Corners(NamedTuple):
    """Of a cell: one value at each of its corners."""

    a: Any
    b: Any  # right of it
    c: Any  # below it
    d: Any


@triton.jit
def locate_side(axis, cell, part, exists, low, P: tl.constexpr):
    """Part `part` of a cell's pixels along an axis; no pixel where it does not exist.

    What cells over the border give to their corners goes to the pixel inside: its weight is 1 there, the other's 0.
    """
    cell = tl.where(exists, cell, 0)
    first = tl.load(axis.start + cell) + part * P
    end = tl.minimum(tl.load(axis.start + cell + 1), tl.where(exists, first + P, 0))
    is_inner = (cell > 0) & (cell < low)
    fraction = tl.load(axis.fraction + cell) + part * P * axis.step
    fraction = tl.where(is_inner, fraction, tl.where(cell == 0, 1.0, 0.0))
    step = tl.where(is_inner, axis.step, 0.0)
    return Side(first, end, tl.maximum(cell - 1, 0), tl.minimum(cell, low - 1), fraction, step)


@triton.jit
def corner_offsets(stride_h, stride_w, down, across, S: tl.constexpr):
    """Of the corners in a plane."""
    INTEGER: tl.constexpr = tl.int64 if S.WIDE else tl.int32
    left = across.lower.to(INTEGER) * stride_w
    right = across.upper.to(INTEGER) * stride_w
    above = down.lower.to(INTEGER) * stride_h
    below = down.upper.to(INTEGER) * stride_h
    return Corners(above + left, above + right, below + left, below + right)


@triton.jit
def load_corners(plane, offsets, scale, shift):
    """scale x value - shift."""
    a = tl.fma(tl.load(plane + offsets.a).to(tl.float32), scale, -shift)
    b = tl.fma(tl.load(plane + offsets.b).to(tl.float32), scale, -shift)
    c = tl.fma(tl.load(plane + offsets.c).to(tl.float32), scale, -shift)
    d = tl.fma(tl.load(plane + offsets.d).to(tl.float32), scale, -shift)
    return Corners(a, b, c, d)


@triton.jit
def find_pivot(range_ptr, size, n, down, across, scale, S: tl.constexpr):
    """scale x what is nearest 0 between a cell's lowest and highest logit, and whether these are within MOST_SPREAD.

    Differences from this pivot are rounded by no more than the logits.
    """
    area = size.h.to(tl.int64) * size.w
    range_ptr += 2 * n * area
    offsets = corner_offsets(size.w, 1, down, across, S)
    high = load_corners(range_ptr, offsets, scale, 0.0)
    low = load_corners(range_ptr + area, offsets, scale, 0.0)
    highest = tl.maximum(tl.maximum(high.a, high.b), tl.maximum(high.c, high.d))
    lowest = tl.minimum(tl.minimum(low.a, low.b), tl.minimum(low.c, low.d))
    return tl.minimum(tl.maximum(lowest, 0.0), highest), highest - lowest <= MOST_SPREAD


@triton.jit
def upper_weight(side, k):
    """The upper corner's weight at the patch's pixel k.

    What both passes interpolate has explicit fma: rounded otherwise in one of them, large logits would not agree.
    """
    return tl.fma(tl.zeros_like(side.step) + k, side.step, side.fraction)


@triton.jit
def column_lines(corners, down, across, PX: tl.constexpr):
    """Of each column the value at its first pixel, and what it grows by from pixel to pixel.

    They are pairs: up to Triton 3.6 the records in a tuple have no names.
    """
    left = corners.c - corners.a
    right = corners.d - corners.b
    first = corners.a + down.fraction * left
    first_across = corners.b + down.fraction * right - first
    growth = left * down.step
    growth_across = right * down.step - growth
    lines = ()
    for j in tl.static_range(PX):
        x = upper_weight(across, j)
        lines = lines + ((first + x * first_across, growth + x * growth_across),)
    return lines


@triton.jit
def mix(t, first, second):
    """(1 - t) first + t second; of two that are equal that, which may be infinite."""
    return tl.where(first == second, first, tl.fma(t, second, (1 - t) * first))


@triton.jit
def interpolate(corners, down, across, k, j):
    """The value at the pixel in row k and column j of the patch."""
    y = upper_weight(down, k)
    left = mix(y, corners.a, corners.c)
    right = mix(y, corners.b, corners.d)
    return mix(upper_weight(across, j), left, right)


@triton.jit
def exp2_lines(lines):
    """Of each column the first exponential, and the ratio of each to the one above it."""
    sequences = ()
    for j in tl.static_range(len(lines)):
        sequences = sequences + ((tl.exp2(lines[j][0]), tl.exp2(lines[j][1])),)
    return sequences


@triton.jit
def pixel_exists(down, across, k, j):
    """Whether the pixel in row k and column j of the patch does."""
    return (down.first + k < down.end) & (across.first + j < across.end)


@triton.jit
def load_patch(pointer, W, down, across, S: tl.constexpr, other):
    """A plane's values at the pixels of a patch, with `pointer` at the first."""
    PX: tl.constexpr = S.PX
    values = ()
    for i in tl.static_range(S.PY * PX):
        inside = pixel_exists(down, across, i // PX, i % PX)
        values = values + (tl.load(pointer + (i // PX * W + i % PX), mask=inside, other=other),)
    return values


@triton.jit
def store_patch(pointer, values, W, down, across, S: tl.constexpr):
    PX: tl.constexpr = S.PX
    for i in tl.static_range(len(values)):
        inside = pixel_exists(down, across, i // PX, i % PX)
        tl.store(pointer + (i // PX * W + i % PX), values[i], mask=inside)


@triton.jit
def hash_labels(labels):
    """The set of the program's labels, a bit for each modulo 32."""
    bits = tl.zeros(labels[0].shape, tl.int32)
    for i in tl.static_range(len(labels)):
        bits |= tl.where(labels[i] >= 0, 1 << (labels[i] & 31), 0)
    return tl.reduce(bits, 0, bit_or)


@triton.jit
def may_hold(bits, label):
    return (bits >> (label & 31)) & 1 != 0


@triton.jit
def sum_columns(values, PX: tl.constexpr):
    """Of each column of a patch the sum of its values, and of these times their row."""
    columns = ()
    for j in tl.static_range(PX):
        total = values[j]
        by_row = tl.zeros_like(total)
        for k in tl.static_range(1, len(values) // PX):
            total += values[k * PX + j]
            by_row += k * values[k * PX + j]
        columns = columns + ((total, by_row),)
    return columns


@triton.jit
def share_among_corners(columns, down, across):
    """What each corner gets of the columns' sums: by the bilinear weights of the pixels."""
    total, by_row = columns[0]
    x = across.fraction * total
    x_by_row = across.fraction * by_row
    for j in tl.static_range(1, len(columns)):
        column, column_by_row = columns[j]
        total += column
        by_row += column_by_row
        x += upper_weight(across, j) * column
        x_by_row += upper_weight(across, j) * column_by_row
    y = down.fraction * total + down.step * by_row
    xy = down.fraction * x + down.step * x_by_row
    return Corners(total - x - (y - xy), x - xy, y - xy, xy)


@triton.jit
def join_cells(left, right, QX: tl.constexpr):
    """What a low-resolution pixel gets of the cells before and after it, the last lane of which this is."""
    lane = tl.arange(0, left.shape[0])
    total = left
    for k in tl.static_range(1, QX):
        total += tl.gather(left, tl.maximum(lane - k, 0), 0)
    for k in tl.static_range(QX, 2 * QX):
        total += tl.gather(right, tl.maximum(lane - k, 0), 0)
    return total


@triton.jit
def join_corners(corners, QX: tl.constexpr):
    """`join_cells` for the pixel above and the one below."""
    return join_cells(corners.a, corners.b, QX), join_cells(corners.c, corners.d, QX)
