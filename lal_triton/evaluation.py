"""From tensors and a request to the loss: `evaluate` finds the step for such tensors, or prepares it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton import derivatives, max_pooling, pooling, process_groups, reference, steps, subclasses, validation
from lal_triton.cpu import op as cpu_op
from lal_triton.dispatch import backend_for
from lal_triton.kernels import configs
from lal_triton.kernels import op as triton_op
from lal_triton.labels import centre_mask, without_channel
from lal_triton.options import Pooling, Request, loss_dtype, weighs_in_loss
from lal_triton.steps import Step
from lal_triton.tuning import choice
from lal_triton.weighing import weigh

configs.sources.append(choice.tuned)

LocalStep = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # of logits, target, labels and class weights


def evaluate(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, request: Request
) -> Tensor:
    """What every loss of the package does once its options are a request."""
    if request.process_group is not None:
        request = _with_group(request, process_groups.resolve(request.process_group))
    tensors = logits, target, weight, pixel_weight
    if not torch.compiler.is_compiling():
        weights = [tensor for tensor in (weight, pixel_weight) if tensor is not None]
        if derivatives.are_plain(logits, target, *weights):
            if request.process_group is not None:  # a step that is kept would keep the group's threads
                return prepare(*tensors, request, plain=True)(*tensors)
            step = steps.find((request, steps.key_of(*tensors)), lambda: prepare(*tensors, request, plain=True))
            return step(*tensors)
        given = subclasses.Inputs(*tensors, request.process_group)
        inputs = subclasses.unwrap(given)
        if inputs is not given:
            value = _evaluate_unwrapped(inputs, request)
            return subclasses.like_logits(value, logits) if request.reduction == "none" else value
    if isinstance(logits, Tensor):
        tensors = logits.resolve_neg(), target, weight, pixel_weight
    return prepare(*tensors, request, plain=False)(*tensors)


def _evaluate_unwrapped(inputs: subclasses.Inputs, request: Request) -> Tensor:
    """The loss of what tensors of a subclass hold, over the group of a DTensor's mesh."""
    *tensors, process_group = inputs
    return evaluate(*tensors, _with_group(request, process_group))  # type: ignore[call-arg]


def _with_group(request: Request, process_group: Any) -> Request:
    validation.check_pooling_over_ranks(process_group, request.reduction, request.pool)
    return request._replace(process_group=process_group)


def prepare(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, request: Request, plain: bool
) -> Step:
    """Check the arguments, choose the backend, and make what all calls on such tensors share.

    Tensors are `plain` where nothing but autograd looks at the operations; others need custom ops.
    """
    if without_channel(target) is not target or without_channel(pixel_weight) is not pixel_weight:
        return functools.partial(_without_channels, request)
    validation.check_tensors(logits, target, weight, pixel_weight)
    validation.check_sizes(logits, target, request.upsample)
    validation.check_alpha_size(request.class_alpha, logits.shape[1])
    options, reduction, backend, size = request.local, request.reduction, request.backend, target.shape[1:]
    validation.warn_of_sizes(logits.shape[2:], size)
    if logits.shape[2] > size[0] or logits.shape[3] > size[1]:
        return functools.partial(_interpolate_first, request, size)
    validation.warn_of_classes(logits.shape[1], options.normalize, request.ignore_index)
    if torch.compiler.is_compiling() and derivatives.transforms():
        backend = derivatives.backend_in_graph(backend, weight, pixel_weight)
    backend = backend_for(backend, logits)
    if backend == "triton":
        if logits.shape[2:] != size and not configs.upsampling_is_served(logits.shape[2:], size, options):
            return functools.partial(_interpolate_first, request, size)
        if reduction != "max_pooling" and request.process_group is None and request.class_alpha is None:
            name = request.pool if reduction == "minkowski" else reduction
            batch_pooling = Pooling(name, request.p, request.ignore_index)
            step = triton_op.prepare(logits, target, weight, pixel_weight, options, batch_pooling, plain)
            return functools.partial(_at_centres_of, step, options.stride) if reduction == "none" else step
    if backend == "cpu" and reduction not in ("none", "max_pooling") and request.class_alpha is None:
        return cpu_op.prepare(logits, target, request, plain)
    local = _local_step(backend, logits, target, weight, request, plain)
    if request.class_alpha is not None:
        local = functools.partial(
            _scale_by_class, local, logits.new_tensor(request.class_alpha, dtype=loss_dtype(logits))
        )
    return functools.partial(_pool_map, local, request)


def _local_step(
    backend: str, logits: Tensor, target: Tensor, weight: Tensor | None, request: Request, plain: bool
) -> LocalStep:
    options = request.local
    if backend == "triton":
        tensors = logits, target, weight if weighs_in_loss(options, request.reduction) else None, None
        asked = options, Pooling("none", 1.0, request.ignore_index)
        make = functools.partial(triton_op.prepare, *tensors, *asked, plain)
        of_map = steps.find((*asked, steps.key_of(*tensors)), make) if plain else make()
        return lambda logits, target, labels, weight: of_map(logits, target, weight, None)
    if backend == "cpu":
        return lambda logits, target, labels, weight: cpu_op.differentiable_local_loss(logits, labels, weight, *options)
    local_loss = reference.local_loss_by_image if backend == "by image" else reference.local_loss
    return lambda logits, target, labels, weight: local_loss(logits, labels, weight, options)


def _scale_by_class(
    local: LocalStep, alpha: Tensor, logits: Tensor, target: Tensor, labels: Tensor, weight: Tensor | None
) -> Tensor:
    """The map of losses, times alpha `[C]` at their pixels' labels."""
    return local(logits, target, labels, weight) * alpha[labels.clamp(min=0).long()]


def _pool_map(
    local: LocalStep,
    request: Request,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    """The map of per-pixel losses, and any reduction of it, in plain torch."""
    labels, omega, mass, class_weight = weigh(logits, target, weight, pixel_weight, request)
    losses = local(logits, target, labels, class_weight)
    if request.reduction not in ("none", "max_pooling"):
        norms = pooling.power_norm(losses, omega, request.p)
        return pooling.pool_norms(norms, mass, request.reduction, request.p, request.pool, request.process_group)
    losses = losses * omega
    if request.reduction == "none":
        return _at_centres(losses, request.local.stride)
    valid = centre_mask(labels, request.local.stride)
    if request.pool == "batch":
        losses, valid, mass = losses.flatten()[None], valid.flatten()[None], mass.sum()[None]
    maxima = max_pooling.max_pool(losses.flatten(1), valid.flatten(1), request.pooling_ratio, request.pooling_norm)
    return pooling.mean_over_images(maxima, mass > 0, request.process_group)


def _without_channels(
    request: Request, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
) -> Tensor:
    """The loss of a target or pixel weights `[N, 1, H, W]`."""
    return evaluate(logits, without_channel(target), weight, without_channel(pixel_weight), request)


def _interpolate_first(
    request: Request,
    size: Sequence[int],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    """The loss of logits that are interpolated in plain torch."""
    interpolated = F.interpolate(
        logits.to(loss_dtype(logits)), size, mode="bilinear", align_corners=request.local.align_corners
    )
    return evaluate(interpolated, target, weight, pixel_weight, request)


def _at_centres_of(step: Step, stride: int, *tensors: Tensor) -> Tensor:
    return _at_centres(step(*tensors), stride)


def _at_centres(losses: Tensor, stride: int) -> Tensor:
    return losses[:, ::stride, ::stride]
