"""The step of the CPU backend, and the custom ops that torch.compile and transforms take in its place.

local_loss     the map of per-pixel losses; differentiable for any gradient of the map
power_norms    each image's power norm, weighted by omega / total; its forward can make the gradient too, up to one
               factor per row
scale_rows     that gradient times those factors
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lal_triton import derivatives, pooling, steps
from lal_triton.library import OPTIONS, local_loss_of, register, register_autograd
from lal_triton.options import LocalLoss, Request, loss_dtype
from lal_triton.steps import Step
from lal_triton.weighing import weigh

if TYPE_CHECKING:
    from lal_triton.cpu.backend import Plan


def prepare(logits: Tensor, target: Tensor, request: Request, plain: bool) -> Step:
    """The step that gives the pooled loss, of a reduction by power norms."""
    power_norms: Callable[..., Tensor]
    if not plain:
        power_norms = functools.partial(_by_op, request)
    else:
        power_norms = functools.partial(_by_plan, _plan(logits, target, request.local, request.p))
    return functools.partial(_pooled_loss, power_norms, request)


def _plan(logits: Tensor, labels: Tensor, options: LocalLoss, p: float = 1.0) -> "Plan":
    """The plan for tensors of these sizes, which many calls share."""
    from lal_triton.cpu.backend import Plan  # here: numba is imported by the first loss on a CPU

    asked = logits.shape, labels.shape, loss_dtype(logits), options, p
    return steps.find((Plan, *asked), lambda: Plan(*asked))


def _pooled_loss(
    power_norms: Callable[..., Tensor],
    request: Request,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    labels, omega, mass, class_weight = weigh(logits, target, weight, pixel_weight, request)
    reduction, total = request.reduction, torch.ones_like(mass[0])
    if reduction == "mean" and request.process_group is None:
        # The sum of losses that are weighted by omega / total: the forward's gradient is complete.
        total, reduction = pooling.or_one(mass.sum()), "sum"
    derive = logits.requires_grad and torch.is_grad_enabled()
    norms = power_norms(logits, labels, class_weight, omega, total, derive)
    return pooling.pool_norms(norms, mass, reduction, request.p, request.pool, request.process_group)


def _by_plan(plan: "Plan", logits: Tensor, *inputs: Any) -> Tensor:
    derive = inputs[-1]
    if not derive:
        return plan.power_norms(logits, *inputs)[0]
    return _PowerNorms.apply(logits, derivatives.origin(logits), (plan, *inputs))


def _by_op(request: Request, logits: Tensor, *inputs: Any) -> Tensor:
    *weights, derive = inputs
    rest = derivatives.origin(logits), request.p, derive
    norms, *_ = _differentiable_power_norms(logits, *weights, *rest, *request.local)
    return norms


class _PowerNorms(torch.autograd.Function):
    """The op of this name for plain tensors, which it spares the dispatcher."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, origin: Tensor, rest: tuple[Any, ...]) -> Tensor:
        plan, *inputs = rest
        norms, gradient, factor = plan.power_norms(logits, *inputs)
        ctx.save_for_backward(gradient, factor, origin)
        ctx.dtype = logits.dtype
        return norms

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        last = derivatives.backward_is_last(gradient)
        return _gradient_of_norms(ctx.saved_tensors, gradient, ctx.dtype, last), None, None


def _gradient_of_norms(saved: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """The gradient of the logits; if this is the `last` use of the saved one, its factors are multiplied into it."""
    unscaled, factor, origin = saved

    def of_logits() -> Tensor:
        factors = factor * gradient[:, None]
        if not last:
            return torch.ops.lal_triton.scale_rows(unscaled, factors, dtype)
        if (factors != 1).any():
            from lal_triton.cpu import scaling

            scaling.scale_rows(unscaled, factors, unscaled)
        return unscaled.to(dtype)

    return derivatives.first_derivative(of_logits, gradient, origin)


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    return _plan(logits, labels, local_loss_of(options)).local_loss(logits, labels, weight)


def _local_loss_fake(logits: Tensor, labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape, dtype=loss_dtype(logits))


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any
) -> Tensor:
    return _plan(logits, labels, local_loss_of(options)).local_loss_backward(gradient, logits, labels, weight)


def _local_loss_backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _save_local_loss(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, weight, *options = inputs
    ctx.save_for_backward(logits, labels, weight)
    ctx.options = options


def _local_loss_autograd(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, weight = ctx.saved_tensors
    none = [None] * (2 + len(ctx.options))
    backward = torch.ops.lal_triton.local_loss_backward

    def of_logits() -> Tensor:
        return backward(gradient, logits, labels, weight, *ctx.options)

    return derivatives.first_derivative(of_logits, gradient, logits), *none


def power_norms(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    omega: Tensor,
    total: Tensor,
    origin: Tensor,
    p: float,
    derive: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(logits, labels, local_loss_of(options), p)
    return plan.power_norms(logits, labels, weight, omega, total, derive)


def _power_norms_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    derive = rest[6]
    norms = logits.new_empty(logits.shape[0], dtype=loss_dtype(logits))
    gradient = torch.empty_like(logits, dtype=norms.dtype) if derive else norms.new_empty(0)
    return norms, gradient, norms.new_empty(logits.shape[0], logits.shape[2])


def _save_power_norms(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], inputs[5])
    ctx.num_inputs, ctx.dtype = len(inputs), inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for the other outputs would be of the logits' size


def _power_norms_autograd(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = [None] * (ctx.num_inputs - 1)
    if gradient is None:
        return None, *none
    return _gradient_of_norms(ctx.saved_tensors, gradient, ctx.dtype, last=False), *none


def scale_rows(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    from lal_triton.cpu import scaling

    out = torch.empty_like(gradient)
    scaling.scale_rows(gradient, factor, out)
    return out.to(dtype)


def _scale_rows_fake(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


register(f"local_loss(Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor", local_loss, _local_loss_fake)
register(
    f"local_loss_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor",
    local_loss_backward,
    _local_loss_backward_fake,
)
register(
    "power_norms(Tensor logits, Tensor labels, Tensor? weight, Tensor omega, Tensor total, Tensor origin, float p, "
    f"bool derive, {OPTIONS}) -> (Tensor norms, Tensor gradient, Tensor factor)",
    power_norms,
    _power_norms_fake,
)
register("scale_rows(Tensor gradient, Tensor factor, ScalarType dtype) -> Tensor", scale_rows, _scale_rows_fake)
differentiable_local_loss = register_autograd("local_loss", _save_local_loss, _local_loss_autograd)
_differentiable_power_norms = register_autograd("power_norms", _save_power_norms, _power_norms_autograd)
