# mypy: ignore-errors
# ruff: noqa: RUF005
"""The gradient of the logits, in two kernels with the gradient of the merged logits between them."""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, cost_slope, surprise_and_miss
from lal_triton.kernels.forward import gather_weights
from lal_triton.kernels.launching import kernel
from lal_triton.kernels.state import MEAN, RSTD, TOP, TOTAL, find_plane
from lal_triton.kernels.strips import (
    fill_zero,
    is_inside,
    is_labelled,
    lane_offset,
    load_column,
    load_own_labels,
    merge_class,
    place,
    prepare_merge,
    tile_weights,
)


@triton.jit
def write_cost_gradient(
    pointer,
    view,
    weights,
    start,
    tops,
    factor,
    own_gradient,
    smooth,
    pivot,
    site,
    class_weight,
    C,
    out_c,
    out_h,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    SCALED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BOUNDED: tl.constexpr,
    LARGE: tl.constexpr,
    FAST: tl.constexpr,
):
    x_ptr, stride_c, stride_h, stride_w = view
    out_h = out_h.to(tl.int64)
    _, _, _, own, row, col, H, W = site
    for c in range(C):
        merged = merge_class(start, x_ptr, stride_h, stride_w, weights, pivot, site, KH, KW, TH, SCALED, LARGE, FAST)
        for j in tl.static_range(TH):
            g = factor[j] * (tl.exp2(merged[j]) if BOUNDED else tl.exp(merged[j] - tops[j]))
            if SMOOTHING:
                if WEIGHTED:
                    g -= smooth[j] * tl.load(class_weight + c).to(tl.float32)
                else:
                    g -= smooth[j]
            g = tl.where(own[j] == c, own_gradient[j], g)
            inside = is_inside(row + j, col, H, W)
            tl.store(pointer + j * out_h, g.to(pointer.dtype.element_ty), mask=inside)
        x_ptr += stride_c
        pointer += out_c


@kernel
def local_cost_bwd_kernel(
    out,
    gradient,
    state,
    logits,
    labels,
    class_weight,
    window,
    H,
    W,
    C,
    plane_size,
    first_image,
    out_n,
    out_c,
    out_h,
    out_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    centre_stride,
    smoothing,
    alpha,
    gamma,
    gain,
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
    BAND: tl.constexpr,
    PLACES: tl.constexpr,
):
    """gain / xi x the gradient of the merged logits, which are recomputed; 0 where no loss is taken."""
    n, pixel, state, pointer, site, weights, pivot, inverse, start, own_merged, fast = prepare_merge(
        state,
        logits,
        labels,
        window,
        first_image,
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

    own_weights = gather_weights(class_weight, own, TH, WEIGHTED)
    weight_sum = class_weight_sum(class_weight, C, WEIGHTED)
    totals = load_column(find_plane(state, TOTAL, PLACES, plane_size), own, W, TH)
    tops = ()
    if not BOUNDED:
        tops = load_column(find_plane(state, TOP, PLACES, plane_size), own, W, TH)
    gradient += pixel
    factor = ()
    own_gradient = ()
    smooth = ()
    for j in tl.static_range(TH):
        lead = tl.zeros_like(totals[j])
        if not BOUNDED:
            lead = tops[j] - own_merged[j]
        surprise, miss = surprise_and_miss(lead, totals[j])
        taken = (own[j] >= 0) & ((row + j) % centre_stride == 0) & (col % centre_stride == 0)
        coefficient = tl.load(gradient + j * W, mask=taken, other=0.0) * inverse[j] * gain
        coefficient, own_part, uniform = cost_slope(
            coefficient,
            surprise,
            miss,
            own_weights[j],
            weight_sum,
            smoothing,
            alpha,
            gamma,
            C,
            FOCAL,
            SMOOTHING,
        )
        smooth = smooth + (uniform,)
        own_gradient = own_gradient + (own_part,)
        factor = factor + (tl.div_rn(coefficient, tl.exp(-lead) + totals[j]),)

    pointer = out + n * out_n + lane_offset(row, col, out_h, out_w)
    merged_classes = tl.where(is_labelled(own, TH), C, 0)
    if fast:
        write_cost_gradient(
            pointer,
            view,
            weights,
            start,
            tops,
            factor,
            own_gradient,
            smooth,
            pivot,
            site,
            class_weight,
            merged_classes,
            out_c,
            out_h,
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
        write_cost_gradient(
            pointer,
            view,
            weights,
            start,
            tops,
            factor,
            own_gradient,
            smooth,
            pivot,
            site,
            class_weight,
            merged_classes,
            out_c,
            out_h,
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
    fill_zero(pointer, out_c, out_h, merged_classes, C, row, col, H, W, TH)


@triton.jit
def merge_gradient(
    g_view,
    c,
    C,
    weights,
    sums,
    site,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    LARGE: tl.constexpr,
    FAST: tl.constexpr,
):
    """dL/dz of the classes c `[GROUPS, 1]`; those beyond the last repeat it."""
    pointer, stride_c, stride_h, stride_w = g_view
    own = site[3]
    zero = ()
    for j in tl.static_range(TH):
        zero = zero + (tl.zeros([GROUPS, own[j].shape[1]], tl.float32),)
    pointer += tl.minimum(c, C - 1).to(tl.int64) * stride_c
    merged = merge_class(zero, pointer, stride_h, stride_w, weights, 0.0, site, KH, KW, TH, KEPT, LARGE, FAST)
    dz = ()
    for j in tl.static_range(TH):
        value = merged[j]
        if KEPT:
            value = tl.where(own[j] == c, -sums[j], value)
        dz = dz + (value,)
    return dz


@triton.jit
def write_gradient(
    pointer,
    view,
    g_view,
    weights,
    sums,
    means,
    rstds,
    site,
    merged_classes,
    C,
    out_c,
    out_h,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    GROUPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    LARGE: tl.constexpr,
    FAST: tl.constexpr,
):
    _, _, _, own, row, col, H, W = site
    x_ptr, stride_c, stride_h, _ = view
    stride_h = stride_h.to(tl.int64)
    out_h = out_h.to(tl.int64)
    group = tl.arange(0, GROUPS)[:, None]
    # float32 output holds dz itself until its sum over the classes is known; in half precision that would round twice
    HOLD: tl.constexpr = pointer.dtype.element_ty == tl.float32
    zero = ()
    for j in tl.static_range(TH):
        zero = zero + (tl.zeros([GROUPS, own[j].shape[1]], tl.float32),)

    dot = zero
    excess = zero
    if NORMALIZE:
        for c0 in range(0, merged_classes, GROUPS):
            c = c0 + group
            dz = merge_gradient(g_view, c, C, weights, sums, site, KH, KW, TH, GROUPS, KEPT, LARGE, FAST)
            x = x_ptr + c.to(tl.int64) * stride_c
            dx = pointer + c.to(tl.int64) * out_c
            new_dot = ()
            new_excess = ()
            for j in tl.static_range(TH):
                inside = is_inside(row + j, col, H, W) & (c < C)
                logit = tl.load(x + j * stride_h, mask=inside, other=means[j]).to(tl.float32) - means[j]
                new_dot = new_dot + (dot[j] + dz[j] * logit,)
                new_excess = new_excess + (excess[j] + logit,)
                if HOLD:
                    tl.store(dx + j * out_h, dz[j], mask=inside)
            dot = new_dot
            excess = new_excess
        tl.debug_barrier()

    slope = ()
    centre = ()
    if NORMALIZE:
        for j in tl.static_range(TH):
            # mean_c(dz) is 0: every gradient of a cost sums to 0 over the classes
            # of large logits the square of rstd would vanish
            slope = slope + (tl.sum(dot[j], 0)[None, :] * (rstds[j] / C) * rstds[j],)
            centre = centre + (tl.sum(excess[j], 0)[None, :] / C,)  # what rounding the mean left

    for c0 in range(0, merged_classes, GROUPS):
        c = c0 + group
        dz = zero
        if not (NORMALIZE and HOLD):
            dz = merge_gradient(g_view, c, C, weights, sums, site, KH, KW, TH, GROUPS, KEPT, LARGE, FAST)
        x = x_ptr + c.to(tl.int64) * stride_c
        dx = pointer + c.to(tl.int64) * out_c
        for j in tl.static_range(TH):
            inside = is_inside(row + j, col, H, W) & (c < C)
            value = dz[j]
            if NORMALIZE:
                if HOLD:
                    value = tl.load(dx + j * out_h, mask=inside, other=0.0)
                logit = tl.load(x + j * stride_h, mask=inside, other=0.0).to(tl.float32) - means[j] - centre[j]
                value = rstds[j] * (value - logit * slope[j])
            value = tl.where(own[j] >= 0, value, 0.0)
            tl.store(dx + j * out_h, value.to(pointer.dtype.element_ty), mask=inside)


@kernel
def merge_bwd_kernel(
    out,
    source,
    slopes,
    state,
    logits,
    labels,
    window,
    H,
    W,
    C,
    plane_size,
    first_image,
    out_n,
    out_c,
    out_h,
    out_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    WINDOW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    LARGE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Merge the cost's gradient with the mirrored window, then go back through the standard score.

    The gradient `[N, C, H, W]` is the `source`. With KEPT that is exp(f_c - f_y), to be multiplied by the `slopes`
    `[N, H, W]`, and minus the sum over the others stands in for the own class.
    """
    n, row, col, interior = place(H, W, KH, KW, TH, TW, G)
    pixel = lane_offset(row, col, W, 1)
    area = H.to(tl.int64) * W
    labels += n * area + pixel
    own = load_own_labels(labels, row, col, H, W, TH)
    state += (n + first_image) * area + pixel
    if KEPT:
        slopes += n * area + pixel
    site = (labels, slopes, window, own, row, col, H, W)
    totals = find_plane(state, TOTAL, PLACES, plane_size)
    weights, _, sums = tile_weights(interior, site, totals, 0.0, WINDOW, KH, KW, TH, KEPT, KEPT, False, LARGE)
    if LARGE:
        weights = (1.0,)
    means = ()
    rstds = ()
    if NORMALIZE:
        means = load_column(find_plane(state, MEAN, PLACES, plane_size), own, W, TH)
        rstds = load_column(find_plane(state, RSTD, PLACES, plane_size), own, W, TH)
    view = (logits + n * stride_n + lane_offset(row, col, stride_h, stride_w), stride_c, stride_h, stride_w)
    g_view = (source + n * C * area + pixel, area, W, 1)
    pointer = out + n * out_n + lane_offset(row, col, out_h, out_w)
    merged_classes = tl.where(is_labelled(own, TH), C, 0)
    if interior:
        write_gradient(
            pointer,
            view,
            g_view,
            weights,
            sums,
            means,
            rstds,
            site,
            merged_classes,
            C,
            out_c,
            out_h,
            KH,
            KW,
            TH,
            GROUPS,
            NORMALIZE,
            KEPT,
            LARGE,
            True,
        )
    else:
        write_gradient(
            pointer,
            view,
            g_view,
            weights,
            sums,
            means,
            rstds,
            site,
            merged_classes,
            C,
            out_c,
            out_h,
            KH,
            KW,
            TH,
            GROUPS,
            NORMALIZE,
            KEPT,
            LARGE,
            False,
        )
    fill_zero(pointer, out_c, out_h, merged_classes, C, row, col, H, W, TH)
