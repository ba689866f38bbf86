"""A stand-in for the GPU: launches are compiled for a target and handed over instead of being made."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Argument = tuple[str, str, Any]  # name, such as "strides.h"; type, such as "i32" or "*fp32"; value
Driver = Callable[[Any, tuple[int, int, int], Iterable[Argument]], None]


@dataclass(eq=False)  # steps are kept by which it is
class StandIn:
    driver: Driver
    target: Any  # triton.backends.compiler.GPUTarget


current: StandIn | None = None


@contextlib.contextmanager
def standing_in(driver: Driver, target: Any) -> Iterator[StandIn]:
    """backend="triton" takes tensors on the CPU, and each launch becomes a call of the driver.

    `driver(compiled, grid, arguments)` gets the kernel as `triton.compile` returns it for the
    `triton.backends.compiler.GPUTarget`, the number of programs along three dimensions, and an iterable of the name,
    Triton's type and the value of each argument that is no constant. The process must not interpret the kernels. The
    driver may run what it gets: on return an output has the bytes that the driver left there. A backward has to run
    inside, too.
    """
    global current
    before, current = current, StandIn(driver, target)
    try:
        yield current
    finally:
        current = before
