"""Kernels, and launches of them that are prepared once and repeated at little cost on the host."""

# mypy: disable-error-code="misc"

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

# A stride of 1 is known to the compiler. Nothing else that varies from batch to batch is, nor a pointer's alignment:
# no lane loads more than one element at a time, so it would gain nothing and be compiled again.
SPECIALIZED = ("stride_w", "out_w")


def kernel(function: Callable[..., None]) -> Any:
    parameters = inspect.signature(function).parameters.values()
    variable = [p.name for p in parameters if p.annotation is not tl.constexpr and p.name not in SPECIALIZED]
    return triton.jit(function, do_not_specialize=variable, do_not_specialize_on_alignment=variable)


_recorded: list["Launch"] | None = None


class Launch:
    """A kernel with its grid and all arguments but the tensors, its first parameters, which each call gives.

    Triton looks at every argument of every launch to find what it has compiled. Dtypes, sizes and strides never change
    for a `Launch`, so it asks once and from then on calls the driver with what it got.
    """

    def __init__(self, kernel: Any, programs: int, constants: dict[str, Any]) -> None:
        self.kernel, self.grid, self.constants = kernel, (programs, 1, 1), constants
        self.tensors = tuple(name for name in kernel.arg_names if name not in constants)
        self.given: tuple[torch.Tensor | None, ...] = ()
        self._rest = tuple(constants[name] for name in kernel.arg_names[len(self.tensors) :])
        self._compiled: Any = None

    def __call__(self, stream: int | None, *tensors: torch.Tensor | None) -> None:
        if stream is None or self._compiled is None:
            self._start(tensors)
            return
        self._run(*self.grid, stream, self._function, self._metadata, None, None, None, *tensors, *self._rest)

    def _start(self, tensors: tuple[torch.Tensor | None, ...]) -> None:
        if _recorded is not None:
            self.given = tensors
            _recorded.append(self)
            return
        compiled = self.kernel[self.grid](**dict(zip(self.tensors, tensors, strict=True)), **self.constants)
        if compiled is not None:  # as it is in the interpreter
            self._compiled = compiled
            self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata


def current_stream(device: torch.device) -> int | None:
    """Where launches go; None where Triton has hooks to call before each, as a profiler's."""
    if device.type != "cuda":
        return 0
    hooks = knobs.runtime.launch_enter_hook
    return None if getattr(hooks, "calls", hooks) else driver.active.get_current_stream(device.index)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches are collected, with the tensors `given`, instead of made."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before
