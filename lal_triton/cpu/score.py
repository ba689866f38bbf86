# mypy: ignore-errors
"""Standard scores of a row of pixels, and the way back: classes are rows, pixels columns, of every array here."""

import numpy as np

from lal_triton.cpu.compiling import inlined

LARGE = 2.0**40  # squares of logits beyond may overflow in float32


@inlined
def score(z, first, mean, variance, rstd, eps):
    """Logits `z` `[C, W]` become (z - mean) / sqrt(variance + eps), and `rstd` `[W]` 1 / sqrt(variance + eps).

    The differences to the first class are what is averaged: a large common offset of the logits does not round them.
    """
    classes, width = z.shape
    one = z.dtype.type(1)
    share = one / z.dtype.type(classes)
    for i in range(width):
        first[i] = z[0, i]
    mean[:] = 0
    variance[:] = 0
    for c in range(classes):
        row = z[c]
        for i in range(width):
            mean[i] += row[i] - first[i]
    for i in range(width):
        mean[i] *= share
    for c in range(classes):
        row = z[c]
        for i in range(width):
            row[i] = (row[i] - first[i]) - mean[i]
        for i in range(width):
            variance[i] += row[i] * row[i]
    finite = True
    for i in range(width):
        rstd[i] = one / np.sqrt(variance[i] * share + eps)
    for i in range(width):
        finite &= variance[i] - variance[i] == 0
    for c in range(classes):
        row = z[c]
        for i in range(width):
            row[i] *= rstd[i]
    return finite


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
def unscore(dz, z, rstd, border, mean, product):
    """The gradient of the logits from that of their scores, rstd (dz - mean(dz) - z mean(dz z)), in place.

    `z` and `rstd` have a border of columns on both sides.
    """
    classes, width = dz.shape
    share = dz.dtype.type(1) / dz.dtype.type(classes)
    rstd = rstd[border : border + width]
    mean[:width] = 0
    product[:width] = 0
    for c in range(classes):
        row, score = dz[c], z[c, border : border + width]
        for i in range(width):
            mean[i] += row[i]
        for i in range(width):
            product[i] += row[i] * score[i]
    for i in range(width):
        mean[i] *= share
    for i in range(width):
        product[i] *= share
    for c in range(classes):
        row, score = dz[c], z[c, border : border + width]
        for i in range(width):
            row[i] = rstd[i] * (row[i] - mean[i] - score[i] * product[i])
