# mypy: ignore-errors
# ruff: noqa: RUF005
"""The map of per-pixel losses: merge, log-sum-exp and local cost in one pass over the logits."""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, local_cost, surprise_and_miss
from lal_triton.kernels.strips import (
    INVALID,
    LN2,
    VOID,
    invert,
    is_inside,
    kernel,
    lane_offset,
    lane_pivot,
    load_own_labels,
    logit_units,
    merge_class,
    place,
    scale_weights,
    strip_weights,
)


@triton.jit
def gather_weights(class_weight, own, TH: tl.constexpr, WEIGHTED: tl.constexpr):
    """The class weights of the lane's own labels, 0 where there is none."""
    weights = ()
    for j in tl.static_range(TH):
        if WEIGHTED:
            weights = weights + (tl.load(class_weight + own[j], mask=own[j] >= 0, other=0.0),)
        else:
            weights = weights + (tl.where(own[j] >= 0, 1.0, 0.0),)
    return weights


@triton.jit
def sum_exp(
    view,
    weights,
    start,
    own_merged,
    pivot,
    site,
    class_weight,
    C,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    SCALED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BOUNDED: tl.constexpr,
    LARGE: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    """Per output row: sum over c != y of exp(f_c - top); top, which is f_y if BOUNDED; sum of w_c (f_c - f_y)."""
    pointer, stride_c, stride_h, stride_w = view
    own = site[3]
    total = ()
    top = own_merged
    drift = ()
    for j in tl.static_range(TH):
        zero = tl.zeros_like(start[j])
        total = total + (zero,)
        drift = drift + (zero,)
    for c in range(C):
        merged = merge_class(
            start, pointer, stride_h, stride_w, weights, pivot, site, KH, KW, TH, SCALED, LARGE, INTERIOR
        )
        new_total = ()
        new_top = ()
        new_drift = ()
        for j in tl.static_range(TH):
            # without the own class, whose term is known, what is small keeps its digits
            other = own[j] != c
            if BOUNDED:
                difference = merged[j] * LN2
                new_total = new_total + (total[j] + tl.where(other, tl.exp2(merged[j]), 0.0),)
                new_top = top
            else:
                difference = merged[j] - own_merged[j]
                highest = tl.maximum(top[j], merged[j])
                so_far = total[j] * tl.exp(top[j] - highest)
                new_total = new_total + (so_far + tl.where(other, tl.exp(merged[j] - highest), 0.0),)
                new_top = new_top + (highest,)
            if SMOOTHING:
                w = 1.0
                if WEIGHTED:
                    w = tl.load(class_weight + c)
                new_drift = new_drift + (drift[j] + w * difference,)
            else:
                new_drift = drift
        total = new_total
        top = new_top
        drift = new_drift
        pointer += stride_c
    return total, top, drift


@kernel
def local_loss_fwd_kernel(
    losses,
    top,
    total,
    logits,
    labels,
    mean,
    rstd,
    class_weight,
    window,
    H,
    W,
    C,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    centre_stride,
    smoothing,
    alpha,
    gamma,
    WINDOW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    G: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    FOCAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BOUNDED: tl.constexpr,
    LARGE: tl.constexpr,
):
    n, row, col, interior = place(H, W, KH, KW, TH, TW, G)
    pixel = n * H * W + lane_offset(row, col, W, 1)
    labels += pixel
    own = load_own_labels(labels, row, col, H, W, TH)
    pivot = 0.0
    if NORMALIZE:
        pivot = lane_pivot(mean + pixel, own, W, TH)
        rstd += pixel
    site = (labels, rstd, window, own, row, col, H, W)
    pointer = logits + n * stride_n + lane_offset(row, col, stride_h, stride_w)
    view = (pointer, stride_c, stride_h, stride_w)
    weights, xi, sums = strip_weights(site, view, pivot, WINDOW, KH, KW, TH, NORMALIZE, True, BY_WEIGHT, LARGE)
    scale, start, own_merged = logit_units(invert(xi, TH), sums, TH, BOUNDED)
    weights = scale_weights(weights, scale, KH, KW, TH, LARGE)
    if interior:
        totals, tops, drifts = sum_exp(
            view,
            weights,
            start,
            own_merged,
            pivot,
            site,
            class_weight,
            C,
            KH,
            KW,
            TH,
            NORMALIZE,
            WEIGHTED,
            SMOOTHING,
            BOUNDED,
            LARGE,
            True,
        )
    else:
        totals, tops, drifts = sum_exp(
            view,
            weights,
            start,
            own_merged,
            pivot,
            site,
            class_weight,
            C,
            KH,
            KW,
            TH,
            NORMALIZE,
            WEIGHTED,
            SMOOTHING,
            BOUNDED,
            LARGE,
            False,
        )

    own_weights = gather_weights(class_weight, own, TH, WEIGHTED)
    weight_sum = class_weight_sum(class_weight, C, WEIGHTED)
    for j in tl.static_range(TH):
        surprise, miss = surprise_and_miss(tops[j] - own_merged[j], totals[j])
        loss = local_cost(
            surprise,
            miss,
            drifts[j],
            own_weights[j],
            weight_sum,
            smoothing,
            alpha,
            gamma,
            C,
            FOCAL,
            SMOOTHING,
        )
        loss = tl.where(own[j] == INVALID, float("nan"), loss)
        centre = (own[j] != VOID) & ((row + j) % centre_stride == 0) & (col % centre_stride == 0)
        inside = is_inside(row + j, col, H, W)
        tl.store(losses + pixel + j * W, tl.where(centre, loss, 0.0), mask=inside)
        tl.store(total + pixel + j * W, totals[j], mask=inside)
        if not BOUNDED:
            tl.store(top + pixel + j * W, tops[j], mask=inside)
