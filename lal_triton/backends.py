"""Which implementation runs."""

import importlib.util
import os

import torch

from lal_triton import validation


def choose_backend(backend: str, logits: torch.Tensor) -> str:
    """The backend that runs: "auto" is Triton where it serves the tensor, else torch; "triton" runs or raises."""
    validation.check_choice("backend", backend, validation.BACKENDS)
    if backend == "auto":
        served = logits.device.type == "cuda" and logits.dtype != torch.float64 and _triton_is_installed()
        return "triton" if served else "torch"
    if backend == "triton":
        if logits.dtype == torch.float64:
            raise TypeError('backend is "triton" and logits float64, expected float32, float16 or bfloat16')
        if not _triton_is_installed():
            raise ValueError('backend is "triton", expected "torch" or "auto": Triton is not installed')
        if logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                'backend is "triton" and logits are on the CPU, expected a GPU tensor '
                "(or TRITON_INTERPRET=1 in the environment before the process starts, to interpret the kernels)"
            )
    return backend


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
