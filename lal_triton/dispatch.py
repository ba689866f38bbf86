"""Which implementation runs."""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from lal_triton import validation, versions
from lal_triton.kernels.host import stand_in

Function = TypeVar("Function", bound=Callable)


def constant_in_graphs(function: Function) -> Function:
    """torch.compiler.assume_constant_result without its import of the compiler, and of Triton with it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def backend_for(backend: str, logits: torch.Tensor) -> str:
    """The backend for these logits: "cpu", "triton", "reference", or "by image", the reference in little memory."""
    chosen = choose_backend(backend, logits.device.type, logits.dtype)
    if len(logits) == 0:
        return "reference"
    if validation.has_tangent(logits):
        if backend not in ("auto", "reference"):
            raise NotImplementedError(
                f'backend is "{backend}" and logits carry a forward-mode derivative, expected "reference" or "auto"'
            )
        return "reference"
    return chosen


@constant_in_graphs  # it reads the environment, which is no part of a graph
def choose_backend(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend for such logits. "auto" takes the fastest that serves them; "triton" and "cpu" run or raise."""
    if backend == "torch":
        warnings.warn('backend="torch" is "auto" without Triton now; pass "auto" or "cpu"', DeprecationWarning, 2)
    if backend == "triton":
        _check_triton(device_type, dtype)
    elif backend == "cpu":
        _check_cpu(device_type)
    elif backend != "reference":
        return _automatic(backend == "auto", device_type, dtype)
    return backend


def _automatic(triton: bool, device_type: str, dtype: torch.dtype) -> str:
    if triton and device_type == "cuda" and dtype != torch.float64 and _is_installed("triton"):
        versions.check_triton()
        return "triton"
    if device_type != "cpu":
        return "by image"
    if not numba_works():
        _warn_of_numba()
        return "by image"
    return "cpu"


def _check_cpu(device_type: str) -> None:
    if device_type != "cpu":
        raise ValueError(f'backend is "cpu" and logits are on {device_type}, expected "auto" or a tensor on the CPU')
    if not numba_works():
        raise ValueError('backend is "cpu", expected "reference" or "auto": numba cannot be imported')


def _check_triton(device_type: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise TypeError('backend is "triton" and logits float64, expected float32, float16 or bfloat16')
    if not _is_installed("triton"):
        raise ValueError('backend is "triton", expected "auto": Triton is not installed')
    stands_in = stand_in.current is not None
    if device_type == "cpu" and not stands_in and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            'backend is "triton" and logits are on the CPU, expected a GPU tensor '
            "(or TRITON_INTERPRET=1 in the environment before the process starts, to interpret the kernels)"
        )
    if device_type == "cpu" and not stands_in:
        versions.check_interpreter()
    versions.check_triton()


@functools.cache
def _warn_of_numba() -> None:
    """Once in a process."""
    validation.warn(
        "numba cannot be imported: losses on a CPU are computed in plain torch, many times slower; pip install numba "
        "(and a numpy that it supports)"
    )


@functools.cache
def numba_works() -> bool:
    """numba refuses versions of numpy that are newer than it knows."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
