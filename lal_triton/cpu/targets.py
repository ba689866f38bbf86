# mypy: ignore-errors
"""The target as the sweep reads it, checked on the way."""

import numpy as np

from lal_triton.cpu.compiling import compiled

VOID, INVALID = -1, -2


@compiled
def encode(target, first, last, num_classes, ignore_index, stride, weight, pixel_weight, labels, omega):
    """Rows [first, last) of one image: `labels.encode_labels`, and omega(p) = weight[y(p)] x pixel_weight(p).

    target, labels, omega: `[H, W]`; weight `[C]`, pixel_weight `[H, W]`, or empty.

    Returns the sum of omega in float64, and whether labels and pixel weights are what they may be.
    """
    zero, one = omega.dtype.type(0), omega.dtype.type(1)
    total, right = 0.0, True
    for y in range(first, last):
        for i in range(target.shape[1]):
            label = np.int64(target[y, i])
            if label == ignore_index:
                label = VOID
            elif label < 0 or label >= num_classes:
                label = INVALID
                right = False
            labels[y, i] = label
            value = one if label != VOID and y % stride == 0 and i % stride == 0 else zero
            if weight.size > 0 and value > zero:
                value = weight[max(label, 0)]
            if pixel_weight.size > 0:
                factor = pixel_weight[y, i]
                right &= zero <= factor < np.inf
                value = value * factor if value > zero else zero
            omega[y, i] = value
            total += value
    return total, right
