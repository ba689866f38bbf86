# mypy: ignore-errors
"""The Minkowski mean's powers of a row of losses, in units of the largest loss so far, so that none overflows."""

import numpy as np

from lal_triton.cpu.compiling import inlined


@inlined
def largest_loss(losses, omega, largest):
    """The larger of `largest` and the losses that count."""
    zero = losses.dtype.type(0)
    for i in range(len(omega)):
        if omega[i] > zero and losses[i] > largest:
            largest = losses[i]
    return largest


@inlined
def weigh(losses, omega, p, scale, coefficient):
    """`coefficient` = omega (L / scale)^(p - 1); returns the sum of omega (L / scale)^p in float64."""
    real = losses.dtype.type
    zero, inverse = real(0), real(1) / scale
    if p == real(1):
        for i in range(len(omega)):
            coefficient[i] = omega[i]
    elif p == real(2):
        for i in range(len(omega)):
            coefficient[i] = omega[i] * (losses[i] * inverse) if omega[i] > zero else zero
    elif p == real(3):
        for i in range(len(omega)):
            share = losses[i] * inverse
            coefficient[i] = omega[i] * (share * share) if omega[i] > zero else zero
    else:
        for i in range(len(omega)):
            coefficient[i] = omega[i] * (losses[i] * inverse) ** (p - real(1)) if omega[i] > zero else zero
    total = 0.0
    for i in range(len(omega)):
        if omega[i] > zero:
            total += np.float64(coefficient[i]) * np.float64(losses[i] * inverse)
    return total
