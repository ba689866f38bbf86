# mypy: ignore-errors
"""Memory for rows, and loops over rows: numba compiles more for an assignment to a slice than for a loop."""

import torch

from lal_triton.cpu.compiling import inlined


def zeros(dtype, *shape):
    """From torch's allocator, whose profiler counts it, but not filled by torch's threads, which go on spinning."""
    rows = torch.empty(shape, dtype=dtype).numpy()
    rows.fill(0)
    return rows


@inlined
def fill(rows, value):
    for c in range(len(rows)):
        row = rows[c]
        for i in range(len(row)):
            row[i] = value


@inlined
def shrink(planes, factor):
    for plane in planes:
        for row in plane:
            for i in range(len(row)):
                row[i] *= factor
