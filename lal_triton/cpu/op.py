"""The step of the CPU backend, and its custom ops.

local_loss     the map of per-pixel losses; differentiable for any gradient of the map
power_norms    each image's power norm, weighted by omega / total; its forward can make the gradient too, up to one
               factor per row
scale_rows     that gradient times those factors
"""

from typing import Any

import torch
from torch import Tensor

from lal_triton import derivatives, pooling
from lal_triton.library import OPTIONS, local_loss_of, register, register_autograd
from lal_triton.options import Request, loss_dtype
from lal_triton.weighing import weigh


def pooled_loss(
    request: Request, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
) -> Tensor:
    """The pooled loss of a reduction by power norms."""
    labels, omega, mass, class_weight = weigh(logits, target, weight, pixel_weight, request)
    reduction, total = request.reduction, torch.ones_like(mass[0])
    if reduction == "mean" and request.process_group is None:
        # The sum of losses that are weighted by omega / total: the forward's gradient is complete.
        total, reduction = pooling.or_one(mass.sum()), "sum"
    origin, derive = derivatives.origin(logits), logits.requires_grad and torch.is_grad_enabled()
    inputs = logits, labels, class_weight, omega, total, origin, request.p, derive
    norms = differentiable_power_norms(*inputs, *request.local)[0]
    return pooling.pool_norms(norms, mass, reduction, request.p, request.pool, request.process_group)


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    from lal_triton.cpu import backend

    return backend.local_loss(logits, labels, weight, local_loss_of(options))


def _local_loss_fake(logits: Tensor, labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape, dtype=loss_dtype(logits))


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any
) -> Tensor:
    from lal_triton.cpu import backend

    return backend.local_loss_backward(gradient, logits, labels, weight, local_loss_of(options))


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
    from lal_triton.cpu import backend

    results = backend.power_norms(logits, labels, weight, omega, total, p, local_loss_of(options), derive)
    nonzero = torch.where(results.norms == 0, 1, results.norms)
    factor = (results.scale / nonzero[:, None]) ** (p - 1)
    dtype = loss_dtype(logits)
    return results.norms.to(dtype), results.gradient, factor.to(dtype)


def _power_norms_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    derive = rest[6]
    norms = logits.new_empty(logits.shape[0], dtype=loss_dtype(logits))
    gradient = torch.empty_like(logits, dtype=norms.dtype) if derive else norms.new_empty(0)
    return norms, gradient, norms.new_empty(logits.shape[0], logits.shape[2])


def scale_rows(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    from lal_triton.cpu import scaling

    out = torch.empty_like(gradient)
    scaling.scale_rows(gradient, factor, out)
    return out.to(dtype)


def _scale_rows_fake(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _save_power_norms(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], inputs[5])
    ctx.num_inputs, ctx.dtype = len(inputs), inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for the other outputs would be of the logits' size


def _power_norms_autograd(ctx: Any, gradient: Tensor | None, *_: Any, last: bool = False) -> tuple[Tensor | None, ...]:
    """With `last` nothing else will read the saved gradient: its factors are multiplied into it."""
    none = [None] * (ctx.num_inputs - 1)
    if gradient is None:
        return None, *none
    unscaled, factor, origin = ctx.saved_tensors

    def of_logits() -> Tensor:
        factors = factor * gradient[:, None]
        if not last:
            return torch.ops.lal_triton.scale_rows(unscaled, factors, ctx.dtype)
        if (factors != 1).any():
            from lal_triton.cpu import scaling

            scaling.scale_rows(unscaled, factors, unscaled)
        return unscaled.to(ctx.dtype)

    return derivatives.first_derivative(of_logits, gradient, origin), *none


def _power_norms_eager_autograd(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The backward of a call that keeps the norms alone, so that nobody else holds the saved gradient."""
    last = gradient is not None and derivatives.backward_is_last(gradient)
    return _power_norms_autograd(ctx, gradient, last=last)


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
differentiable_local_loss = register_autograd(
    "local_loss", local_loss, _save_local_loss, _local_loss_autograd, _local_loss_autograd
)
differentiable_power_norms = register_autograd(
    "power_norms", power_norms, _save_power_norms, _power_norms_autograd, _power_norms_eager_autograd
)
