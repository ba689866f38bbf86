# mypy: ignore-errors
# ruff: noqa: RUF005
"""The map of per-pixel losses: merge, log-sum-exp and local cost in one pass over the logits."""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, local_cost, surprise_and_miss
from lal_triton.kernels.launching import kernel
from lal_triton.kernels.state import INVERSE, LOSSES, TOP, TOTAL, find_plane
from lal_triton.kernels.strips import (
    INVALID,
    LN2,
    VOID,
    fill_zero,
    is_inside,
    is_labelled,
    lane_offset,
    merge_class,
    prepare_merge,
    wide,
)


@triton.jit
def gather_weights(class_weight, own, TH: tl.constexpr, WEIGHTED: tl.constexpr):
    """The class weights of the lane's own labels, 0 where there is none."""
    weights = ()
    for j in tl.static_range(TH):
        if WEIGHTED:
            weights = weights + (tl.load(class_weight + own[j], mask=own[j] >= 0, other=0.0).to(tl.float32),)
        else:
            weights = weights + (tl.where(own[j] >= 0, 1.0, 0.0),)
    return weights


@triton.jit
def sum_exp(
    view,
    kept,
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
    KEEP: tl.constexpr,
    LARGE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Per output row: sum over c != y of exp(f_c - top); top, which is f_y if BOUNDED; sum of w_c (f_c - f_y).

    With KEEP exp(f_c - f_y) of every class goes to `kept`, a view as that of the logits.
    """
    pointer, stride_c, stride_h, stride_w = view
    own, row, col, H, W = site[3:]
    total = ()
    top = own_merged
    drift = ()
    for j in tl.static_range(TH):
        zero = tl.zeros_like(start[j])
        total = total + (zero,)
        drift = drift + (zero,)
    for c in range(C):
        merged = merge_class(start, pointer, stride_h, stride_w, weights, pivot, site, KH, KW, TH, SCALED, LARGE, FAST)
        new_total = ()
        new_top = ()
        new_drift = ()
        for j in tl.static_range(TH):
            # without the own class, whose term is known, what is small keeps its digits
            other = own[j] != c
            if BOUNDED:
                difference = merged[j] * LN2
                ratio = tl.exp2(merged[j])
                if KEEP:
                    kept_ptr = kept[0] + wide(c) * kept[1] + j * kept[2]
                    tl.store(kept_ptr, ratio, mask=is_inside(row + j, col, H, W))
                new_total = new_total + (total[j] + tl.where(other, ratio, 0.0),)
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
                    w = tl.load(class_weight + c).to(tl.float32)
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
    kept,
    state,
    logits,
    labels,
    class_weight,
    window,
    H,
    W,
    C,
    plane_size,
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
    KEEP: tl.constexpr,
    LARGE: tl.constexpr,
    BAND: tl.constexpr,
    PLACES: tl.constexpr,
):
    n, _pixel, state, pointer, site, weights, pivot, inverses, start, own_merged, fast = prepare_merge(
        state,
        logits,
        labels,
        window,
        0,
        H,
        W,
        plane_size,
        stride_n,
        stride_h,
        stride_w,
        WINDOW,
        KH,
        KW,
        TH,
        TW,
        G,
        NORMALIZE,
        BY_WEIGHT,
        BOUNDED,
        LARGE,
        BAND,
        PLACES,
    )
    own, row, col = site[3:6]
    view = (pointer, stride_c, stride_h, stride_w)
    area = H.to(tl.int64) * W
    kept_view = (kept, area, W)
    if KEEP:
        kept_view = (kept + n * C * area + lane_offset(row, col, W, 1), area, W)
    merged_classes = tl.where(is_labelled(own, TH), C, 0)
    if fast:
        totals, tops, drifts = sum_exp(
            view,
            kept_view,
            weights,
            start,
            own_merged,
            pivot,
            site,
            class_weight,
            merged_classes,
            KH,
            KW,
            TH,
            NORMALIZE,
            WEIGHTED,
            SMOOTHING,
            BOUNDED,
            KEEP,
            LARGE,
            True,
        )
    else:
        totals, tops, drifts = sum_exp(
            view,
            kept_view,
            weights,
            start,
            own_merged,
            pivot,
            site,
            class_weight,
            merged_classes,
            KH,
            KW,
            TH,
            NORMALIZE,
            WEIGHTED,
            SMOOTHING,
            BOUNDED,
            KEEP,
            LARGE,
            False,
        )
    if KEEP:
        fill_zero(kept_view[0], area, W, merged_classes, C, row, col, H, W, TH)

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
        tl.store(find_plane(state, LOSSES, PLACES, plane_size) + j * W, tl.where(centre, loss, 0.0), mask=inside)
        tl.store(find_plane(state, TOTAL, PLACES, plane_size) + j * W, totals[j], mask=inside)
        if KEEP:
            tl.store(find_plane(state, INVERSE, PLACES, plane_size) + j * W, inverses[j], mask=inside)
        if not BOUNDED:
            tl.store(find_plane(state, TOP, PLACES, plane_size) + j * W, tops[j], mask=inside)
