"""The labels as the backends read them, and the weight omega(p) of each pixel's loss: a custom op on any device."""

from typing import Any

import torch
from torch import Tensor

from lal_triton import derivatives, dispatch, validation
from lal_triton.labels import centre_mask, encode_labels
from lal_triton.library import register
from lal_triton.options import Request, loss_dtype, weighs_in_loss


def weigh(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, request: Request
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Encoded labels, omega `[N, H, W]`, and its sums `[N]`; and the class weights that stand inside the loss."""
    weight, pixel_weight = (None if weights is None else weights.detach() for weights in (weight, pixel_weight))
    rest = logits.shape[1], request.local.stride, request.ignore_index, loss_dtype(logits)
    labels, omega, mass = prepare(target, weight, pixel_weight, *rest)
    if weight is None or not weighs_in_loss(request.local, request.reduction):
        return labels, omega, mass, None
    return labels, prepare(target, None, pixel_weight, *rest)[1], mass, weight


def prepare(target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name; plain tensors are spared the dispatcher."""
    if torch.compiler.is_compiling() or not derivatives.are_plain(target):
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
    """Labels as `labels.encode_labels` gives them, omega(p) = weight[y(p)] x pixel_weight(p), and its sums `[N]`.

    On a CPU the values are checked.
    """
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


register(
    "prepare(Tensor target, Tensor? weight, Tensor? pixel_weight, SymInt num_classes, int stride, int ignore_index, "
    "ScalarType dtype) -> (Tensor labels, Tensor omega, Tensor mass)",
    _prepare,
    _prepare_fake,
)
