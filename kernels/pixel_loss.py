# mypy: ignore-errors
# ruff: noqa: RUF005
"""The loss of a pixel (Eq. 3-4) and its slope, elementwise: of one pixel's value or of a block of them."""

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import log_of_sum, power
from lal_triton.kernels.window import TINY


@triton.jit
def at_centres(taken, row, col, stride, STRIDED: tl.constexpr):
    """`taken`, with STRIDED only in every `stride`-th row and column."""
    if STRIDED:
        taken = taken & (row % stride == 0) & (col % stride == 0)
    return taken


@triton.jit
def nll_and_one_minus_p(max_minus_own, total):
    """-ln p and 1 - p of the label's probability p.

    `total` is the sum over c != y of exp(f_c - max), and `max_minus_own` is max - f_y.
    """
    one = tl.exp(-max_minus_own)
    return max_minus_own + log_of_sum(total, one), tl.div_rn(total, one + total)


@triton.jit
def nll_and_one_minus_p_from(top_minus_own, total):
    """The same, of a `top` that may be lower than f_y, which then takes its place: small losses keep their digits."""
    lower = tl.minimum(top_minus_own, 0.0)
    return nll_and_one_minus_p(top_minus_own - lower, total * tl.exp(lower))


@triton.jit
def class_weight(class_weight_ptr, c, L: tl.constexpr):
    """That of class c, 1 where there are none."""
    w = 1.0
    if L.HAS_CLASS_WEIGHT:
        w = tl.load(class_weight_ptr + c).to(tl.float32)
    return w


@triton.jit
def sum_class_weights(class_weight_ptr, C, L: tl.constexpr):
    total = C.to(tl.float32)
    if L.HAS_CLASS_WEIGHT:
        total = 0.0
        for c in range(C):
            total += tl.load(class_weight_ptr + c).to(tl.float32)
    return total


@triton.jit
def gather_class_weights(class_weight_ptr, own, L: tl.constexpr):
    """Those of the lane's own labels, 0 where there is none."""
    weights = ()
    for j in tl.static_range(len(own)):
        if L.HAS_CLASS_WEIGHT:
            weights = weights + (tl.load(class_weight_ptr + own[j], mask=own[j] >= 0, other=0.0).to(tl.float32),)
        else:
            weights = weights + (tl.where(own[j] >= 0, 1.0, 0.0),)
    return weights


@triton.jit
def pixel_loss(nll, one_minus_p, smoothing_sum, own_weight, weight_sum, options, C, L: tl.constexpr):
    """The loss; `smoothing_sum` is the sum over c of w_c (f_c - f_y)."""
    if L.FOCAL:
        loss = options.alpha * power(tl.maximum(one_minus_p, TINY), options.gamma) * nll
    else:
        loss = own_weight * nll
        if L.HAS_SMOOTHING:
            share = options.smoothing
            loss = (1 - share) * loss + share * (weight_sum * nll - smoothing_sum) / C
            loss = tl.where(loss < 0, 0.0, loss)
    return loss


@triton.jit
def pixel_loss_slope(coefficient, nll, one_minus_p, own_weight, weight_sum, options, C, L: tl.constexpr):
    """coefficient x dL/df as (a, b, s): b at the own class, a softmax_c - s w_c at the others."""
    uniform = coefficient * options.smoothing / C
    if L.FOCAL:
        safe = tl.maximum(one_minus_p, TINY)
        slope = 1.0 + options.gamma * (1.0 - one_minus_p) * tl.div_rn(nll, safe)
        coefficient *= options.alpha * power(safe, options.gamma) * slope
    else:
        coefficient *= own_weight
        if L.HAS_SMOOTHING:
            coefficient = coefficient * (1 - options.smoothing) + uniform * weight_sum
    own = -coefficient * one_minus_p
    if L.HAS_SMOOTHING:
        own += uniform * (weight_sum - own_weight)
    return coefficient, own, uniform
