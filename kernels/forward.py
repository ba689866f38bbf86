# mypy: ignore-errors
# ruff: noqa: RUF005
"""The map of per-pixel losses: merge, log-sum-exp and the pixel's loss in one pass over the logits."""

import triton
import triton.language as tl

from lal_triton.kernels.pixel_loss import (
    at_centres,
    class_weight,
    gather_class_weights,
    nll_and_one_minus_p,
    pixel_loss,
    sum_class_weights,
)
from lal_triton.kernels.planes import INVERSE, LOSSES, TOP, TOTAL, find_plane
from lal_triton.kernels.records import Strides
from lal_triton.kernels.window import (
    INVALID,
    LN2,
    VOID,
    View,
    fill_zero,
    is_inside,
    is_labelled,
    lane_offset,
    merge_class,
    prepare_merge,
    wide,
)


@triton.jit
def sum_exp(view, saved, merge, own_merged, class_weight_ptr, C, S: tl.constexpr, L: tl.constexpr, FAST: tl.constexpr):
    """Per output row: sum over c != y of exp(f_c - top); top, which is f_y if BOUNDED; sum of w_c (f_c - f_y).

    With SAVES_EXP exp(f_c - f_y) of every class goes to the view `saved`.
    """
    ROWS: tl.constexpr = S.ROWS
    near = merge.near
    pointer = view.pointer
    total = ()
    top = own_merged
    smoothing_sum = ()
    for j in tl.static_range(ROWS):
        zero = tl.zeros_like(merge.start[j])
        total = total + (zero,)
        smoothing_sum = smoothing_sum + (zero,)
    for c in range(C):
        merged = merge_class(pointer, view.strides, merge, S, S.NORMALIZE, FAST)
        new_total = ()
        new_top = ()
        new_sum = ()
        for j in tl.static_range(ROWS):
            # without the own class, whose term is known, what is small keeps its digits
            other = near.own[j] != c
            if L.BOUNDED:
                difference = merged[j] * LN2
                ratio = tl.exp2(merged[j])
                if S.SAVES_EXP:
                    saved_ptr = saved.pointer + wide(c) * saved.strides.c + j * saved.strides.h
                    tl.store(saved_ptr, ratio, mask=is_inside(near.row + j, near.col, near.H, near.W))
                new_total = new_total + (total[j] + tl.where(other, ratio, 0.0),)
                new_top = top
            else:
                difference = merged[j] - own_merged[j]
                highest = tl.maximum(top[j], merged[j])
                so_far = total[j] * tl.exp(top[j] - highest)
                new_total = new_total + (so_far + tl.where(other, tl.exp(merged[j] - highest), 0.0),)
                new_top = new_top + (highest,)
            if L.HAS_SMOOTHING:
                new_sum = new_sum + (smoothing_sum[j] + class_weight(class_weight_ptr, c, L) * difference,)
            else:
                new_sum = smoothing_sum
        total = new_total
        top = new_top
        smoothing_sum = new_sum
        pointer += view.strides.c
    return total, top, smoothing_sum


@triton.jit
def local_loss_fwd_kernel(
    saved_exp_ptr,
    workspace_ptr,
    logits_ptr,
    labels_ptr,
    class_weight_ptr,
    window_ptr,
    size,
    strides,
    options,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """The planes `losses`, `total`, `top` and `inverse` of a tile.

    1. Prepare the merge: weights mu w / (xi std) of the window, the pivot, and f_y.
    2. Over the classes: merge, and sum exp(f_c - top); with SAVES_EXP store exp(f_c - f_y).
    3. Each pixel's loss, 0 at void and between centres, NaN at labels out of range.
    """
    C = size.C
    view, merge, n, _pixel, workspace, own_merged, inverse, fast = prepare_merge(
        workspace_ptr, logits_ptr, labels_ptr, window_ptr, size, 0, strides, S, L.BOUNDED
    )
    near = merge.near
    area = size.H.to(tl.int64) * size.W
    saved = View(saved_exp_ptr, Strides(0, area, size.W, 1))
    if S.SAVES_EXP:
        saved = View(saved_exp_ptr + n * C * area + lane_offset(near.row, near.col, size.W, 1), saved.strides)
    merged_classes = tl.where(is_labelled(near.own), C, 0)
    if fast:
        totals, tops, sums = sum_exp(view, saved, merge, own_merged, class_weight_ptr, merged_classes, S, L, True)
    else:
        totals, tops, sums = sum_exp(view, saved, merge, own_merged, class_weight_ptr, merged_classes, S, L, False)
    if S.SAVES_EXP:
        fill_zero(saved, near, merged_classes, C, S.ROWS)

    ROWS: tl.constexpr = S.ROWS
    own_weights = gather_class_weights(class_weight_ptr, near.own, L)
    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    for j in tl.static_range(ROWS):
        row = near.row + j
        nll, one_minus_p = nll_and_one_minus_p(tops[j] - own_merged[j], totals[j])
        loss = pixel_loss(nll, one_minus_p, sums[j], own_weights[j], weight_sum, options, C, L)
        loss = tl.where(near.own[j] == INVALID, float("nan"), loss)
        centre = at_centres(near.own[j] != VOID, row, near.col, options.centre_stride, L.STRIDED)
        inside = is_inside(row, near.col, size.H, size.W)
        loss = tl.where(centre, loss, 0.0)
        tl.store(find_plane(workspace, LOSSES, S, size.plane) + j * size.W, loss, mask=inside)
        tl.store(find_plane(workspace, TOTAL, S, size.plane) + j * size.W, totals[j], mask=inside)
        if S.SAVES_EXP:
            tl.store(find_plane(workspace, INVERSE, S, size.plane) + j * size.W, inverse[j], mask=inside)
        if not L.BOUNDED:
            tl.store(find_plane(workspace, TOP, S, size.plane) + j * size.W, tops[j], mask=inside)
