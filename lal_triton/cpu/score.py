# mypy: ignore-errors
"""Standard scores of pixels, and the way back: classes are rows, pixels columns, of every array here."""

import numpy as np

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.vectors import broadcast, every, load, sqrt, store

LARGE = 2.0**40  # squares of logits beyond may overflow in float32


@inlined
def score(z, i, rstd, eps):
    """Logits `z` `[C, W]` of the columns from i on become (z - mean) / sqrt(variance + eps); `rstd` the last factor.

    The differences to the first class are what is averaged: a large common offset of the logits does not round them.

    Returns whether all of the variances are finite.
    """
    classes = len(z)
    share = z.dtype.type(1) / z.dtype.type(classes)
    first = load(z, (0, i), z)
    mean = broadcast(0, z)
    for c in range(1, classes):
        mean += load(z, (c, i), z) - first
    mean *= share
    variance = broadcast(0, z)
    for c in range(classes):
        centred = (load(z, (c, i), z) - first) - mean
        store(z, (c, i), centred)
        variance += centred * centred
    factor = broadcast(1, z) / sqrt(variance * share + eps)
    for c in range(classes):
        store(z, (c, i), load(z, (c, i), z) * factor)
    store(rstd, i, factor)
    return every(variance - variance == 0)


@inlined
def score_large(z, rstd, i, eps):
    """`score` of pixel i: logits as read are scaled by a power of two before they are squared, and eps with them."""
    classes = len(z)
    one = z.dtype.type(1)
    largest = z.dtype.type(0)
    for c in range(classes):
        largest = max(largest, abs(z[c, i]))
    scale = one
    if LARGE < largest < np.inf:
        scale = z.dtype.type(2.0 ** -np.floor(np.log2(largest)))
    first, mean, variance = z[0, i] * scale, z.dtype.type(0), z.dtype.type(0)
    for c in range(classes):
        z[c, i] = z[c, i] * scale - first
        mean += z[c, i]
    mean /= z.dtype.type(classes)
    for c in range(classes):
        z[c, i] -= mean
        variance += z[c, i] * z[c, i]
    variance /= z.dtype.type(classes)
    if variance == 0:
        rstd[i] = one / np.sqrt(eps)
    else:
        root = one / np.sqrt(variance + eps * scale * scale)
        for c in range(classes):
            z[c, i] *= root
        rstd[i] = root * scale


@inlined
def unscore(dz, z, rstd, border, i):
    """The gradient of the logits from that of their scores, rstd (dz - mean(dz) - z mean(dz z)), in place.

    Of the columns from i on; `z` and `rstd` have a border of columns on both sides.
    """
    classes = len(dz)
    share = dz.dtype.type(1) / dz.dtype.type(classes)
    mean, product = broadcast(0, dz), broadcast(0, dz)
    for c in range(classes):
        slope = load(dz, (c, i), dz)
        mean += slope
        product += slope * load(z, (c, border + i), dz)
    mean *= share
    product *= share
    factor = load(rstd, border + i, dz)
    for c in range(classes):
        store(dz, (c, i), factor * (load(dz, (c, i), dz) - mean - load(z, (c, border + i), dz) * product))
