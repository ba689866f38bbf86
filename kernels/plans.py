"""A step of a loss on tensors of certain shapes, strides and dtypes: its launches, prepared once."""

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lal_triton.kernels import arguments, configs
from lal_triton.kernels.launch import FullResolution
from lal_triton.kernels.launch_pooling import BatchPooling
from lal_triton.kernels.launch_upsampled import Upsampled
from lal_triton.kernels.launching import Launch, current_stream
from lal_triton.kernels.layouts import State
from lal_triton.kernels.preparation import prepare_fwd_kernel
from lal_triton.options import LocalLoss, Pooling

MOST_PLANS = 256
_plans: OrderedDict[Hashable, "Plan"] = OrderedDict()
_nothing = contextlib.nullcontext()


class Saved(NamedTuple):
    """What the forward leaves for the backward, besides its arguments."""

    labels: Tensor  # int32, as `labels.encode_labels` gives them
    state: Tensor  # see `layouts.State`
    kept: Tensor | None  # exp(f_c - f_y), float32 of the logits' shape


class Plan:
    """The forward and the backward of a step; `keep` None leaves it to the configuration what the forward keeps."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        options: LocalLoss,
        pooling: Pooling,
        keep: bool | None,
    ) -> None:
        images, classes = logits.shape[:2]
        height, width = target.shape[1:]
        self._device, self._size = logits.device, target.shape
        self.ignore_index = pooling.ignore_index
        setting = configs.Setting.of("prepare", logits, height, options)
        columns = configs.find(setting, self._device)["columns"]
        if keep is None:
            keep = configs.keep_is_chosen((options.kernel_height, options.kernel_width), logits.dtype, logits.device)
        state = State(logits.shape, target.shape, options, pooling, keep)
        self._state_size = state.size
        self._cost_weighted = weight is not None and pooling.weighs_cost(options)
        self._local: FullResolution | Upsampled
        if state.upsampled:
            self._local = Upsampled(logits, target, self._cost_weighted, options, state)
        else:
            self._local = FullResolution(logits, self._cost_weighted, options, state, columns)
        self._pooling = BatchPooling(
            target, classes, weight, pixel_weight, self._cost_weighted, options, pooling, state
        )
        self._prepare = Launch(
            prepare_fwd_kernel,
            images * triton.cdiv(height, configs.BAND_ROWS) * triton.cdiv(width, columns),
            {
                "H": height,
                "W": width,
                "C": classes,
                **state.arguments,
                **arguments.strides("target", target, "nhw"),
                **arguments.strides("stride", logits, "nchw"),
                "ignore_index": pooling.ignore_index,
                "eps": options.eps,
                "pooled_begin": state.pooled_begin,
                "ROWS": configs.BAND_ROWS,
                "COLUMNS": columns,
                "OWN_LOGITS": not state.upsampled,
                "MOMENTS": options.normalize and not state.upsampled,
                "VOIDS": len(options.window) > 1 and not state.upsampled,
                "num_warps": arguments.num_warps(configs.BAND_ROWS * columns // configs.PIXELS_PER_LANE, self._device),
            },
        )

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
    ) -> tuple[Tensor, Saved]:
        """The pooled loss, or the map `[N, H, W]` with the reduction "none"."""
        device = self._device
        with _on(device):
            stream = current_stream(device)
            labels = arguments.empty(self._size, torch.int32, device)
            state = arguments.empty((self._state_size,), torch.float32, device)
            self._prepare(stream, labels, target, state, logits)
            kept = self._local.forward(stream, state, logits, labels, weight if self._cost_weighted else None)
            value = self._pooling.forward(stream, state, labels, weight, pixel_weight)
        return value, Saved(labels, state, kept)

    def backward(
        self,
        gradient: Tensor,
        logits: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        saved: Saved,
    ) -> Tensor:
        """The gradient of the logits from that of `forward`'s value."""
        labels, state, kept = saved
        with _on(self._device):
            stream = current_stream(self._device)
            gradient = self._pooling.backward(stream, gradient, state, labels, weight, pixel_weight)
            weight = weight if self._cost_weighted else None
            return self._local.backward(stream, gradient, state, kept, logits, labels, weight)


def key_of(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, *rest: Hashable
) -> Hashable:
    """The same for calls that a plan serves alike."""
    return (
        logits.shape,
        logits.stride(),
        logits.dtype,
        logits.device,
        target.shape,
        target.stride(),
        target.dtype,
        target.device,
        _key_of_weight(weight),
        _key_of_weight(pixel_weight),
        *rest,
    )


def _key_of_weight(weight: Tensor | None) -> Hashable:
    """With what decides whether the checks let the weights pass."""
    if weight is None:
        return None
    return weight.shape, weight.stride(), weight.dtype, weight.device, weight.requires_grad and torch.is_grad_enabled()


def known(key: Hashable) -> Plan | None:
    return _plans.get(key)


def find(
    key: Hashable,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    options: LocalLoss,
    pooling: Pooling,
    keep: bool | None,
) -> Plan:
    """The plan of this key, made if there is none yet."""
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = Plan(logits, target, weight, pixel_weight, options, pooling, keep)
        if len(_plans) > MOST_PLANS:
            _plans.popitem(last=False)
    return plan


def clear() -> None:
    """Forget all plans, as when other configurations are to be chosen."""
    _plans.clear()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device; to ask which that is costs less than to set it."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _nothing
    return torch.cuda.device(device)
