# mypy: ignore-errors
"""The masked window (Eq. 1-2) and its transpose, on vectors of columns.

A pixel has a weight for each tap, 0 where the neighbour's label is another: the loss and its gradient share it.
"""

from typing import NamedTuple

import numpy as np

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.memory import zeros
from lal_triton.cpu.vectors import broadcast, lanes, load, slide, store, where


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
    weights, *mirrored = zeros(dtype, *[shape] * (1 if window.symmetric else 2))
    return Taps(weights, *mirrored or [weights])


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
    top, taps, classes = (m - window.rows // 2) % len(ring), weights.shape[1], ring.shape[1]
    first, second = m % len(weights), (m + 1) % len(weights)
    if taps == 1:
        w, v = load(weights, (first, 0, i), out), load(weights, (second, 0, i), out)
        for c in range(classes):
            store(out, (0, c, i), first_factor * (w * load(ring, (top, c, i), out)))
            store(out, (1, c, i), second_factor * (v * load(ring, (wrap(top + 1, ring), c, i), out)))
        return
    zero, last = broadcast(0, out), classes - 1
    across, of_taps = ring.shape[2], window.columns * out.shape[2]
    for a in range(0, classes, 3):
        b, c = min(a + 1, last), min(a + 2, last)
        at, to_b, to_c = (top * classes + a) * across + i, (b - a) * across, (c - a) * across
        w, v = first * window.rows * of_taps + i, second * window.rows * of_taps + i
        upper = add_to_one((zero, zero, zero), ring, at, to_b, to_c, weights, w, window.columns)
        lower = zero, zero, zero
        for _ in range(1, window.rows):
            at, w = next_row(at, ring), w + of_taps
            upper, lower = add_to_both(upper, lower, ring, at, to_b, to_c, weights, w, v, window.columns)
            v += of_taps
        lower = add_to_one(lower, ring, next_row(at, ring), to_b, to_c, weights, v, window.columns)
        store(out, (0, a, i), first_factor * upper[0])
        store(out, (0, b, i), first_factor * upper[1])
        store(out, (0, c, i), first_factor * upper[2])
        store(out, (1, a, i), second_factor * lower[0])
        store(out, (1, b, i), second_factor * lower[1])
        store(out, (1, c, i), second_factor * lower[2])


@inlined
def next_row(at, ring):
    """The index of the memory one row of the ring further."""
    further = at + ring.shape[1] * ring.shape[2]
    return further - ring.size if further >= ring.size else further


@inlined
def add_to_one(sums, ring, at, to_b, to_c, weights, w, columns):
    """Adds a row of the ring to the sums of three classes of one merged row.

    `at` of the ring, `w` of the weights: indices of the memory, since those of dimensions are multiplied for each load.
    """
    a, b, c = load(ring, at, ring), load(ring, at + to_b, ring), load(ring, at + to_c, ring)
    sums = add(sums, load(weights, w, ring), a, b, c)
    at += lanes(ring) - 1
    for _ in range(1, columns):
        at += 1
        w += weights.shape[2]
        a, b, c = slide(a, ring, at), slide(b, ring, at + to_b), slide(c, ring, at + to_c)
        sums = add(sums, load(weights, w, ring), a, b, c)
    return sums


@inlined
def add_to_both(upper, lower, ring, at, to_b, to_c, weights, w, v, columns):
    """`add_to_one` for two merged rows, one above the other."""
    a, b, c = load(ring, at, ring), load(ring, at + to_b, ring), load(ring, at + to_c, ring)
    upper, lower = add(upper, load(weights, w, ring), a, b, c), add(lower, load(weights, v, ring), a, b, c)
    at += lanes(ring) - 1
    for _ in range(1, columns):
        at += 1
        w += weights.shape[2]
        v += weights.shape[2]
        a, b, c = slide(a, ring, at), slide(b, ring, at + to_b), slide(c, ring, at + to_c)
        upper, lower = add(upper, load(weights, w, ring), a, b, c), add(lower, load(weights, v, ring), a, b, c)
    return upper, lower


@inlined
def add(sums, w, a, b, c):
    return sums[0] + w * a, sums[1] + w * b, sums[2] + w * c
