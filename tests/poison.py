"""Memory that kernels are to write, filled beforehand, so that an element that is never written shows."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from lal_triton.kernels.host import launch


@contextlib.contextmanager
def poisoning() -> Iterator[list[tuple[int, ...]]]:
    """The kernels' outputs start as NaN; gives the buffers' shapes."""
    shapes = []
    allocate = launch.allocate

    def poisoned(*arguments: Any) -> torch.Tensor:
        tensor = allocate(*arguments)
        shapes.append(tuple(tensor.shape))
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    launch.allocate = poisoned
    try:
        yield shapes
    finally:
        launch.allocate = allocate
