"""The buffer that the forward leaves for the backward: planes `[N, H, W]`, offsets of bands, and what pooling keeps."""

from typing import Any

import torch
from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.options import LocalLoss


class State:
    """Its layout for labels of this shape; `keep` adds what slopes are made from, an offset is of `band` columns."""

    def __init__(
        self, shape: torch.Size, classes: int, options: LocalLoss, upsampled: bool, keep: bool, band: int
    ) -> None:
        self.keep, self.band = keep, band
        self.shape = shape
        self.names = configs.state_planes(options, classes, upsampled, keep)
        places = [self.names.index(name) if name in self.names else -1 for name in configs.PLANES]
        self.arguments: dict[str, Any] = {"plane_size": shape.numel(), "PLACES": (*places, len(self.names))}
        self.planes_size = len(self.names) * shape.numel()
        self.pooled_begin = self.planes_size + configs.offsets_size(shape, options, upsampled)

    def planes(self, state: Tensor) -> dict[str, Tensor]:
        """Views of the planes, `[N, H, W]`."""
        planes = state[: self.planes_size].view(-1, *self.shape).unbind(0)
        return dict(zip(self.names, planes, strict=True))
