"""Steps that were prepared for tensors of a kind, to be repeated."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from lal_triton.kernels.host import stand_in

MOST = 256
Step = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]  # of logits, target, weight and pixel_weight
Kept = TypeVar("Kept")
_steps: OrderedDict[Hashable, object] = OrderedDict()


def find(key: Hashable, prepare: Callable[[], Kept]) -> Kept:
    """What was prepared for this key, now if there is nothing yet."""
    step = _steps.get(key)
    if step is None:
        step = _steps[key] = prepare()
        if len(_steps) > MOST:
            _steps.popitem(last=False)
    return step  # type: ignore[return-value]


def key_of(logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None) -> Hashable:
    """The same for tensors that a step serves alike, on the same device or stand-in for one."""
    return (
        logits.shape,
        logits.stride(),
        logits.dtype,
        logits.device,
        target.shape,
        target.stride(),
        target.dtype,
        target.device,
        None if weight is None else _kind_of(weight),
        None if pixel_weight is None else _kind_of(pixel_weight),
        logits.requires_grad and torch.is_grad_enabled(),
        stand_in.current,
    )


def _kind_of(weight: Tensor) -> Hashable:
    """With what decides whether the checks let the weights pass."""
    return weight.shape, weight.stride(), weight.dtype, weight.device, weight.requires_grad and torch.is_grad_enabled()


def clear() -> None:
    """Forget all steps, as when other configurations are to be chosen."""
    _steps.clear()
