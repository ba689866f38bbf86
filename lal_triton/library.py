"""The library of custom ops: opaque to torch.compile, autocast and torch.func, with fake kernels and autograd."""

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch

from lal_triton import derivatives
from lal_triton.options import LocalLoss

_TYPES = {tuple[float, ...]: "float[]", int: "int", float: "float", str: "str", bool: "bool"}
OPTIONS = ", ".join(f"{_TYPES[kind]} {name}" for name, kind in get_type_hints(LocalLoss).items())  # of a schema
library = torch.library.Library("lal_triton", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Makes the op; its batches under vmap are walked one by one."""
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lal_triton::{name}", fake, lib=library)
    op = getattr(torch.ops.lal_triton, name)
    torch.library.register_vmap(f"lal_triton::{name}", derivatives.map_over_batch(op), lib=library)


def register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """The differentiable op, by what torch.library.register_autograd takes."""
    torch.library.register_autograd(f"lal_triton::{name}", backward, setup_context=setup_context, lib=library)
    return derivatives.transformable(getattr(torch.ops.lal_triton, name), setup_context, backward)


def local_loss_of(options: Sequence[Any]) -> LocalLoss:
    """The record of an op's arguments, which come as lists and numbers."""
    window, *rest = options
    return LocalLoss(tuple(window), *rest)
