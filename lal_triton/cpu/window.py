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

    weights: np.ndarray  # [Kh // 2 + 2, Kh Kw, W]
    mirrored: np.ndarray  # the same array where the window is symmetric


def make_taps(window, width, dtype):
    shape = window.rows // 2 + 2, window.rows * window.columns, width
    weights = zeros(dtype, *shape)
    return Taps(weights, weights if window.symmetric else zeros(dtype, *shape))


@inlined
def wrap(at, ring):
    """The place of a row in its ring, of `at` below twice the ring's length: a division would take longer."""
    return at - len(ring) if at >= len(ring) else at


@inlined
def find_taps(labels, m, window, taps, inverse_xi):
    """Sets the taps of row m from a ring of rows of labels, and 1 / xi.

    The weight of tap t is mu(p, q) w_t for pixel p of a column and q its neighbour at t; xi counts each such q.
    """
    at, own, top = m % len(taps.weights), m % len(labels), (m - window.rows // 2) % len(labels)
    zero, one = broadcast(0, inverse_xi), broadcast(1, inverse_xi)
    for i in range(0, len(inverse_xi), lanes(inverse_xi)):
        mine = load(labels, (own, i + window.columns // 2), inverse_xi)
        xi = zero
        t = 0
        for k in range(window.rows):
            row = wrap(top + k, labels)
            for j in range(i, i + window.columns):
                same = load(labels, (row, j), inverse_xi) == mine
                store(taps.weights, (at, t, i), where(same, window.weights[t], zero))
                if not window.symmetric:
                    store(taps.mirrored, (at, t, i), where(same, window.mirrored[t], zero))
                xi += where(same, window.counted[t], zero)
                t += 1
        store(inverse_xi, i, one / xi)


@inlined
def merge(ring, m, window, weights, i, first_factor, second_factor, out):
    """Merges rows m and m + 1 of a ring, all classes, columns from i on, to out `[2, C, W]`.

    out[n, c] = factor_n sum_t weights[m + n, t] ring[row of t][c, shifted by t]

    Both rows share the loads of a row that both windows hold, three classes those of weights. The last class is
    computed again where their number is no multiple of three.
    """
    top, columns, last = (m - window.rows // 2) % len(ring), window.columns, out.shape[1] - 1
    first, second = m % len(weights), (m + 1) % len(weights)
    if window.rows * columns == 1:
        w, v = load(weights, (first, 0, i), out), load(weights, (second, 0, i), out)
        for c in range(out.shape[1]):
            store(out, (0, c, i), first_factor * (w * load(ring, (top, c, i), out)))
            store(out, (1, c, i), second_factor * (v * load(ring, (wrap(top + 1, ring), c, i), out)))
        return
    for a in range(0, out.shape[1], 3):
        b, c = min(a + 1, last), min(a + 2, last)
        first_a = broadcast(0, out)
        first_b, first_c, second_a, second_b, second_c = first_a, first_a, first_a, first_a, first_a
        for j in range(columns):
            w = load(weights, (first, j, i), out)
            first_a += w * load(ring, (top, a, i + j), out)
            first_b += w * load(ring, (top, b, i + j), out)
            first_c += w * load(ring, (top, c, i + j), out)
        t = columns
        for k in range(1, window.rows):
            row = wrap(top + k, ring)
            for j in range(i, i + columns):
                w, v = load(weights, (first, t, i), out), load(weights, (second, t - columns, i), out)
                s_a, s_b, s_c = load(ring, (row, a, j), out), load(ring, (row, b, j), out), load(ring, (row, c, j), out)
                first_a += w * s_a
                first_b += w * s_b
                first_c += w * s_c
                second_a += v * s_a
                second_b += v * s_b
                second_c += v * s_c
                t += 1
        row = wrap(top + window.rows, ring)
        for j in range(columns):
            w = load(weights, (second, t - columns + j, i), out)
            second_a += w * load(ring, (row, a, i + j), out)
            second_b += w * load(ring, (row, b, i + j), out)
            second_c += w * load(ring, (row, c, i + j), out)
        store(out, (0, a, i), first_factor * first_a)
        store(out, (0, b, i), first_factor * first_b)
        store(out, (0, c, i), first_factor * first_c)
        store(out, (1, a, i), second_factor * second_a)
        store(out, (1, b, i), second_factor * second_b)
        store(out, (1, c, i), second_factor * second_c)
