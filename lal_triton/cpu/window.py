# mypy: ignore-errors
"""The masked window (Eq. 1-2) and its transpose, on vectors of columns.

A pixel has a weight for each tap, 0 where the neighbour's label is another: the loss and its gradient share it.
"""

from typing import NamedTuple

import numpy as np

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.rows import zeros
from lal_triton.cpu.vectors import broadcast, lanes, load, store, where


class Window(NamedTuple):
    """`[Kh Kw]` each, row-major: the weights, the same mirrored, and what a neighbour adds to xi."""

    rows: int
    columns: int
    weights: np.ndarray
    mirrored: np.ndarray
    counted: np.ndarray
    symmetric: bool


class Taps(NamedTuple):
    """Of the rows whose gradient is to come; row m lies at m modulo the length."""

    weights: np.ndarray  # [Kh // 2 + 1, Kh Kw, W]
    mirrored: np.ndarray  # the same array where the window is symmetric


def make_taps(window, width, dtype):
    shape = window.rows // 2 + 1, window.rows * window.columns, width
    weights = zeros(dtype, *shape)
    return Taps(weights, weights if window.symmetric else zeros(dtype, *shape))


@inlined
def wrap(at, window):
    """The place of a row in its ring, of `at` below twice the ring's length: a division would take longer."""
    return at - window.rows if at >= window.rows else at


@inlined
def find_taps(labels, m, window, taps, inverse_xi):
    """Sets the taps of row m from a ring of rows of labels, and 1 / xi.

    The weight of tap t is mu(p, q) w_t for pixel p of a column and q its neighbour at t; xi counts each such q.
    """
    at, top = m % len(taps.weights), (m - window.rows // 2) % window.rows
    weights, mirrored = taps.weights[at], taps.mirrored[at]
    own = labels[m % window.rows]
    for i in range(0, len(inverse_xi), lanes(inverse_xi)):
        mine = load(own, i + window.columns // 2, inverse_xi)
        zero = broadcast(0, inverse_xi)
        xi = zero
        t = 0
        for k in range(window.rows):
            row = labels[wrap(top + k, window)]
            for j in range(i, i + window.columns):
                same = load(row, j, inverse_xi) == mine
                store(weights[t], i, where(same, window.weights[t], zero))
                if not window.symmetric:
                    store(mirrored[t], i, where(same, window.mirrored[t], zero))
                xi += where(same, window.counted[t], zero)
                t += 1
        store(inverse_xi, i, broadcast(1, inverse_xi) / xi)


@inlined
def merge(ring, m, window, weights, i, factor, out):
    """out[c] = factor sum_t weights[t] ring[row of t][c, shifted by t] of the columns from i on, for all classes.

    Four classes share a load of a weight; the last is computed again where their number is no multiple of four.
    """
    top, last = (m - window.rows // 2) % window.rows, len(out) - 1
    for a in range(0, len(out), 4):
        b, c, d = min(a + 1, last), min(a + 2, last), min(a + 3, last)
        sum_a = broadcast(0, out)
        sum_b, sum_c, sum_d = sum_a, sum_a, sum_a
        t = 0
        for k in range(window.rows):
            row = ring[wrap(top + k, window)]
            row_a, row_b, row_c, row_d = row[a], row[b], row[c], row[d]
            for j in range(i, i + window.columns):
                w = load(weights[t], i, out)
                sum_a += w * load(row_a, j, out)
                sum_b += w * load(row_b, j, out)
                sum_c += w * load(row_c, j, out)
                sum_d += w * load(row_d, j, out)
                t += 1
        store(out[a], i, factor * sum_a)
        store(out[b], i, factor * sum_b)
        store(out[c], i, factor * sum_c)
        store(out[d], i, factor * sum_d)
