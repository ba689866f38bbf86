# mypy: ignore-errors
"""exp(x) for x <= 80 as a polynomial that LLVM makes vectors of, in float32 and float64; NaN gives NaN.

x = k ln 2 + r, |r| <= ln(2) / 2 (Cody and Waite), and k is added to the exponent's bits. Adding a number whose last bit
is worth 1 rounds k. Results below the smallest normal number are 0.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from lal_triton.cpu.compiling import OPTIONS


@intrinsic
def bits_of(context: Any, x: Any) -> Any:
    integer, kind = (types.int32, ir.IntType(32)) if x == types.float32 else (types.int64, ir.IntType(64))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], kind)

    return integer(x), generate


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    real, kind = (types.float32, ir.FloatType()) if bits == types.int32 else (types.float64, ir.DoubleType())

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], kind)

    return real(bits), generate


def exp(x):
    """In compiled functions only."""
    raise NotImplementedError


@overload(exp, jit_options=OPTIONS)
def _exp(x):
    return _exp32 if x == types.float32 else _exp64


def _constants(real: type, mantissa: int, lowest: float, high: float, degree: int) -> tuple[Any, ...]:
    """log2(e), the rounding number, the least x, ln 2 in two parts, and the Taylor coefficients from `degree` on."""
    ln2 = math.log(2) - high if real is np.float32 else 1.42860682030941723212e-6
    values = (
        1 / math.log(2),
        1.5 * 2.0**mantissa,
        lowest,
        high,
        ln2,
        *(1 / math.factorial(n) for n in range(degree, 1, -1)),
    )
    return tuple(map(real, values))


_LOG2E32, _ROUND32, _LOWEST32, _HIGH32, _LOW32, *_C32 = _constants(np.float32, 23, -87.0, 0.693359375, 7)
_LOG2E64, _ROUND64, _LOWEST64, _HIGH64, _LOW64, *_C64 = _constants(np.float64, 52, -708.0, 0.693145751953125, 13)
(_A7, _A6, _A5, _A4, _A3, _A2), _ZERO32, _ONE32 = _C32, np.float32(0), np.float32(1)
_B13, _B12, _B11, _B10, _B9, _B8, _B7, _B6, _B5, _B4, _B3, _B2 = _C64
_SHIFT32, _SHIFT64 = np.int32(23), np.int64(52)


def _exp32(x):
    vanishes = x < _LOWEST32
    x = _LOWEST32 if vanishes else x
    rounded = x * _LOG2E32 + _ROUND32
    k = rounded - _ROUND32
    r = (x - k * _HIGH32) - k * _LOW32
    q = ((((_A7 * r + _A6) * r + _A5) * r + _A4) * r + _A3) * r + _A2
    result = float_of(np.int32(bits_of(q * (r * r) + r + _ONE32) + (bits_of(rounded) << _SHIFT32)))
    return _ZERO32 if vanishes else result


def _exp64(x):
    vanishes = x < _LOWEST64
    x = _LOWEST64 if vanishes else x
    rounded = x * _LOG2E64 + _ROUND64
    k = rounded - _ROUND64
    r = (x - k * _HIGH64) - k * _LOW64
    q = ((((_B13 * r + _B12) * r + _B11) * r + _B10) * r + _B9) * r + _B8
    q = (((((q * r + _B7) * r + _B6) * r + _B5) * r + _B4) * r + _B3) * r + _B2
    result = float_of(bits_of(q * (r * r) + r + 1.0) + (bits_of(rounded) << _SHIFT64))
    return 0.0 if vanishes else result
