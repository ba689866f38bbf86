# mypy: ignore-errors
"""The local cost (Eq. 3-4) and its slope, elementwise: of one pixel's value or of a block of them."""

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import log_of_sum, power
from lal_triton.kernels.strips import TINY


@triton.jit
def surprise_and_miss(lead, total):
    """-ln q and 1 - q of the own class's probability q; lead is top - f_y, and total as `sum_exp` gives it."""
    one = tl.exp(-lead)
    return lead + log_of_sum(total, one), tl.div_rn(total, one + total)


@triton.jit
def class_weight_sum(class_weight, C, WEIGHTED: tl.constexpr):
    total = C.to(tl.float32)
    if WEIGHTED:
        total = 0.0
        for c in range(C):
            total += tl.load(class_weight + c).to(tl.float32)
    return total


@triton.jit
def local_cost(
    surprise,
    miss,
    drift,
    own_weight,
    weight_sum,
    smoothing,
    alpha,
    gamma,
    C,
    FOCAL: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """L of -ln q and 1 - q as `surprise_and_miss` gives them; drift is the sum of w_c (f_c - f_y)."""
    if FOCAL:
        loss = alpha * power(tl.maximum(miss, TINY), gamma) * surprise
    else:
        loss = own_weight * surprise
        if SMOOTHING:
            loss = (1 - smoothing) * loss + smoothing * (weight_sum * surprise - drift) / C
            loss = tl.where(loss < 0, 0.0, loss)
    return loss


@triton.jit
def cost_slope(
    coefficient,
    surprise,
    miss,
    own_weight,
    weight_sum,
    smoothing,
    alpha,
    gamma,
    C,
    FOCAL: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """coefficient x dL/df as (a, b, s): b at the own class, a softmax_c - s w_c at the others."""
    uniform = coefficient * smoothing / C
    if FOCAL:
        safe = tl.maximum(miss, TINY)
        slope = 1.0 + gamma * (1.0 - miss) * tl.div_rn(surprise, safe)
        coefficient *= alpha * power(safe, gamma) * slope
    else:
        coefficient *= own_weight
        if SMOOTHING:
            coefficient = coefficient * (1 - smoothing) + uniform * weight_sum
    own = -coefficient * miss
    if SMOOTHING:
        own += uniform * (weight_sum - own_weight)
    return coefficient, own, uniform
