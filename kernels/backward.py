# mypy: ignore-errors
# ruff: noqa: RUF005
"""The gradient of the logits, in two kernels with the gradient of the merged logits between them."""

import triton
import triton.language as tl

from lal_triton.kernels.pixel_loss import (
    at_centres,
    gather_class_weights,
    nll_and_one_minus_p,
    pixel_loss_slope,
    sum_class_weights,
)
from lal_triton.kernels.planes import MEAN, RSTD, TOP, TOTAL, find_plane
from lal_triton.kernels.records import Strides
from lal_triton.kernels.window import (
    Merge,
    Neighbourhood,
    View,
    fill_zero,
    is_inside,
    is_labelled,
    lane_offset,
    load_column,
    load_own_labels,
    locate_tile,
    merge_class,
    prepare_merge,
    tile_weights,
    view_image,
)


@triton.jit
def write_merged_gradient(
    out, view, merge, slopes, class_weight_ptr, C, S: tl.constexpr, L: tl.constexpr, FAST: tl.constexpr
):
    """The gradient of the merged logits; `slopes` are each output row's top, factor, own gradient and smoothing."""
    tops, factor, own_gradient, smooth = slopes
    ROWS: tl.constexpr = S.ROWS
    near = merge.near
    out_h = out.strides.h.to(tl.int64)
    x_ptr = view.pointer
    out_ptr = out.pointer
    for c in range(C):
        merged = merge_class(x_ptr, view.strides, merge, S, S.NORMALIZE, FAST)
        for j in tl.static_range(ROWS):
            g = factor[j] * (tl.exp2(merged[j]) if L.BOUNDED else tl.exp(merged[j] - tops[j]))
            if L.HAS_SMOOTHING:
                if L.HAS_CLASS_WEIGHT:
                    g -= smooth[j] * tl.load(class_weight_ptr + c).to(tl.float32)
                else:
                    g -= smooth[j]
            g = tl.where(near.own[j] == c, own_gradient[j], g)
            inside = is_inside(near.row + j, near.col, near.H, near.W)
            tl.store(out_ptr + j * out_h, g.to(out_ptr.dtype.element_ty), mask=inside)
        x_ptr += view.strides.c
        out_ptr += out.strides.c


@triton.jit
def local_cost_bwd_kernel(
    out_ptr,
    gradient_ptr,
    workspace_ptr,
    logits_ptr,
    labels_ptr,
    class_weight_ptr,
    window_ptr,
    size,
    first_image,
    out_strides,
    strides,
    options,
    gain,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """gain / xi x the gradient of the merged logits, which are recomputed; 0 where no loss is taken.

    1. Prepare the merge, as the forward.
    2. From `total` and `top` that the forward left: the slope of each pixel's loss.
    3. Over the classes: merge, and write slope x softmax, or what the own class gets.
    """
    C = size.C
    view, merge, n, pixel, workspace, own_merged, inverse, fast = prepare_merge(
        workspace_ptr, logits_ptr, labels_ptr, window_ptr, size, first_image, strides, S, L.BOUNDED
    )
    near = merge.near
    ROWS: tl.constexpr = S.ROWS
    own_weights = gather_class_weights(class_weight_ptr, near.own, L)
    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    totals = load_column(find_plane(workspace, TOTAL, S, size.plane), near.own, size.W)
    tops = ()
    if not L.BOUNDED:
        tops = load_column(find_plane(workspace, TOP, S, size.plane), near.own, size.W)
    gradient_ptr += pixel
    factor = ()
    own_gradient = ()
    smooth = ()
    for j in tl.static_range(ROWS):
        max_minus_own = tl.zeros_like(totals[j])
        if not L.BOUNDED:
            max_minus_own = tops[j] - own_merged[j]
        nll, one_minus_p = nll_and_one_minus_p(max_minus_own, totals[j])
        taken = at_centres(near.own[j] >= 0, near.row + j, near.col, options.centre_stride, L.STRIDED)
        coefficient = tl.load(gradient_ptr + j * size.W, mask=taken, other=0.0) * inverse[j] * gain
        coefficient, own_part, uniform = pixel_loss_slope(
            coefficient, nll, one_minus_p, own_weights[j], weight_sum, options, C, L
        )
        smooth = smooth + (uniform,)
        own_gradient = own_gradient + (own_part,)
        factor = factor + (tl.div_rn(coefficient, tl.exp(-max_minus_own) + totals[j]),)

    out = view_image(out_ptr, out_strides, n, near.row, near.col)
    slopes = (tops, factor, own_gradient, smooth)
    merged_classes = tl.where(is_labelled(near.own), C, 0)
    if fast:
        write_merged_gradient(out, view, merge, slopes, class_weight_ptr, merged_classes, S, L, True)
    else:
        write_merged_gradient(out, view, merge, slopes, class_weight_ptr, merged_classes, S, L, False)
    fill_zero(out, near, merged_classes, C, S.ROWS)


@triton.jit
def merge_gradient(g_view, c, C, merge, sums, S: tl.constexpr, FAST: tl.constexpr):
    """dL/dz of the classes c `[GROUPS, 1]`; those beyond the last repeat it."""
    own = merge.near.own
    pointer = g_view.pointer + tl.minimum(c, C - 1).to(tl.int64) * g_view.strides.c
    merged = merge_class(pointer, g_view.strides, merge, S, S.SAVES_EXP, FAST)
    dz = ()
    for j in tl.static_range(len(own)):
        value = merged[j]
        if S.SAVES_EXP:
            value = tl.where(own[j] == c, -sums[j], value)
        dz = dz + (value,)
    return dz


@triton.jit
def write_gradient(
    out, view, g_view, merge, sums, means, rstds, merged_classes, C, S: tl.constexpr, FAST: tl.constexpr
):
    near = merge.near
    stride_h = view.strides.h.to(tl.int64)
    out_h = out.strides.h.to(tl.int64)
    ROWS: tl.constexpr = S.ROWS
    GROUPS: tl.constexpr = S.GROUPS
    group = tl.arange(0, GROUPS)[:, None]
    # float32 output holds dz itself until its sum over the classes is known; in half precision that would round twice
    HOLD: tl.constexpr = out.pointer.dtype.element_ty == tl.float32
    zero = merge.start

    dot = zero
    excess = zero
    if S.NORMALIZE:
        for c0 in range(0, merged_classes, GROUPS):
            c = c0 + group
            dz = merge_gradient(g_view, c, C, merge, sums, S, FAST)
            x = view.pointer + c.to(tl.int64) * view.strides.c
            dx = out.pointer + c.to(tl.int64) * out.strides.c
            new_dot = ()
            new_excess = ()
            for j in tl.static_range(ROWS):
                inside = is_inside(near.row + j, near.col, near.H, near.W) & (c < C)
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
    if S.NORMALIZE:
        for j in tl.static_range(ROWS):
            # mean_c(dz) is 0: the gradient of every pixel's loss sums to 0 over the classes
            # of large logits the square of rstd would vanish
            slope = slope + (tl.sum(dot[j], 0)[None, :] * (rstds[j] / C) * rstds[j],)
            centre = centre + (tl.sum(excess[j], 0)[None, :] / C,)  # what rounding the mean left

    for c0 in range(0, merged_classes, GROUPS):
        c = c0 + group
        dz = zero
        if not (S.NORMALIZE and HOLD):
            dz = merge_gradient(g_view, c, C, merge, sums, S, FAST)
        x = view.pointer + c.to(tl.int64) * view.strides.c
        dx = out.pointer + c.to(tl.int64) * out.strides.c
        for j in tl.static_range(ROWS):
            inside = is_inside(near.row + j, near.col, near.H, near.W) & (c < C)
            value = dz[j]
            if S.NORMALIZE:
                if HOLD:
                    value = tl.load(dx + j * out_h, mask=inside, other=0.0)
                logit = tl.load(x + j * stride_h, mask=inside, other=0.0).to(tl.float32) - means[j] - centre[j]
                value = rstds[j] * (value - logit * slope[j])
            value = tl.where(near.own[j] >= 0, value, 0.0)
            tl.store(dx + j * out_h, value.to(out.pointer.dtype.element_ty), mask=inside)


@triton.jit
def merge_bwd_kernel(
    out_ptr,
    source_ptr,
    slopes_ptr,
    workspace_ptr,
    logits_ptr,
    labels_ptr,
    window_ptr,
    size,
    first_image,
    out_strides,
    strides,
    S: tl.constexpr,
):
    """The gradient of the logits from the `source` `[N, C, H, W]`, with the mirrored window.

    The source is the gradient of the merged logits. With SAVES_EXP it is exp(f_c - f_y), which the `slopes` `[N, H, W]`
    multiply, and minus the sum over the others stands in for the own class.

    1. The weights mu w of the window, with SAVES_EXP times the slopes.
    2. Over the classes: merge the source to dL/dz, and sum what the standard score needs of it.
    3. Over the classes: go back through the standard score.
    """
    C = size.C
    n, row, col, interior = locate_tile(size.H, size.W, S)
    pixel = lane_offset(row, col, size.W, 1)
    area = size.H.to(tl.int64) * size.W
    labels_ptr += n * area + pixel
    own = load_own_labels(labels_ptr, row, col, size.H, size.W, S.ROWS)
    workspace = workspace_ptr + (n + first_image) * area + pixel
    if S.SAVES_EXP:
        slopes_ptr += n * area + pixel
    near = Neighbourhood(labels_ptr, slopes_ptr, window_ptr, own, row, col, size.H, size.W)
    totals = find_plane(workspace, TOTAL, S, size.plane)
    weights, _, sums = tile_weights(interior, near, totals, 0.0, S, S.SAVES_EXP, S.SAVES_EXP)
    if S.LARGE:
        weights = (1.0,)
    means = ()
    rstds = ()
    if S.NORMALIZE:
        means = load_column(find_plane(workspace, MEAN, S, size.plane), own, size.W)
        rstds = load_column(find_plane(workspace, RSTD, S, size.plane), own, size.W)
    zero = ()
    GROUPS: tl.constexpr = S.GROUPS
    for j in tl.static_range(len(own)):
        zero = zero + (tl.zeros([GROUPS, own[j].shape[1]], tl.float32),)
    merge = Merge(near, weights, 0.0, zero)
    view = view_image(logits_ptr, strides, n, row, col)
    g_view = View(source_ptr + n * C * area + pixel, Strides(0, area, size.W, 1))
    out = view_image(out_ptr, out_strides, n, row, col)
    merged_classes = tl.where(is_labelled(own), C, 0)
    if interior:
        write_gradient(out, view, g_view, merge, sums, means, rstds, merged_classes, C, S, True)
    else:
        write_gradient(out, view, g_view, merge, sums, means, rstds, merged_classes, C, S, False)
    fill_zero(out, near, merged_classes, C, S.ROWS)
