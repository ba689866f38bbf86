"""The Triton backend's loss with its autograd: a custom op for torch.compile, and without the dispatcher where it can.

The op takes torch a third of the time that a step on a small image may cost the host, hence the two ways.
"""

import sys
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from lal_triton import derivatives, validation
from lal_triton.dispatch import constant_in_graphs
from lal_triton.kernels import configs
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.ops import OPTIONS, library, local_loss_of, register, register_autograd
from lal_triton.options import LocalLoss, Pooling

_POOLING = "str reduction, float p, int ignore_index, bool keep"
library.define(
    f"pooled_loss(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, {OPTIONS}, {_POOLING})"
    " -> (Tensor value, Tensor labels, Tensor state, Tensor kept)"
)
library.define(
    "pooled_loss_backward(Tensor gradient, Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, "
    f"Tensor labels, Tensor state, Tensor kept, {OPTIONS}, {_POOLING}) -> Tensor"
)


def repeat(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, request: Hashable
) -> Tensor | None:
    """`pooled_loss` of tensors like those of an earlier call with this request, which need no checks; else None."""
    plans = sys.modules.get("lal_triton.kernels.host.plan")
    if torch.compiler.is_compiling() or plans is None or not derivatives.is_plain(logits):
        return None
    try:
        plan = plans.known(_key(plans, logits, target, weight, pixel_weight, request))
    except (AttributeError, TypeError):  # what is no tensor, or cannot be hashed, is for the checks to name
        return None
    if plan is None:
        return None
    return _run(plan, logits, target, weight, pixel_weight)


def pooled_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    options: LocalLoss,
    pooling: Pooling,
    request: Hashable | None,
) -> Tensor:
    """The pooled loss (0-d), or with the reduction "none" the map `[N, H, W]`, float32; `repeat` knows its request."""
    if weight is not None:
        weight = weight.detach().contiguous()
    if torch.compiler.is_compiling() or not derivatives.is_plain(logits):
        keep = _is_differentiable(logits) and _keep_is_chosen(
            options.kernel_height, options.kernel_width, logits.dtype, logits.device
        )
        return _differentiable_pooled_loss(logits, target, weight, pixel_weight, *options, *pooling, keep)[0]
    from lal_triton.kernels.host import plan as plans

    key = _key(plans, logits, target, weight, pixel_weight, request or (options, pooling))
    decided = None if _is_differentiable(logits) else False
    plan = plans.find(key, logits, target, weight, pixel_weight, options, pooling, decided)
    return _run(plan, logits, target, weight, pixel_weight)


def local_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LocalLoss, ignore_index: int) -> Tensor:
    """The map of per-pixel losses `[N, H, W]`, with class weights inside the smoothed cost only."""
    return pooled_loss(logits, target, weight, None, options, Pooling("none", 1.0, ignore_index), None)


def _is_differentiable(logits: Tensor) -> bool:
    return logits.requires_grad and torch.is_grad_enabled()


def _key(plans: Any, logits: Tensor, target: Tensor, weight: Any, pixel_weight: Any, request: Hashable) -> Hashable:
    return plans.key_of(logits, target, weight, pixel_weight, request, _is_differentiable(logits))


@constant_in_graphs  # it reads files and the environment, which are no part of a graph
def _keep_is_chosen(kernel_height: int, kernel_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Of numbers: a graph that makes a record of options cannot hand it over."""
    return configs.saves_exp((kernel_height, kernel_width), dtype, device)


def _run(plan: Any, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None) -> Tensor:
    if _is_differentiable(logits):
        return _PooledLoss.apply(logits, (target, weight, pixel_weight, plan))
    return _forward(plan, logits, target, weight, pixel_weight)[0]


def _forward(
    plan: Any, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
) -> tuple[Tensor, Any]:
    """The plan's, after the checks that read values (on the CPU: a GPU would stall)."""
    if target.device.type == "cpu":
        validation.check_values(target, weight, pixel_weight, logits.shape[1], plan.ignore_index)
    return plan.forward(logits, target, weight, pixel_weight)


class _PooledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: tuple[Any, ...]) -> Tensor:  # a tuple: autograd looks at each argument
        target, weight, pixel_weight, plan = rest
        value, saved = _forward(plan, logits, target, weight, pixel_weight)
        ctx.save_for_backward(logits, weight, pixel_weight, *saved)
        ctx.plan = plan
        ctx.strides = logits.stride(), None if pixel_weight is None else pixel_weight.stride()
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, weight, pixel_weight, *saved = ctx.saved_tensors

        def of_logits() -> Tensor:
            strided = map(_with_strides, (logits, pixel_weight), ctx.strides)
            return ctx.plan.backward(gradient, next(strided), weight, next(strided), saved)

        return derivatives.first_derivative(of_logits, gradient, logits), None


def _with_strides(tensor: Tensor | None, strides: tuple[int, ...] | None) -> Tensor | None:
    """A saved tensor with the strides that the plan knows: hooks may have brought it back with others."""
    if tensor is None or strides is None or tensor.stride() == strides:
        return tensor
    own = [1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True)]
    held = torch.empty_strided(own, strides, dtype=tensor.dtype, device=tensor.device)
    held.copy_(tensor[tuple(slice(size) for size in own)])
    return held.expand(tensor.shape)


def _pooled_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    plan = _plan(logits, target, weight, pixel_weight, rest)
    value, saved = _forward(plan, logits, target, weight, pixel_weight)
    kept = value.new_empty(0) if saved.exp is None else saved.exp
    return value, saved.labels, saved.workspace, kept


def _plan(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, rest: tuple[Any, ...]
) -> Any:
    from lal_triton.kernels.host import plan as plans

    asked = _split(rest)
    key = plans.key_of(logits, target, weight, pixel_weight, *asked)
    return plans.find(key, logits, target, weight, pixel_weight, *asked)


def _split(rest: tuple[Any, ...]) -> tuple[LocalLoss, Pooling, bool]:
    *options, reduction, p, ignore_index, keep = rest
    return local_loss_of(options), Pooling(reduction, p, ignore_index), keep


def _pooled_loss_fake(logits: Tensor, target: Tensor, weight: Tensor | None, _: Any, *asked: Any) -> tuple[Tensor, ...]:
    options, pooling, keep = _split(asked)
    layout = WorkspaceLayout(logits.shape, target.shape, options, pooling, keep)
    return (
        logits.new_empty(target.shape if pooling.reduction == "none" else (), dtype=torch.float32),
        target.new_empty(target.shape, dtype=torch.int32),
        logits.new_empty(layout.size, dtype=torch.float32),
        logits.new_empty(logits.shape if layout.saves_exp else 0, dtype=torch.float32),
    )


def _pooled_loss_backward(
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    labels: Tensor,
    state: Tensor,
    kept: Tensor,
    *rest: Any,
) -> Tensor:
    plan = _plan(logits, target, weight, pixel_weight, rest)
    return plan.backward(gradient, logits, weight, pixel_weight, (labels, state, kept))


def _pooled_loss_backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = [None] * (3 + len(ctx.options))
    if gradient is None:
        return None, *none
    logits, *rest = ctx.saved_tensors

    def of_logits() -> Tensor:
        return torch.ops.lal_triton.pooled_loss_backward(gradient, logits, *rest, *ctx.options)

    return derivatives.first_derivative(of_logits, gradient, logits), *none


register("pooled_loss", _pooled_loss, _pooled_loss_fake)
register("pooled_loss_backward", _pooled_loss_backward, _pooled_loss_backward_fake)
_differentiable_pooled_loss = register_autograd("pooled_loss", _pooled_loss, _save, _autograd, _autograd)
