"""Installed versions that the kernels cannot run with are refused by name."""

import functools
import importlib.metadata
import re

TRITON_DISTRIBUTIONS = ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm", "triton-windows")
OLDEST_TRITON = (3, 5)  # has triton.constexpr_function
# Up to Triton 3.6 the interpreter makes numbers of arrays with one element, which numpy 2.4 refuses.
MENDED_TRITON, STRICT_NUMPY = (3, 7), (2, 4)


@functools.cache
def check_triton() -> None:
    """Raises where Triton is too old for the kernels."""
    version = installed(*TRITON_DISTRIBUTIONS)
    if version and numbers(version) < OLDEST_TRITON:
        raise RuntimeError(f"Triton is {version}, expected 3.5 or newer: install triton>=3.5 and torch>=2.9")


@functools.cache
def check_interpreter() -> None:
    """Raises where Triton's interpreter does not run under the installed numpy. On a GPU the two go together."""
    check_triton()
    triton, numpy = installed(*TRITON_DISTRIBUTIONS), installed("numpy")
    if triton and numpy and numbers(triton) < MENDED_TRITON and numbers(numpy) >= STRICT_NUMPY:
        raise RuntimeError(
            f"the interpreter of Triton {triton} fails under numpy {numpy}, expected Triton 3.7 or an older numpy: "
            'install "numpy<2.4" or "triton>=3.7"'
        )


def installed(*distributions: str) -> str | None:
    """The version of the first of these that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor: (3, 7) of "3.7.1+git"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
