# mypy: ignore-errors
"""exp of vectors and log of numbers as polynomials, by the argument's type; NaN gives NaN.

exp(x), x <= 80: x = k ln 2 + r, |r| <= ln(2) / 2 (Cody and Waite). Adding a number whose last bit is worth 1 rounds k;
it holds the bias too, so that its last bits, shifted, are those of 2^k. The least k makes them 0, and the result.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from lal_triton.cpu.compiling import OPTIONS
from lal_triton.cpu.vectors import bits_of, float_of, where


def exp(x):
    """Of a vector. In compiled functions only."""
    raise NotImplementedError


def log_of_sum(a, b):
    """log(a + b) of finite a >= 0 and b, without the rounding of their sum in float32. In compiled functions only."""
    raise NotImplementedError


@overload(exp, jit_options=OPTIONS)
def _exp(x):
    return _exp32 if x.dtype == types.float32 else _exp64


@overload(log_of_sum, jit_options=OPTIONS)
def _log_of_sum(a, b):
    return _log_of_sum32 if a == types.float32 else _log_of_sum64


def _constants(real: type, mantissa: int, bias: int, high: float, degree: int) -> tuple[Any, ...]:
    """log2(e), the number that rounds, the least x, ln 2 in two parts, and the Taylor coefficients from `degree` on."""
    ln2 = math.log(2) - high if real is np.float32 else 1.42860682030941723212e-6
    values = (
        1 / math.log(2),
        1.5 * 2.0**mantissa + bias,
        -bias * math.log(2),
        high,
        ln2,
        *(1 / math.factorial(n) for n in range(degree, 1, -1)),
    )
    return tuple(map(real, values))


_LOG2E32, _ROUND32, _LOWEST32, _HIGH32, _LOW32, *_C32 = _constants(np.float32, 23, 127, 0.693359375, 7)
_LOG2E64, _ROUND64, _LOWEST64, _HIGH64, _LOW64, *_C64 = _constants(np.float64, 52, 1023, 0.693145751953125, 13)
(_A7, _A6, _A5, _A4, _A3, _A2), _ONE32 = _C32, np.float32(1)
_B13, _B12, _B11, _B10, _B9, _B8, _B7, _B6, _B5, _B4, _B3, _B2 = _C64
_SHIFT32, _SHIFT64 = np.int32(23), np.int64(52)


def _exp32(x):
    x = where(x < _LOWEST32, _LOWEST32, x)
    rounded = x * _LOG2E32 + _ROUND32
    k = rounded - _ROUND32
    r = (x - k * _HIGH32) - k * _LOW32
    r2 = r * r
    q = ((_A7 * r + _A6) * r2 + (_A5 * r + _A4)) * r2 + (_A3 * r + _A2)
    return (q * r2 + r + _ONE32) * float_of(bits_of(rounded) << _SHIFT32)


def _exp64(x):
    x = where(x < _LOWEST64, _LOWEST64, x)
    rounded = x * _LOG2E64 + _ROUND64
    k = rounded - _ROUND64
    r = (x - k * _HIGH64) - k * _LOW64
    q = ((((_B13 * r + _B12) * r + _B11) * r + _B10) * r + _B9) * r + _B8
    q = (((((q * r + _B7) * r + _B6) * r + _B5) * r + _B4) * r + _B3) * r + _B2
    return (q * (r * r) + r + 1.0) * float_of(bits_of(rounded) << _SHIFT64)


# log(1 + f) = f - f^2 / 2 + f^3 P(f) for -1/3 <= f < 1/3, P fitted by least squares, as in kernels/arithmetic.py.
_P7, _P6, _P5, _P4, _P3, _P2, _P1, _P0 = map(
    np.float32,
    (
        -0.128916934132576,
        0.13984452188014984,
        -0.12184257805347443,
        0.14005866646766663,
        -0.16680487990379333,
        0.20010405778884888,
        -0.24999797344207764,
        0.3333321511745453,
    ),
)
_TWO_THIRDS, _EXPONENT, _UNIT = np.int32(0x3F2AAAAB), np.int32(-0x800000), np.int32(0x3F800000)  # bits of float32
_HALF32, _LN2_OF_BITS = np.float32(0.5), np.float32(math.log(2) * 2.0**-23)


def _log_of_sum32(a, b):
    shifted = np.int32(bits_of(a + b) - _TWO_THIRDS) & _EXPONENT
    scale = float_of(np.int32(_UNIT - shifted))  # a + b = (1 + f) / scale
    f = a * scale + (b * scale - _ONE32)
    p = ((((_P7 * f + _P6) * f + _P5) * f + _P4) * f + _P3) * f + _P2
    p = ((p * f + _P1) * f + _P0) * f - _HALF32
    return np.float32(shifted) * _LN2_OF_BITS + (p * (f * f) + f)


def _log_of_sum64(a, b):
    return np.log1p(a) if b == 1.0 else np.log(a + b)
