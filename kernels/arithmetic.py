# mypy: ignore-errors
# ruff: noqa: RUF005
"""Logarithms and powers to an ulp or two: the hardware's are off by 2^-22 of 1, which costs small losses digits.

And what other files need for tuples.
"""

import triton
import triton.language as tl

from lal_triton.kernels.window import LN2


@triton.jit
def log_of_sum(a, b):
    """log(a + b) of float32 a >= 0 and b that are 0 or normal, without the rounding of their sum: log1p(a) for b = 1.

    With a + b = 2^k (1 + f), 2/3 <= 1 + f < 4/3: k ln 2 + f - f^2/2 + f^3 P(f), P fitted by least squares.
    """
    bits = (a + b).to(tl.int32, bitcast=True) - 0x3F2AAAAB  # those of 2/3
    shifted = bits & -0x800000  # sign and exponent
    scale = (0x3F800000 - shifted).to(tl.float32, bitcast=True)  # 2^-k
    f = a * scale + (b * scale - 1.0)
    p = -0.128916934132576 * f + 0.13984452188014984
    p = p * f - 0.12184257805347443
    p = p * f + 0.14005866646766663
    p = p * f - 0.16680487990379333
    p = p * f + 0.20010405778884888
    p = p * f - 0.24999797344207764
    p = p * f + 0.3333321511745453
    p = p * f - 0.5
    result = shifted.to(tl.float32) * (LN2 * 2.0**-23) + (p * (f * f) + f)
    return tl.where(a + b < float("inf"), result, a + b)


@triton.jit
def power(x, p):
    """x^p for x >= 0, p >= 0: whole powers by squaring, which loses no digits to a logarithm; p = 0 makes it 1."""
    whole = tl.floor(p).to(tl.int32)
    rest = p - whole.to(tl.float32)
    result = tl.where(rest > 0, tl.exp2(rest * tl.log2(x)), 1.0)
    square = x
    while whole > 0:
        result *= tl.where(whole % 2 == 1, square, 1.0)
        square *= square
        whole //= 2
    return result


@triton.jit
def bit_or(a, b):
    return a | b


@triton.jit
def scaled(values, factor):
    """Each of a tuple's values times a factor."""
    products = ()
    for k in tl.static_range(len(values)):
        products = products + (values[k] * factor,)
    return products
