"""The buffer that the forward leaves for the backward: planes `[N, H, W]`, offsets of bands, and what pooling keeps."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.options import LocalLoss, Pooling


class State:
    """Its layout for logits and labels of these shapes, which may be symbolic.

    It is upsampled if these differ in size, and keeps what slopes are made from if that is wanted and can be done.
    """

    def __init__(
        self, logits: Sequence[Any], labels: Sequence[Any], options: LocalLoss, pooling: Pooling, keep: bool
    ) -> None:
        classes, area = logits[1], math.prod(labels)
        self.upsampled = tuple(logits[2:]) != tuple(labels[1:])
        self.keep = keep and configs.keeps(options, classes, self.upsampled)
        self._shape = labels
        self._names = configs.state_planes(options, classes, self.upsampled, self.keep)
        places = [self._names.index(name) if name in self._names else -1 for name in configs.PLANES]
        self.arguments: dict[str, Any] = {"plane_size": area, "PLACES": (*places, len(self._names))}
        self._planes_size = len(self._names) * area
        self.pooled_begin = self._planes_size + configs.offsets_size(labels, options, self.upsampled)
        self.size = self.pooled_begin + configs.pooled_size(labels, pooling.reduction)

    def planes(self, state: Tensor) -> dict[str, Tensor]:
        """Views of the planes, `[N, H, W]`."""
        planes = state[: self._planes_size].view(-1, *self._shape).unbind(0)
        return dict(zip(self._names, planes, strict=True))
