"""The buffer that the forward leaves for the backward: planes `[N, H, W]`, offsets of bands, and what pooling keeps."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lal_triton.kernels import configs
from lal_triton.options import LocalLoss, Pooling


class WorkspaceLayout:
    """What is where in the workspace of a step, for logits and labels of these shapes, which may be symbolic.

    `upsampled`: the labels are finer than the logits. `saves_exp`: the forward also saves exp(f_c - f_y), of the
    logits' size, which it does where that is asked for and safe.
    """

    def __init__(
        self, logits: Sequence[Any], labels: Sequence[Any], options: LocalLoss, pooling: Pooling, saves_exp: bool
    ) -> None:
        classes = logits[1]
        self.upsampled = tuple(logits[2:]) != tuple(labels[1:])
        self.saves_exp = saves_exp and configs.may_save_exp(options, classes, self.upsampled)
        self._shape = labels
        self._names = configs.workspace_planes(options, classes, self.upsampled, self.saves_exp)
        numbers = [self._names.index(name) if name in self._names else -1 for name in configs.PLANES]
        self.planes = (*numbers, len(self._names))  # the kernels' PLANES
        self.plane_size = math.prod(labels)
        self._planes_size = len(self._names) * self.plane_size
        self.pooled_begin = self._planes_size + configs.offsets_size(labels, options, self.upsampled)
        self.range_begin = self.pooled_begin + configs.pooled_size(labels, pooling.reduction)
        self.on_cells = self.upsampled and configs.is_on_cells(options)
        images, _, height, width = logits
        self.size = self.range_begin + (2 * images * height * width if self.on_cells else 0)

    def views(self, workspace: Tensor) -> dict[str, Tensor]:
        """The planes by name, `[N, H, W]` each."""
        planes = workspace[: self._planes_size].view(-1, *self._shape).unbind(0)
        return dict(zip(self._names, planes, strict=True))
