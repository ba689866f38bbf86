# mypy: ignore-errors
"""A gradient times a factor for each of its rows, which the backward knows."""

from lal_triton.cpu.compiling import compiled


@compiled
def scale_rows(gradient, factor, out):
    """`[C, h, w]` contiguous planes times `[h]`; 0 stays 0, also where the factor is NaN: void has no gradient."""
    zero = gradient.dtype.type(0)
    for c in range(len(gradient)):
        for y in range(len(factor)):
            row, line, by = gradient[c, y], out[c, y], factor[y]
            for i in range(len(line)):
                line[i] = row[i] * by if row[i] != zero else zero
