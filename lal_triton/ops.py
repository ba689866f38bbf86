"""The torch backend's custom ops: opaque to torch.compile, autocast and torch.func, with fake kernels and autograd.

prepare               encoded labels and omega(p), after the checks that read values (on the CPU: a GPU would stall)
local_loss            the map of per-pixel losses; differentiable for any gradient of the map
power_norms           each image's power norm; its forward computes the gradient too, up to one factor per row
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lal_triton import derivatives, pooling, torch_backend, validation
from lal_triton.labels import centre_mask, encode_labels
from lal_triton.options import LocalLoss, loss_dtype

OPTIONS = (
    "float[] window, int kernel_height, int kernel_width, int stride, str average, bool normalize, float eps, "
    "str cost, float focal_alpha, float focal_gamma, float label_smoothing, bool align_corners"
)
library = torch.library.Library("lal_triton", "DEF")
library.define(
    "prepare(Tensor target, Tensor? weight, Tensor? pixel_weight, SymInt num_classes, int stride, int ignore_index, "
    "ScalarType dtype) -> (Tensor labels, Tensor omega)"
)
library.define(f"local_loss(Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor")
library.define(
    f"local_loss_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor? weight, {OPTIONS}) -> Tensor"
)
library.define(
    f"power_norms(Tensor logits, Tensor labels, Tensor? weight, Tensor omega, Tensor origin, float p, {OPTIONS})"
    " -> (Tensor norms, Tensor gradient, Tensor factor)"
)


def register(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The op, whose implementation runs without autocast, and whose batches under vmap are walked one by one."""

    @functools.wraps(implementation)
    def run(*arguments: Any) -> Any:
        device = next(argument.device.type for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(device, enabled=False):
            return implementation(*arguments)

    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lal_triton::{name}", fake, lib=library)
    op = getattr(torch.ops.lal_triton, name)
    torch.library.register_vmap(f"lal_triton::{name}", derivatives.map_over_batch(op), lib=library)
    return op


def register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """The differentiable op."""
    torch.library.register_autograd(f"lal_triton::{name}", backward, setup_context=setup_context, lib=library)
    return derivatives.transformable(getattr(torch.ops.lal_triton, name), setup_context, backward)


def prepare(
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    num_classes: int,
    stride: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Labels as `labels.encode_labels` gives them, and omega(p) = weight[y(p)] x pixel_weight(p), 0 without a loss."""
    if target.device.type == "cpu":
        validation.check_values(target, weight, pixel_weight, num_classes, ignore_index)
    labels = encode_labels(target, num_classes, ignore_index)
    centres = centre_mask(labels, stride)
    omega = centres.to(dtype)
    if weight is not None:
        omega *= weight.to(omega.dtype)[labels.clamp(min=0).long()]
    if pixel_weight is not None:
        omega = torch.where(centres, omega * pixel_weight.to(dtype), 0)
    return labels, omega


def _prepare_fake(target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return target.new_empty(target.shape, dtype=torch.int32), target.new_empty(target.shape, dtype=rest[-1])


def local_loss_of(options: Sequence[Any]) -> LocalLoss:
    """The record of an op's arguments, which come as lists and numbers."""
    window, *rest = options
    return LocalLoss(tuple(window), *rest)


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    return torch_backend.local_loss(logits, labels, weight, local_loss_of(options))


def _local_loss_fake(logits: Tensor, labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape, dtype=loss_dtype(logits))


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, *options: Any
) -> Tensor:
    return torch_backend.local_loss_backward(gradient, logits, labels, weight, local_loss_of(options))


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
    logits: Tensor, labels: Tensor, weight: Tensor | None, omega: Tensor, origin: Tensor, p: float, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    losses, gradient, scale = torch_backend.local_loss_and_gradient(
        logits, labels, weight, omega, p, local_loss_of(options)
    )
    norms = pooling.power_norm(losses.double(), omega.double(), p)
    nonzero = torch.where(norms == 0, 1, norms)
    factor = (scale / nonzero[:, None]) ** (p - 1)
    return norms.to(losses.dtype), gradient, factor.to(losses.dtype)


def _power_norms_fake(logits: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    norms = logits.new_empty(logits.shape[0], dtype=loss_dtype(logits))
    return norms, torch.empty_like(logits, dtype=norms.dtype), norms.new_empty(logits.shape[0], logits.shape[2])


def _save_power_norms(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], inputs[4])
    ctx.num_inputs, ctx.dtype = len(inputs), inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for the other outputs would be of the logits' size


def _power_norms_autograd(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = [None] * (ctx.num_inputs - 1)
    if gradient is None:
        return None, *none
    unscaled, factor, origin = ctx.saved_tensors

    def of_logits() -> Tensor:
        return (unscaled * (factor * gradient[:, None])[:, None, :, None]).to(ctx.dtype)

    return derivatives.first_derivative(of_logits, gradient, origin), *none


register("prepare", prepare, _prepare_fake)
register("local_loss", local_loss, _local_loss_fake)
register("local_loss_backward", local_loss_backward, _local_loss_backward_fake)
register("power_norms", power_norms, _power_norms_fake)
differentiable_local_loss = register_autograd("local_loss", _save_local_loss, _local_loss_autograd)
differentiable_power_norms = register_autograd("power_norms", _save_power_norms, _power_norms_autograd)
