# mypy: ignore-errors
"""Memory for rows, and loops over rows: numba compiles more for an assignment to a slice than for a loop."""

import itertools
import math

import torch

from lal_triton.cpu.compiling import inlined


def zeros(dtype, *shapes):
    """An array of each shape, in one piece from torch's allocator, whose profiler counts it.

    torch would fill it in parallel, by threads that go on spinning.
    """
    sizes = [math.prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes), dtype=dtype).numpy()
    memory.fill(0)
    ends = itertools.accumulate(sizes)
    return [memory[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]


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
