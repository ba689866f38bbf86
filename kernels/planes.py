# mypy: ignore-errors
"""The planes of the workspace, the buffer that the forward leaves for the backward: see `host.workspace`."""

import triton
import triton.language as tl

from lal_triton.kernels import configs

LOSSES, TOTAL, OWN_LOGIT, MEAN, RSTD, TOP, INVERSE, TOP_MINUS_OWN = (
    tl.constexpr(i) for i in range(len(configs.PLANES))
)
OFFSETS = tl.constexpr(len(configs.PLANES))


@triton.jit
def find_plane(workspace, NAME: tl.constexpr, S: tl.constexpr, size):
    """Its first element. S.PLANES numbers those of configs.PLANES, and `offsets` after them, in planes of this size."""
    return workspace + S.PLANES[NAME] * size.to(tl.int64)
