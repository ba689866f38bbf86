# mypy: ignore-errors
"""Loops over rows: numba compiles more for an assignment to a slice than for a loop."""

from lal_triton.cpu.compiling import inlined


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
