# mypy: ignore-errors
"""Where the planes that the forward leaves for the backward stand in the buffer that holds all of them."""

import triton
import triton.language as tl

from lal_triton.kernels import configs

LOSSES, TOTAL, OWN_LOGIT, MEAN, RSTD, TOP, INVERSE = (tl.constexpr(i) for i in range(len(configs.PLANES)))
OFFSETS = tl.constexpr(len(configs.PLANES))


@triton.jit
def find_plane(state, NAME: tl.constexpr, PLACES: tl.constexpr, size):
    """Its first element; PLACES are those of configs.PLANES and of `offsets`, in planes of this size."""
    return state + PLACES[NAME] * size.to(tl.int64)
