# mypy: ignore-errors
# ruff: noqa: RUF005
"""The gradient of the logits, in two kernels with the gradient of the merged logits between them."""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, cost_slope, surprise_and_miss
from lal_triton.kernels.forward import gather_weights
from lal_triton.kernels.strips import (
    invert,
    is_inside,
    kernel,
    lane_offset,
    lane_pivot,
    load_column,
    load_own_labels,
    logit_units,
    merge_class,
    place,
    scale_weights,
    strip_weights,
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
    INTERIOR: tl.constexpr,
):
    x_ptr, stride_c, stride_h, stride_w = view
    out_h = out_h.to(tl.int64)
    _, _, _, own, row, col, H, W = site
    for c in range(C):
        merged = merge_class(
            start, x_ptr, stride_h, stride_w, weights, pivot, site, KH, KW, TH, SCALED, LARGE, INTERIOR
        )
        for j in tl.static_range(TH):
            g = factor[j] * (tl.exp2(merged[j]) if BOUNDED else tl.exp(merged[j] - tops[j]))
            if SMOOTHING:
                if WEIGHTED:
                    g -= smooth[j] * tl.load(class_weight + c)
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
    logits,
    labels,
    mean,
    rstd,
    top,
    total,
    class_weight,
    window,
    H,
    W,
    C,
    out_n,
    out_c,
    out_h,
    out_w,
    gradient_n,
    gradient_h,
    gradient_w,
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
):
    """gain / xi x the gradient of the merged logits, which are recomputed; 0 where no loss is taken."""
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
    inverse = invert(xi, TH)
    scale, start, own_merged = logit_units(inverse, sums, TH, BOUNDED)
    weights = scale_weights(weights, scale, KH, KW, TH, LARGE)

    own_weights = gather_weights(class_weight, own, TH, WEIGHTED)
    weight_sum = class_weight_sum(class_weight, C, WEIGHTED)
    totals = load_column(total + pixel, own, W, TH)
    tops = ()
    if not BOUNDED:
        tops = load_column(top + pixel, own, W, TH)
    gradient += n * gradient_n + lane_offset(row, col, gradient_h, gradient_w)
    factor = ()
    own_gradient = ()
    smooth = ()
    for j in tl.static_range(TH):
        lead = tl.zeros_like(totals[j])
        if not BOUNDED:
            lead = tops[j] - own_merged[j]
        surprise, miss = surprise_and_miss(lead, totals[j])
        taken = (own[j] >= 0) & ((row + j) % centre_stride == 0) & (col % centre_stride == 0)
        coefficient = tl.load(gradient + gradient_h.to(tl.int64) * j, mask=taken, other=0.0) * inverse[j] * gain
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
        factor = factor + (coefficient / (tl.exp(-lead) + totals[j]),)

    pointer = out + n * out_n + lane_offset(row, col, out_h, out_w)
    if interior:
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
            C,
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
            C,
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


@triton.jit
def write_gradient(
    pointer,
    view,
    g_view,
    weights,
    means,
    rstds,
    site,
    C,
    out_c,
    out_h,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    LARGE: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    _, _, _, own, row, col, H, W = site
    x_ptr, stride_c, stride_h, _ = view
    stride_h = stride_h.to(tl.int64)
    out_h = out_h.to(tl.int64)
    g_ptr, g_stride_c, g_stride_h, g_stride_w = g_view
    # float32 output holds dz itself until its sum over the classes is known; in half precision that would round twice
    HOLD: tl.constexpr = pointer.dtype.element_ty == tl.float32
    zero = ()
    for _ in tl.static_range(TH):
        zero = zero + (tl.zeros_like(row).to(tl.float32),)

    dot = zero
    excess = zero
    if NORMALIZE:
        x = x_ptr
        g = g_ptr
        dx = pointer
        for _ in range(C):
            dz = merge_class(zero, g, g_stride_h, g_stride_w, weights, 0.0, site, KH, KW, TH, False, LARGE, INTERIOR)
            new_dot = ()
            new_excess = ()
            for j in tl.static_range(TH):
                inside = is_inside(row + j, col, H, W)
                logit = tl.load(x + j * stride_h, mask=inside, other=0.0).to(tl.float32) - means[j]
                new_dot = new_dot + (dot[j] + dz[j] * logit,)
                new_excess = new_excess + (excess[j] + logit,)
                if HOLD:
                    tl.store(dx + j * out_h, dz[j], mask=inside)
            dot = new_dot
            excess = new_excess
            x += stride_c
            g += g_stride_c
            dx += out_c
        tl.debug_barrier()

    for _ in range(C):
        dz = zero
        if not (NORMALIZE and HOLD):
            dz = merge_class(
                zero, g_ptr, g_stride_h, g_stride_w, weights, 0.0, site, KH, KW, TH, False, LARGE, INTERIOR
            )
        for j in tl.static_range(TH):
            inside = is_inside(row + j, col, H, W)
            value = dz[j]
            if NORMALIZE:
                if HOLD:
                    value = tl.load(pointer + j * out_h, mask=inside, other=0.0)
                logit = tl.load(x_ptr + j * stride_h, mask=inside, other=0.0).to(tl.float32) - means[j]
                logit -= excess[j] / C  # what rounding the mean left
                # mean_c(dz) is 0: every gradient of a cost sums to 0 over the classes
                slope = dot[j] * (rstds[j] * rstds[j] / C)
                value = rstds[j] * (value - logit * slope)
            value = tl.where(own[j] >= 0, value, 0.0)
            tl.store(pointer + j * out_h, value.to(pointer.dtype.element_ty), mask=inside)
        x_ptr += stride_c
        g_ptr += g_stride_c
        pointer += out_c


@kernel
def merge_bwd_kernel(
    out,
    cost_gradient,
    logits,
    labels,
    mean,
    rstd,
    window,
    H,
    W,
    C,
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
    NORMALIZE: tl.constexpr,
    LARGE: tl.constexpr,
):
    """Merge the cost's gradient (`[n, C, H, W]`) with the mirrored window, then go back through the standard score."""
    n, row, col, interior = place(H, W, KH, KW, TH, TW, G)
    pixel = lane_offset(row, col, W, 1)
    area = H.to(tl.int64) * W
    labels += n * area + pixel
    own = load_own_labels(labels, row, col, H, W, TH)
    site = (labels, rstd, window, own, row, col, H, W)
    weights, _, _ = strip_weights(site, (), 0.0, WINDOW, KH, KW, TH, False, False, False, LARGE)
    if LARGE:
        weights = (1.0,)
    means = ()
    rstds = ()
    if NORMALIZE:
        means = load_column(mean + n * area + pixel, own, W, TH)
        rstds = load_column(rstd + n * area + pixel, own, W, TH)
    view = (logits + n * stride_n + lane_offset(row, col, stride_h, stride_w), stride_c, stride_h, stride_w)
    g_view = (cost_gradient + n * C * area + pixel, area, W, 1)
    pointer = out + n * out_n + lane_offset(row, col, out_h, out_w)
    if interior:
        write_gradient(
            pointer,
            view,
            g_view,
            weights,
            means,
            rstds,
            site,
            C,
            out_c,
            out_h,
            KH,
            KW,
            TH,
            NORMALIZE,
            LARGE,
            True,
        )
    else:
        write_gradient(
            pointer,
            view,
            g_view,
            weights,
            means,
            rstds,
            site,
            C,
            out_c,
            out_h,
            KH,
            KW,
            TH,
            NORMALIZE,
            LARGE,
            False,
        )
