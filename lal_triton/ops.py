"""The custom ops on CPUs: opaque to torch.compile, autocast and torch.func, with fake kernels and autograd.

prepare        encoded labels, omega(p) and its sums, on any device; on a CPU after the checks that read values
local_loss     the map of per-pixel losses; differentiable for any gradient of the map
power_norms    each image's power norm, weighted by omega / total; its forward can make the gradient too, up to one
               factor per row
scale_rows     that gradient times those factors
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lal_triton import derivatives, dispatch, validation
from lal_triton.labels import centre_mask, encode_labels
from lal_triton.options import LocalLoss, loss_dtype

OPTIONS = (
    "float[] window, int kernel_height, int kernel_width, int stride, str average, bool normalize, float eps, "
    "str cost, float focal_alpha, float focal_gamma, float label_smoothing, bool align_corners"
)
library = torch.library.Library("lal_triton", "DEF")
library.define(
    "prepare(Tensor target, Tensor? weight, Tensor? pixel_weight, SymInt num_classes, int stride, int ignore_index, "
    "ScalarType dtype) -> (Tensor labels, Tensor omega, Tensor mass)"
)
library.define(f"local_loss(Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor")
library.define(
    f"local_loss_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor"
)
library.define(
    "power_norms(Tensor logits, Tensor labels, Tensor? weight, Tensor omega, Tensor total, Tensor origin, float p, "
    "bool derive, "
    f"{OPTIONS}) -> (Tensor norms, Tensor gradient, Tensor factor)"
)
library.define("scale_rows(Tensor gradient, Tensor factor, ScalarType dtype) -> Tensor")


def register(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Makes the op; its batches under vmap are walked one by one."""
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lal_triton::{name}", fake, lib=library)
    op = getattr(torch.ops.lal_triton, name)
    torch.library.register_vmap(f"lal_triton::{name}", derivatives.map_over_batch(op), lib=library)


def register_autograd(
    name: str,
    implementation: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    eager_backward: Callable[..., Any],
) -> Any:
    """The differentiable op; `eager_backward` is that of plain tensors."""
    torch.library.register_autograd(f"lal_triton::{name}", backward, setup_context=setup_context, lib=library)
    op = getattr(torch.ops.lal_triton, name)
    return derivatives.transformable(op, implementation, setup_context, backward, eager_backward)


def prepare(target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name; plain tensors are spared the dispatcher."""
    if torch.compiler.is_compiling() or not derivatives.is_plain(target):
        return torch.ops.lal_triton.prepare(target, *rest)
    return _prepare(target, *rest)


def _prepare(
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    num_classes: int,
    stride: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels as `labels.encode_labels` gives them, omega(p) = weight[y(p)] x pixel_weight(p), and its sums `[N]`."""
    if target.device.type == "cpu" and dispatch.numba_works():
        from lal_triton.cpu import targets  # here: numba is imported by the first loss on a CPU

        return targets.prepare(target, weight, pixel_weight, num_classes, stride, ignore_index, dtype)
    if target.device.type == "cpu":
        validation.check_values(target, weight, pixel_weight, num_classes, ignore_index)
    labels = encode_labels(target, num_classes, ignore_index)
    centres = centre_mask(labels, stride)
    omega = centres.to(dtype)
    if weight is not None:
        omega *= weight.to(omega.dtype)[labels.clamp(min=0).long()]
    if pixel_weight is not None:
        omega = torch.where(centres, omega * pixel_weight.to(dtype), 0)
    return labels, omega, omega.sum((1, 2))


def _prepare_fake(target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    labels, omega = (target.new_empty(target.shape, dtype=dtype) for dtype in (torch.int32, rest[-1]))
    return labels, omega, omega.new_empty(len(target))


def local_loss_of(options: Sequence[Any]) -> LocalLoss:
    """The record of an op's arguments, which come as lists and numbers."""
    window, *rest = options
    return LocalLoss(tuple(window), *rest)


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


register("prepare", _prepare, _prepare_fake)
register("local_loss", local_loss, _local_loss_fake)
register("local_loss_backward", local_loss_backward, _local_loss_backward_fake)
register("power_norms", power_norms, _power_norms_fake)
register("scale_rows", scale_rows, _scale_rows_fake)
differentiable_local_loss = register_autograd(
    "local_loss", local_loss, _save_local_loss, _local_loss_autograd, _local_loss_autograd
)
differentiable_power_norms = register_autograd(
    "power_norms", power_norms, _save_power_norms, _power_norms_autograd, _power_norms_eager_autograd
)
