"""From tensors and options to kernel launches, where the labels have the size of the logits."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lal_triton.kernels import arguments, configs
from lal_triton.kernels.backward import local_cost_bwd_kernel, merge_bwd_kernel
from lal_triton.kernels.forward import local_loss_fwd_kernel
from lal_triton.kernels.statistics import moments_fwd_kernel
from lal_triton.options import LocalLoss


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss) -> tuple[Tensor, Tensor]:
    """The losses `[N, H, W]` as `reference.local_loss`, and the planes that the backward needs (`_named_planes`)."""
    images, classes, height, width = logits.shape
    losses = arguments.empty((images, height, width), torch.float32, logits.device)
    state = arguments.empty(
        (configs.state_planes(options, classes, upsampled=False), *losses.shape), torch.float32, logits.device
    )
    planes = _named_planes(state, options)
    merge = _merge_arguments(options.window, options, logits)
    with arguments.on_device(logits):
        if options.normalize:
            block = configs.MOMENTS_BLOCK
            moments_fwd_kernel[(images * triton.cdiv(height * width, block),)](
                planes["mean"],
                planes["rstd"],
                logits,
                **_logits_arguments(logits),
                eps=options.eps,
                BLOCK=block,
                num_warps=arguments.num_warps(block, logits.device),
            )
        local_loss_fwd_kernel[_grid(logits, merge)](
            losses,
            logits=logits,
            labels=labels.contiguous(),
            **planes,
            **_logits_arguments(logits),
            **arguments.cost_arguments(weight, options, classes),
            **merge,
        )
    return losses, state


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, state: Tensor, options: LocalLoss
) -> Tensor:
    """The gradient of the logits from that of the losses."""
    out = arguments.empty_like(logits)
    images, classes, height, width = logits.shape
    labels = labels.contiguous()
    cost = arguments.cost_arguments(weight, options, classes)
    with arguments.on_device(logits):
        if len(options.window) == 1 and not options.normalize:  # f(p) is w z(p): there is nothing to merge
            _cost_backward(out, gradient, logits, labels, state, cost, options, gain=options.window[0])
            return out
        group = min(images, max(1, configs.SCRATCH_BYTES // (4 * classes * height * width)))
        scratch = arguments.empty((group, classes, height, width), torch.float32, logits.device)
        for first in range(0, images, group):
            part = slice(first, first + group)
            inputs = logits[part], labels[part], state[:, part]
            merged_gradient = scratch[: len(inputs[0])]
            _cost_backward(merged_gradient, gradient[part], *inputs, cost, options)
            _merge_backward(out[part], merged_gradient, *inputs, options)
    return out


def _cost_backward(
    out: Tensor,
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    state: Tensor,
    cost: dict[str, Any],
    options: LocalLoss,
    gain: float = 1.0,
) -> None:
    merge = _merge_arguments(options.window, options, logits)
    local_cost_bwd_kernel[_grid(logits, merge)](
        out,
        gradient,
        logits=logits,
        labels=labels,
        **_named_planes(state, options),
        **arguments.strides("out", out, "nchw"),
        **arguments.strides("gradient", gradient, "nhw"),
        **_logits_arguments(logits),
        **cost,
        **merge,
        gain=gain,
    )


def _merge_backward(
    out: Tensor, merged_gradient: Tensor, logits: Tensor, labels: Tensor, state: Tensor, options: LocalLoss
) -> None:
    merge = _merge_arguments(options.window[::-1], options, logits)
    del merge["BY_WEIGHT"]
    planes = _named_planes(state, options)
    merge_bwd_kernel[_grid(logits, merge)](
        out,
        merged_gradient,
        logits,
        labels,
        planes["mean"],
        planes["rstd"],
        **arguments.strides("out", out, "nchw"),
        **_logits_arguments(logits),
        **merge,
    )


def _named_planes(state: Tensor, options: LocalLoss) -> dict[str, Tensor | None]:
    """The score's mean and 1 / std, the highest f_c, and the sum over c != y of exp(f_c - top)."""
    mean, rstd = state[:2] if options.normalize else (None, None)
    top = state[-2] if len(state) - 2 * options.normalize == 2 else None
    return {"mean": mean, "rstd": rstd, "top": top, "total": state[-1]}


def _logits_arguments(logits: Tensor) -> dict[str, Any]:
    _, classes, height, width = logits.shape
    return {"H": height, "W": width, "C": classes, **arguments.strides("stride", logits, "nchw")}


def _merge_arguments(window: Sequence[float], options: LocalLoss, logits: Tensor) -> dict[str, Any]:
    height, width = options.kernel_height, options.kernel_width
    strips = configs.choose_strips(height, width)
    large = strips is None
    if strips is None:
        strips = configs.LARGE_WINDOW
    return {
        "window": arguments.window_table(tuple(window), logits.device) if large else None,
        "WINDOW": None if large else tuple(window),
        "KH": height,
        "KW": width,
        "TH": strips.rows,
        "TW": strips.columns,
        "G": strips.strips,
        "NORMALIZE": options.normalize,
        "BY_WEIGHT": options.average == "weight",
        "LARGE": large,
        "num_warps": arguments.num_warps(strips.lanes, logits.device),
    }


def _grid(logits: Tensor, merge: dict[str, Any]) -> tuple[int]:
    images, _, height, width = logits.shape
    return (images * triton.cdiv(height, merge["TH"] * merge["G"]) * triton.cdiv(width, merge["TW"]),)
