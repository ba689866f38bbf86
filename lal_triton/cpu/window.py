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
def find_taps(labels, m, window, taps, inverse_xi):
    """Sets the taps of row m from a ring of rows of labels, and 1 / xi."""
    at = m % len(taps.weights)
    weigh_taps(labels, m, window, window.weights, taps.weights[at], inverse_xi)
    if not window.symmetric:
        weigh_taps(labels, m, window, window.mirrored, taps.mirrored[at], inverse_xi)


@inlined
def weigh_taps(labels, m, window, weights, out, inverse_xi):
    """`out[t, i]` = mu(p, q) w_t for pixel p of column i and q its neighbour at tap t; each such q is counted in xi."""
    own = labels[m % window.rows]
    for i in range(0, len(inverse_xi), lanes(out)):
        mine = load(own, i + window.columns // 2, out)
        xi = broadcast(0, out)
        t = 0
        for k in range(window.rows):
            row = labels[(m - window.rows // 2 + k) % window.rows]
            for j in range(i, i + window.columns):
                same = load(row, j, out) == mine
                store(out[t], i, where(same, weights[t], broadcast(0, out)))
                xi += where(same, window.counted[t], broadcast(0, out))
                t += 1
        store(inverse_xi, i, broadcast(1, out) / xi)


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
            at = top + k
            row = ring[at - window.rows if at >= window.rows else at]
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
