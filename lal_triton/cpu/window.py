# mypy: ignore-errors
"""The masked window (Eq. 1-2) and its transpose on rows of pixels.

A pixel has a weight for each tap, 0 where the neighbour's label is another. Most of an image sees one label only. There
every pixel has the window's own weights, and a window that depends on the chessboard distance alone is a sum of nested
boxes: rows are added up once, and shifted sums of them are all that is left of the k^2 products.

Columns start at np.int64(0): numba compiles what is called with a literal 0 for literals, too.
"""

from typing import NamedTuple

import numpy as np
import torch

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.rows import zeros

BLOCK = 128  # columns whose weights stay in the level-1 cache while the classes pass
STEP = 32  # columns that are a run of one label together, or not


class Window(NamedTuple):
    """`[Kh Kw]` each, row-major: the weights, the same mirrored, and what a neighbour adds to xi."""

    rows: int
    columns: int
    weights: np.ndarray
    mirrored: np.ndarray
    counted: np.ndarray
    symmetric: bool
    boxes: np.ndarray  # [K // 2 + 1], of nested boxes of 1, 3, 5, ... that add up to the window; else empty


class Taps(NamedTuple):
    """Of the rows whose gradient is to come; row m lies at m modulo the length."""

    weights: np.ndarray  # [Kh // 2 + 1, Kh Kw, W]
    mirrored: np.ndarray  # the same array where the window is symmetric
    plain: np.ndarray  # [Kh // 2 + 1, W / STEP], whether the windows of these columns see one label


def make_taps(window, width, dtype):
    kept, taps = window.rows // 2 + 1, window.rows * window.columns
    weights = zeros(dtype, kept, taps, width)
    mirrored = weights if window.symmetric else zeros(dtype, kept, taps, width)
    return Taps(weights, mirrored, zeros(torch.bool, kept, (width + STEP - 1) // STEP))


@inlined
def find_taps(labels, m, window, taps, inverse_xi):
    """Sets the taps of row m from a ring of rows of labels, and 1 / xi."""
    at = m % len(taps.weights)
    plain = taps.plain[at]
    count_taps(labels, m, window, inverse_xi)
    whole = inverse_xi.dtype.type(0)
    for counted in window.counted:
        whole += counted
    for step in range(len(plain)):
        same = len(window.boxes) > 0
        for xi in inverse_xi[step * STEP : (step + 1) * STEP]:
            same &= xi == whole
        plain[step] = same
    for i in range(len(inverse_xi)):
        inverse_xi[i] = inverse_xi.dtype.type(1) / inverse_xi[i]
    weigh_taps(labels, m, window, window.weights, plain, taps.weights[at])
    if not window.symmetric:
        weigh_taps(labels, m, window, window.mirrored, plain, taps.mirrored[at])


@inlined
def count_taps(labels, m, window, xi):
    """Each neighbour of the pixel's label counts as `counted` of its tap."""
    width, border = len(xi), window.columns // 2
    mine = labels[m % window.rows, border : border + width]
    zero = xi.dtype.type(0)
    xi[:] = 0
    for t in range(window.rows * window.columns):
        shift = t % window.columns
        theirs = labels[(m - window.rows // 2 + t // window.columns) % window.rows, shift : shift + width]
        counted = window.counted[t]
        for i in range(width):
            xi[i] += counted if theirs[i] == mine[i] else zero


@inlined
def weigh_taps(labels, m, window, weights, plain, out):
    """`out[t, i]` = mu(p, q) w_t for pixel p of column i and q its neighbour at tap t, where it is not plain."""
    border = window.columns // 2
    start = np.int64(0)
    while start < out.shape[1]:
        stop = end_of_run(plain, start, out.shape[1])
        if not plain[start // STEP]:
            mine = labels[m % window.rows, border + start : border + stop]
            zero = weights.dtype.type(0)
            for t in range(len(weights)):
                shift = start + t % window.columns
                row = labels[(m - window.rows // 2 + t // window.columns) % window.rows]
                theirs, line = row[shift : shift + stop - start], out[t, start:stop]
                w = weights[t]
                for i in range(len(line)):
                    line[i] = w if theirs[i] == mine[i] else zero
        start = stop


@inlined
def end_of_run(plain, start, width):
    """Where the columns from `start` cease to be plain, or not plain; after BLOCK columns at most."""
    stop = start
    while stop < width and stop - start < BLOCK and plain[stop // STEP] == plain[start // STEP]:
        stop = min(stop + STEP, width)
    return stop


@inlined
def merge(ring, m, window, weights, plain, boxes, out):
    """out[c] = sum_t weights[t] ring[row of t][c, shifted by t], for all classes."""
    start = np.int64(0)
    while start < out.shape[1]:
        stop = end_of_run(plain, start, out.shape[1])
        if plain[start // STEP]:
            add_boxes(ring, m, window, boxes, start, stop, out)
        else:
            add_taps(ring, m, window, weights, start, stop, out)
        start = stop


@inlined
def add_boxes(ring, m, window, boxes, start, stop, out):
    """The nested boxes: `boxes[d]` holds the columns' sums over rows at a distance of at most d, then their mixtures.

    With U_d = sum_{e >= d} w_e (sum of the rows at a distance of at most e), pixel i is the sum of all U_|j| at i + j.
    """
    reach, width = window.rows // 2, stop - start + 2 * (window.rows // 2)
    for c in range(len(out)):
        middle, total = ring[m % window.rows, c, start : start + width], out[c, start:stop]
        for d in range(1, reach + 1):
            before, sums = boxes[d - 1, :width] if d > 1 else middle, boxes[d, :width]
            above = ring[(m - d) % window.rows, c, start : start + width]
            below = ring[(m + d) % window.rows, c, start : start + width]
            w = window.boxes[d] if d == reach else window.boxes.dtype.type(1)
            for i in range(width):
                sums[i] = w * (before[i] + (above[i] + below[i]))
        for d in range(reach - 1, -1, -1):
            sums, outer, w = boxes[d, :width], boxes[d + 1, :width], window.boxes[d]
            inner = sums if d > 0 else middle
            for i in range(width):
                sums[i] = w * inner[i] + outer[i]
        centre, left, right = boxes[0, reach:], boxes[1, reach - 1 :], boxes[1, reach + 1 :]
        for i in range(len(total)):
            total[i] = centre[i] + (left[i] + right[i])
        for d in range(2, reach + 1):
            left, right = boxes[d, reach - d :], boxes[d, reach + d :]
            for i in range(len(total)):
                total[i] += left[i] + right[i]


@inlined
def add_taps(ring, m, window, weights, start, stop, out):
    for c in range(len(out)):
        total = out[c, start:stop]
        for i in range(len(total)):
            total[i] = 0
    for k in range(window.rows):
        row = ring[(m - window.rows // 2 + k) % window.rows]
        shift = np.int64(0)
        while shift < window.columns:
            t = k * window.columns + shift
            if window.columns - shift >= 5:
                add5(out, weights, t, row, shift, start, stop)
                shift += 5
            elif window.columns - shift >= 3:
                add3(out, weights, t, row, shift, start, stop)
                shift += 3
            else:
                add1(out, weights, t, row, shift, start, stop)
                shift += 1


@inlined
def add1(out, weights, t, row, shift, start, stop):
    a = weights[t, start:stop]
    for c in range(len(out)):
        total, z = out[c, start:stop], row[c, start + shift : stop + shift]
        for i in range(len(total)):
            total[i] += a[i] * z[i]


@inlined
def add3(out, weights, t, row, shift, start, stop):
    a, b, d = weights[t, start:stop], weights[t + 1, start:stop], weights[t + 2, start:stop]
    for c in range(len(out)):
        total, z = out[c, start:stop], row[c, start + shift : stop + shift + 2]
        for i in range(len(total)):
            total[i] += a[i] * z[i] + b[i] * z[i + 1] + d[i] * z[i + 2]


@inlined
def add5(out, weights, t, row, shift, start, stop):
    a, b, d = weights[t, start:stop], weights[t + 1, start:stop], weights[t + 2, start:stop]
    e, g = weights[t + 3, start:stop], weights[t + 4, start:stop]
    for c in range(len(out)):
        total, z = out[c, start:stop], row[c, start + shift : stop + shift + 4]
        for i in range(len(total)):
            total[i] += a[i] * z[i] + b[i] * z[i + 1] + d[i] * z[i + 2] + e[i] * z[i + 3] + g[i] * z[i + 4]
