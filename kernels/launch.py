"""The launches of a loss whose labels have the size of the logits."""

from typing import Any

import torch
import triton
from torch import Tensor

from lal_triton.kernels import arguments, configs
from lal_triton.kernels.backward import local_cost_bwd_kernel, merge_bwd_kernel
from lal_triton.kernels.forward import local_loss_fwd_kernel
from lal_triton.kernels.launching import Launch
from lal_triton.kernels.layouts import State
from lal_triton.options import LocalLoss


class FullResolution:
    """From logits and labels the map of losses, and from its gradient that of the logits.

    With `keep` the forward keeps exp(f_c - f_y), and what the backward gets are the slopes of `pool_bwd_kernel`.
    Without, the backward merges the logits again, those of as many images at once as a scratch holds.
    """

    def __init__(self, logits: Tensor, weighted: bool, options: LocalLoss, state: State, band: int) -> None:
        self.keep = state.keep
        self._logits, self._options = arguments.outline(logits), options
        self._device = logits.device
        self._common = {
            "H": logits.shape[2],
            "W": logits.shape[3],
            "C": logits.shape[1],
            **state.arguments,
            **arguments.strides("stride", logits, "nchw"),
        }
        self._cost = {**arguments.cost_arguments(weighted, options, logits.shape[1]), "BAND": band}
        self._launches: dict[Any, Launch] = {}
        merge = self._merge_arguments("local_loss_fwd")
        self._forward = Launch(
            local_loss_fwd_kernel,
            self._programs(len(logits), merge),
            {**self._common, **self._cost, **merge, "KEEP": state.keep},
        )

    def forward(
        self, stream: int | None, state: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None
    ) -> Tensor | None:
        kept = arguments.empty(logits.shape, torch.float32, self._device) if self.keep else None
        self._forward(stream, kept, state, logits, labels, weight)
        return kept

    def backward(
        self,
        stream: int | None,
        gradient: Tensor,
        state: Tensor,
        kept: Tensor | None,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        out = arguments.empty_like(logits)
        if self.keep:
            self._merge_backward(stream, out, kept, gradient, state, logits, labels)
            return out
        if len(self._options.window) == 1 and not self._options.normalize:  # f(p) is w x(p): nothing to merge
            self._cost_backward(stream, out, gradient, state, logits, labels, weight, gain=self._options.window[0])
            return out
        images, classes, height, width = logits.shape
        group = min(images, max(1, configs.SCRATCH_BYTES // (4 * classes * height * width)))
        scratch = arguments.empty((group, classes, height, width), torch.float32, self._device)
        for first in range(0, images, group):
            part = slice(first, first + group)
            inputs = state, logits[part], labels[part]
            merged_gradient = scratch[: images - first]
            self._cost_backward(stream, merged_gradient, gradient[part], *inputs, weight, first_image=first)
            self._merge_backward(stream, out[part], merged_gradient, None, *inputs, first_image=first)
        return out

    def _cost_backward(
        self,
        stream: int | None,
        out: Tensor,
        gradient: Tensor,
        state: Tensor,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        first_image: int = 0,
        gain: float = 1.0,
    ) -> None:
        key = "local_cost_bwd", first_image
        if key not in self._launches:
            merge = self._merge_arguments("local_cost_bwd")
            more = {"first_image": first_image, "gain": gain}
            self._launches[key] = Launch(
                local_cost_bwd_kernel,
                self._programs(len(out), merge),
                {**self._common, **self._cost, **merge, **arguments.strides("out", out, "nchw"), **more},
            )
        self._launches[key](stream, out, gradient, state, logits, labels, weight)

    def _merge_backward(
        self,
        stream: int | None,
        out: Tensor,
        source: Tensor | None,
        slopes: Tensor | None,
        state: Tensor,
        logits: Tensor,
        labels: Tensor,
        first_image: int = 0,
    ) -> None:
        key = "merge_bwd", first_image
        if key not in self._launches:
            merge = self._merge_arguments("merge_bwd")
            del merge["BY_WEIGHT"]
            more = {"first_image": first_image, "KEPT": self.keep}
            self._launches[key] = Launch(
                merge_bwd_kernel,
                self._programs(len(out), merge),
                {**self._common, **merge, **arguments.strides("out", out, "nchw"), **more},
            )
        self._launches[key](stream, out, source, slopes, state, logits, labels)

    def _merge_arguments(self, family: str) -> dict[str, Any]:
        options = self._options
        setting = configs.Setting.of(family, self._logits, self._logits.shape[2], options)
        config = configs.find(setting, self._device)
        large = configs.is_large(options)
        window = tuple(options.window[::-1] if family == "merge_bwd" else options.window)
        if config["rows"] * config["strips"] > configs.BAND_ROWS:
            raise ValueError(f"{family} has the configuration {config}, expected rows x strips <= {configs.BAND_ROWS}")
        groups = config.get("groups", 1)
        lanes = config["columns"] * config["strips"] * groups
        return {
            "window": arguments.window_table(window, self._device) if large else None,
            "WINDOW": None if large else window,
            "KH": options.kernel_height,
            "KW": options.kernel_width,
            "TH": config["rows"],
            "TW": config["columns"],
            "G": config["strips"],
            **({"GROUPS": groups} if family == "merge_bwd" else {}),
            "NORMALIZE": options.normalize,
            "BY_WEIGHT": options.average == "weight",
            "LARGE": large,
            "num_warps": arguments.num_warps(lanes, self._device),
        }

    def _programs(self, images: int, merge: dict[str, Any]) -> int:
        height, width = self._logits.shape[2:]
        return images * triton.cdiv(height, merge["TH"] * merge["G"]) * triton.cdiv(width, merge["TW"])
