"""One launch: what is compiled for it, and how it is repeated at little cost on the host."""

# mypy: disable-error-code="misc"

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction, driver

from lal_triton.kernels.host import stand_in
from lal_triton.kernels.host.stand_in import Argument, StandIn
from lal_triton.kernels.records import Strides

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}

_recorded: list["Launch"] | None = None


class Launch:
    """A kernel with its grid and all arguments but the tensors, its first parameters, which each call gives.

    Triton's own launch looks at every argument of every call to find what it has compiled. Dtypes, sizes and strides
    never change for a `Launch`, so it compiles once and from then on calls the driver with what it got. The compiler
    knows of runtime values a stride of 1 along a row, and nothing else that varies from batch to batch, nor a
    pointer's alignment: no lane loads more than one element at a time, so it would gain nothing and be compiled again.
    """

    def __init__(self, kernel: Any, programs: int, lanes: int, arguments: Mapping[str, Any]) -> None:
        self.kernel, self.grid, self.lanes = kernel, (programs, 1, 1), lanes
        self.arguments = arguments
        self.tensors = tuple(name for name in kernel.arg_names if name not in arguments)
        self.given: tuple[Tensor | None, ...] = ()
        self._rest = tuple(arguments[name] for name in kernel.arg_names[len(self.tensors) :])
        self._compiled: Any = None
        self._run: Callable[..., None]

    def __call__(self, stream: int | None, *tensors: Tensor | None) -> None:
        if stream is None or self._compiled is None:
            self._start(tensors)
            return
        self._run(*self.grid, stream, self._function, self._metadata, None, None, None, *tensors, *self._rest)

    def _start(self, tensors: tuple[Tensor | None, ...]) -> None:
        """A call that is not a repetition."""
        if _recorded is not None:
            self.given = tensors
            _recorded.append(self)
        elif not isinstance(self.kernel, JITFunction):  # it is interpreted
            self.kernel[self.grid](*tensors, *self._rest)
        elif stand_in.current:
            compiled = self.compile(tensors, stand_in.current.target)
            self._function = self._metadata = None
            self._run = self._handing_over(compiled, tensors, stand_in.current)
            self._compiled = compiled  # last: other threads run a launch that has one
            self._run(*self.grid, 0, None, None, None, None, None, *tensors, *self._rest)
        else:
            if self._compiled is None:
                target, device = driver.active.get_current_target(), driver.active.get_current_device()
                compiled = self.compile(tensors, target, device)
                self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata
                self._compiled = compiled
            self._compiled[self.grid](*tensors, *self._rest)

    def compile(
        self, tensors: Sequence[Tensor | None], target: GPUTarget, device: int | None = None, **limits: int
    ) -> Any:
        """The compiled kernel, as many warps as give each thread one lane; `limits` are options of Triton's."""
        options: dict[str, Any] = {"num_warps": max(1, self.lanes // target.warp_size), **limits}
        signature, constants = self.signature(tensors)
        parts = (tuple(each.items()) for each in (signature, constants, options))
        return _compile(self.kernel, *parts, target, device)

    def signature(self, tensors: Sequence[Tensor | None]) -> tuple[dict[str, Any], dict[tuple[int, ...], Any]]:
        """Triton's types of the parameters, by name, and by their places the values that the compiler knows."""
        types: dict[str, Any] = {}
        constants: dict[tuple[int, ...], Any] = {}
        for i, (parameter, value) in enumerate(zip(self.kernel.params, (*tensors, *self._rest), strict=True)):
            types[parameter.name] = "constexpr" if parameter.is_constexpr else _type_of(value)
            constants |= _constants(types[parameter.name], value, (i,))
        return types, constants

    def _handing_over(self, compiled: Any, tensors: Sequence[Tensor | None], to: StandIn) -> Callable[..., None]:
        """In place of Triton's launcher: calls the stand-in's driver."""
        signature, _ = self.signature(tensors)
        given = [(name, signature[name]) for name in self.tensors]
        rest = [
            argument
            for name, value in zip(self.kernel.arg_names[len(tensors) :], self._rest, strict=True)
            for argument in _flat(name, signature[name], value)
        ]

        def run(x: int, y: int, z: int, *values: Any) -> None:
            pairs = zip(given, values[6 : 6 + len(given)], strict=True)
            tensors = ((*named, value) for named, value in pairs if named[1] != "constexpr")
            to.driver(compiled, (x, y, z), chain(tensors, rest))

        return run


@functools.cache
def _compile(
    kernel: Any,
    signature: tuple[tuple[str, Any], ...],
    constants: tuple[tuple[tuple[int, ...], Any], ...],
    options: tuple[tuple[str, Any], ...],
    target: GPUTarget,
    device: int | None,
) -> Any:
    """For a device, into which Triton loads what it has compiled; None where that is not to be launched."""
    source = ASTSource(kernel, dict(signature), dict(constants))
    # A product and a sum may be one instruction, as Triton has it by default before 3.10.
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **dict(options)})


def _type_of(value: Any) -> Any:
    """Triton's type of a runtime value; of a record the record of types."""
    if isinstance(value, tuple):
        types = [_type_of(field) for field in value]
        if isinstance(value, Strides) and value.w == 1:
            types[-1] = "constexpr"
        return type(value)(*types)  # type: ignore[arg-type]
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _constants(types: Any, value: Any, place: tuple[int, ...]) -> dict[tuple[int, ...], Any]:
    if types == "constexpr":
        return {place: value}
    if not isinstance(types, tuple):
        return {}
    inner = (_constants(kind, field, (*place, i)) for i, (kind, field) in enumerate(zip(types, value, strict=True)))
    return {key: constant for found in inner for key, constant in found.items()}


def _flat(name: str, kind: Any, value: Any) -> Iterator[Argument]:
    """The arguments that are no constants, those of a record one by one."""
    if isinstance(kind, tuple):
        for field, inner, one in zip(value._fields, kind, value, strict=True):
            yield from _flat(f"{name}.{field}", inner, one)
    elif kind != "constexpr":
        yield name, kind, value


def allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None
) -> Tensor:
    """All memory that kernels write comes from here; contiguous without `strides`."""
    if strides is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def current_stream(device: torch.device) -> int | None:
    """The stream to launch on; None where a profiler has set hooks, which Triton's own launch has to call."""
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
