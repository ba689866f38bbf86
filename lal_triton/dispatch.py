"""Which implementation runs."""

import importlib.util
import os
from collections.abc import Callable
from typing import TypeVar

import torch

from lal_triton import validation, versions
from lal_triton.kernels.configs import upsampling_is_served
from lal_triton.options import LocalLoss

Function = TypeVar("Function", bound=Callable)


def constant_in_graphs(function: Function) -> Function:
    """torch.compiler.assume_constant_result without its import of the compiler, and of Triton with it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def backend_for(backend: str, logits: torch.Tensor, size: torch.Size, options: LocalLoss) -> str:
    """The backend for these logits and labels of this size."""
    chosen = choose_backend(backend, logits.device.type, logits.dtype)
    if len(logits) == 0:
        return "reference"
    if validation.has_tangent(logits):
        if backend not in ("auto", "reference"):
            raise NotImplementedError(
                f'backend is "{backend}" and logits carry a forward-mode derivative, expected "reference" or "auto"'
            )
        return "reference"
    low = logits.shape[2:]
    if chosen != "triton" or low == size or upsampling_is_served(low, size, options):
        return chosen
    if backend == "triton":
        raise NotImplementedError(
            'backend is "triton" and logits hardly smaller than target, expected "torch" or "auto": the kernels '
            "upsample by 2 and more"
        )
    return "torch"


@constant_in_graphs  # it reads the environment, which is no part of a graph
def choose_backend(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend for such logits: "auto" is Triton where it serves them, else torch; "triton" runs or raises."""
    validation.check_choice("backend", backend, validation.BACKENDS)
    if backend == "auto":
        if device_type != "cuda" or dtype == torch.float64 or not _triton_is_installed():
            return "torch"
        versions.check_triton()
        return "triton"
    if backend == "triton":
        if dtype == torch.float64:
            raise TypeError('backend is "triton" and logits float64, expected float32, float16 or bfloat16')
        if not _triton_is_installed():
            raise ValueError('backend is "triton", expected "torch" or "auto": Triton is not installed')
        if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                'backend is "triton" and logits are on the CPU, expected a GPU tensor '
                "(or TRITON_INTERPRET=1 in the environment before the process starts, to interpret the kernels)"
            )
        if device_type == "cpu":
            versions.check_interpreter()
        versions.check_triton()
    return backend


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
