# mypy: ignore-errors
"""Where rows of logits come from and where rows of their gradient go: at full resolution, or through an interpolation.

Interpolated rows lie between two low-resolution rows, which are expanded to the labels' columns once. Rows of the
gradient are summed into such rows, each of which is brought to low resolution when the labels have passed it.
"""

from typing import NamedTuple

import numpy as np
import torch

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.memory import zeros
from lal_triton.cpu.rows import fill
from lal_triton.cpu.vectors import broadcast, lanes, load, prefetch, store, where


@inlined
def read(x, place, y, labels, border, z):
    """Row y of the logits, to `z` `[C, border + W + ...]`; 0 where the label, `[W]`, is negative."""
    first, class_stride, row_stride, column_stride = place
    width = len(labels)
    zero = z.dtype.type(0)
    for c in range(len(z)):
        out = z[c, border : border + width]
        begin = first + c * class_stride + y * row_stride
        if column_stride == 1:
            row = x[begin : begin + width]
            for i in range(0, width, lanes(z)):
                prefetch(x, begin + row_stride + i)
            for i in range(width):
                out[i] = row[i] if labels[i] >= 0 else zero
        else:
            for i in range(width):
                out[i] = x[begin + i * column_stride] if labels[i] >= 0 else zero


@inlined
def write(gradient, place, y, labels, dz):
    """Row y of the gradient, `[C, W, ...]`; 0 where the label is negative, whatever stands in the window."""
    zero = dz.dtype.type(0)
    first, class_stride, row_stride, column_stride = place
    width = len(labels)
    for c in range(len(dz)):
        row = dz[c]
        begin = first + c * class_stride + y * row_stride
        if column_stride == 1:
            out = gradient[begin : begin + width]
            for i in range(width):
                out[i] = row[i] if labels[i] >= 0 else zero
        else:
            for i in range(width):
                gradient[begin + i * column_stride] = row[i] if labels[i] >= 0 else zero


class Tables(NamedTuple):
    """Each pixel's lower neighbour along an axis, and the weight of the upper one."""

    lower_row: np.ndarray
    row_fraction: np.ndarray
    lower_column: np.ndarray
    column_fraction: np.ndarray
    height: int  # of the low-resolution logits
    width: int


class Between(NamedTuple):
    """Low-resolution row i lies at i modulo the length."""

    expanded: np.ndarray  # [2, C, W]
    held: np.ndarray  # [2], which rows are expanded
    line: np.ndarray  # [w + 1], a row of one class; the last pixel twice
    sums: np.ndarray  # [3, C, W], of the gradient: two rows of the labels lie between three low-resolution rows at most
    passed: np.ndarray  # [2], the first row that `gradient` holds, and the first of the sums


def make_between(tables, classes, width, dtype):
    expanded, sums, line = zeros(dtype, (2, classes, width), (3, classes, width), (tables.width + 1,))
    held, passed = zeros(torch.int64, (2,), (2,))
    return Between(expanded, held, line, sums, passed)


@inlined
def begin(tables, between, first):
    """`first` is the first row of the labels whose gradient will be added."""
    for i in range(2):
        between.held[i], between.passed[i] = -1, tables.lower_row[first]
    for rows in between.sums:
        fill(rows, rows.dtype.type(0))


@inlined
def interpolate(x, place, tables, between, y, labels, border, z):
    """Row y of the interpolated logits, as `read` gives it, of labels with a border; x is contiguous in its columns."""
    low = tables.lower_row[y]
    for row in range(low, min(low + 2, tables.height)):
        if between.held[row % 2] != row:
            between.held[row % 2] = row
            expand(x, place, row, tables, between.line, between.expanded[row % 2])
    upper = min(low + 1, tables.height - 1)
    below, above = between.expanded[low % 2], between.expanded[upper % 2]
    fraction = tables.row_fraction[y]
    rest = z.dtype.type(1) - fraction
    for c in range(len(z)):
        for i in range(0, below.shape[1], lanes(z)):
            inside = load(labels, border + i, z) >= 0
            mixed = rest * load(below, (c, i), z) + fraction * load(above, (c, i), z)
            store(z, (c, border + i), where(inside, mixed, broadcast(0, z)))


@inlined
def expand(x, place, row, tables, line, out):
    """A low-resolution row at the labels' columns, `[C, W]`."""
    first, class_stride, row_stride, _ = place
    width = tables.width
    lower, fraction = tables.lower_column, tables.column_fraction
    one = out.dtype.type(1)
    for c in range(len(out)):
        begin = first + c * class_stride + row * row_stride
        narrow = x[begin : begin + width]
        for j in range(width):
            line[j] = narrow[j]
        line[width] = line[width - 1]
        wide = out[c]
        for i in range(len(lower)):
            wide[i] = (one - fraction[i]) * line[lower[i]] + fraction[i] * line[lower[i] + 1]


@inlined
def advance(tables, between, low, gradient):
    """Brings the sums of the rows before `low` to low resolution."""
    base = between.passed[0]
    for row in range(between.passed[1], low):
        rows = between.sums[row % 3]
        contract(rows, tables, gradient[row - base])
        fill(rows, gradient.dtype.type(0))
    between.passed[1] = low


@inlined
def spread(dz, i, tables, between, y, labels, border):
    """Adds columns from i on of row y of the gradient to two low-resolution rows: the transpose of `interpolate`."""
    low = tables.lower_row[y]
    below, above = low % 3, (low + 1) % 3
    fraction = tables.row_fraction[y]
    rest = dz.dtype.type(1) - fraction
    inside = load(labels, border + i, dz) >= 0
    sums = between.sums
    for c in range(len(dz)):
        slope = where(inside, load(dz, (c, i), dz), broadcast(0, dz))
        store(sums, (below, c, i), load(sums, (below, c, i), dz) + rest * slope)
        store(sums, (above, c, i), load(sums, (above, c, i), dz) + fraction * slope)


@inlined
def finish(tables, between, gradient):
    """Brings the last sums to low resolution."""
    advance(tables, between, between.passed[0] + len(gradient), gradient)


@inlined
def contract(wide, tables, out):
    """The transpose of `expand`: `[C, W]` to `[C, w]`."""
    lower, fraction = tables.lower_column, tables.column_fraction
    zero, one = wide.dtype.type(0), wide.dtype.type(1)
    for c in range(len(wide)):
        row, line = wide[c], out[c]
        carried = zero
        i = 0
        for j in range(len(line)):
            here, there = carried, zero
            while i < len(lower) and lower[i] == j:
                here += (one - fraction[i]) * row[i]
                there += fraction[i] * row[i]
                i += 1
            line[j] = here
            carried = there
        line[len(line) - 1] += carried
