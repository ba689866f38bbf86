# mypy: ignore-errors
"""Loss and gradient of a band of rows in one sweep: each row of logits is read, scored and merged once.

A row's window is complete when the window's last row has been scored; its gradient, when the last row whose window
holds it has been merged. Rings keep the rows that are still needed, so that a band passes through a core's cache.
Rows come in pairs, since two windows one above the other share most of their rows.
"""

from typing import NamedTuple

import numpy as np
import torch

from lal_triton.cpu import logits
from lal_triton.cpu.compiling import compiled, inlined
from lal_triton.cpu.memory import zeros
from lal_triton.cpu.pixel_loss import COEFFICIENT, LOSS, PLANES, differentiate, exponentiate, pixel_loss, sum_of
from lal_triton.cpu.powers import largest_loss, weigh
from lal_triton.cpu.rows import fill, shrink
from lal_triton.cpu.score import score, score_large, unscore
from lal_triton.cpu.vectors import BYTES, broadcast, lanes, load
from lal_triton.cpu.window import Taps, find_taps, make_taps, merge
from lal_triton.labels import VOID


class Settings(NamedTuple):
    """Options, with numbers of the losses' dtype."""

    normalize: bool
    eps: np.floating
    bounded: bool  # exp(f_c - f_y) does not overflow
    focal: bool
    alpha: np.floating
    gamma: np.floating
    smoothing: np.floating
    p: np.floating
    tiny: np.floating  # the smallest normal number


class Rings(NamedTuple):
    """The rows that are still needed, with a border of half a window on both sides; row y lies at y modulo Kh + 1.

    Rows are whole vectors, so that all begin where a cache line does.
    """

    labels: np.ndarray  # [Kh + 1, border + W + border]
    scores: np.ndarray  # [Kh + 1, C, ...]
    rstds: np.ndarray  # [Kh + 1, ...]
    slopes: np.ndarray  # [Kh + 1, C, ...], the gradient of the merged logits, / xi


class Workspace(NamedTuple):
    """Of a thread, for one band after the other. W is rounded up to an odd number of vectors."""

    rings: Rings
    taps: Taps
    f: np.ndarray  # [2, C, W], the merged logits of two rows, or the gradient of their logits
    planes: np.ndarray  # [2, PLANES, W]
    inverse_xi: np.ndarray  # [2, W]
    between: logits.Between | None


def make_workspace(window, tables, classes, width, dtype):
    rows, border = window.rows + 1, window.columns // 2
    whole = _padded(width, dtype)
    across = _padded(whole + 2 * border, dtype)
    (labels,) = zeros(torch.int32, (rows, across))
    labels[:] = VOID
    ring = rows, classes, across
    shapes = ring, (rows, across), ring, (2, classes, whole), (2, PLANES, whole), (2, whole)
    scores, rstds, slopes, f, planes, inverse_xi = zeros(dtype, *shapes)
    between = None if tables is None else logits.make_between(tables, classes, whole, dtype)
    rings, taps = Rings(labels, scores, rstds, slopes), make_taps(window, whole, dtype)
    return Workspace(rings, taps, f, planes, inverse_xi, between)


def _padded(columns, dtype):
    """An odd number of vectors: rows that lie a power of two apart share few sets of a cache."""
    vector = BYTES // dtype.itemsize
    return (-(-columns // vector) | 1) * vector


@inlined
def fetch_row(x, place, tables, between, y, labels, border, width, z):
    """Row y of the logits at full resolution."""
    if tables is None:
        logits.read(x, place, y, labels[border : border + width], border, z)
    else:
        logits.interpolate(x, place, tables, between, y, labels, border, z)


@inlined
def standardise(z, rstd, border, width, eps):
    """Scores a row of logits z in place, and returns whether every variance is finite: if not, z must be read again."""
    finite = True
    for i in range(border, border + width, lanes(z)):
        finite &= score(z, i, rstd, eps)
    return finite


@inlined
def score_row(rings, x, place, tables, between, y, labels, border, settings):
    """Labels and scores of row y, to the rings; outside of the image, void and 0."""
    height, width = labels.shape
    at = y % len(rings.labels)
    row, z, rstd = rings.labels[at], rings.scores[at], rings.rstds[at]
    if 0 <= y < height:
        for i in range(width):
            row[border + i] = labels[y, i]
        fetch_row(x, place, tables, between, y, row, border, width, z)
        if settings.normalize and not standardise(z, rstd, border, width, settings.eps):
            fetch_row(x, place, tables, between, y, row, border, width, z)
            for i in range(border, border + width):
                score_large(z, rstd, i, settings.eps)
    else:
        for i in range(len(row)):
            row[i] = VOID
        fill(z, z.dtype.type(0))


@inlined
def losses_of_pair(rings, m, window, taps, class_weight, whole, settings, f, inverse_xi, planes, width):
    """The losses of rows m and m + 1, whose windows are complete."""
    border = window.columns // 2
    for n in range(2):
        find_taps(rings.labels, m + n, window, taps, inverse_xi[n])
    for i in range(0, f.shape[2], lanes(f)):
        first_factor, second_factor = load(inverse_xi, (0, i), f), load(inverse_xi, (1, i), f)
        merge(rings.scores, m, window, taps.weights, i, first_factor, second_factor, f)
        for n in range(2):
            exponentiate(f[n], i, rings.labels[(m + n) % len(rings.labels)], border, class_weight, settings, planes[n])
    for n in range(2):
        labels = rings.labels[(m + n) % len(rings.labels)]
        pixel_loss(labels[border : border + width], class_weight, whole, settings, planes[n])


@compiled
def sweep(
    workspace,
    x,
    place,
    tables,
    labels,
    omega,
    class_weight,
    window,
    settings,
    first,
    last,
    losses,
    gradient,
    target,
    scales,
):
    """Rows [first, last) of one image's labels.

    x, place: the logits' storage, flat, and where class 0 of row 0 begins in it, with three strides.
    tables: None, or `logits.Tables` of the interpolation.
    labels, omega: `[H, W]`; class_weight: `[C]`.
    losses: `[H, W]` to fill, or empty.
    gradient, target: flat with its place; through an interpolation `[rows, C, w]`, of the band's low-resolution rows;
        empty: none is computed.
    scales: `[H]` to fill with the scale of each row of the gradient (at full resolution).

    Returns the last scale, and the sum of omega (L / scale)^p.
    """
    rings, taps, f, planes, inverse_xi, between = workspace
    height, width = labels.shape
    real = class_weight.dtype.type
    one = real(1)
    up, border = window.rows // 2, window.columns // 2
    derive, whole = gradient.size > 0, sum_of(class_weight)
    back = up if derive else 0
    if tables is not None:
        logits.begin(tables, between, first)

    scale, total = one if settings.p == one else settings.tiny, 0.0
    for y in range(first - up - back, last + up + back, 2):
        for entered in range(y, y + 2):
            score_row(rings, x, place, tables, between, entered, labels, border, settings)

        first_merged = y - up  # its window is complete, and that of the row below
        if first_merged >= first - back:
            losses_of_pair(
                rings, first_merged, window, taps, class_weight, whole, settings, f, inverse_xi, planes, width
            )
        for n in range(2):
            m = first_merged + n
            own, slope = rings.labels[m % len(rings.labels)], rings.slopes[m % len(rings.slopes)]
            loss, coefficient = planes[n, LOSS], planes[n, COEFFICIENT]
            if not first - back <= m < last + back:
                continue
            if not 0 <= m < height:
                fill(slope, real(0))
                continue
            if losses.size > 0 and first <= m < last:
                for i in range(width):
                    losses[m, i] = loss[i]
            if settings.p != one:
                largest = largest_loss(loss, omega[m], scale)
                if largest > scale:
                    change = scale / largest
                    total *= np.float64(change) ** settings.p
                    change = change ** (settings.p - one)
                    shrink(rings.slopes, change)
                    if tables is not None:
                        shrink(between.sums, change)
                        shrink(gradient, change)
                    scale = largest
            part = weigh(loss, omega[m], settings.p, scale, coefficient)
            if first <= m < last:
                total += part
            if derive:
                for i in range(width):
                    coefficient[i] *= inverse_xi[n, i]
                for i in range(0, f.shape[2], lanes(f)):
                    differentiate(f[n], i, own, border, class_weight, settings.smoothing, whole, planes[n], slope)

        complete = first_merged - up  # its gradient is, and that of the row below
        if derive and complete >= first:
            if tables is not None:
                logits.advance(tables, between, tables.lower_row[complete], gradient)
            for i in range(0, f.shape[2], lanes(f)):
                merge(rings.slopes, complete, window, taps.mirrored, i, broadcast(1, f), broadcast(1, f), f)
                for n in range(2):
                    o, at = complete + n, (complete + n) % len(rings.scores)
                    if settings.normalize:
                        unscore(f[n], rings.scores[at], rings.rstds[at], border, i)
                    if tables is not None and o < last:
                        logits.spread(f[n], i, tables, between, o, rings.labels[at], border)
            if tables is None:
                for o in range(complete, min(complete + 2, last)):
                    logits.write(gradient, target, o, labels[o], f[o - complete])
                    scales[o] = scale
    if tables is not None and derive:
        logits.finish(tables, between, gradient)
    return scale, total
