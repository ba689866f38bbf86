# mypy: ignore-errors
# ruff: noqa: RUF005
"""Losses without a window, of low-resolution logits and full-resolution labels: a lane for each patch of a cell.

Where the logits of a cell lie close together (`cells.find_pivot`), exponentials are taken of their differences from one
value for all, the pivot. Elsewhere, and where logits are not finite, a slower loop refers each pixel to its own
highest. Logits are divided by ln 2, for exp2.
"""

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import scaled
from lal_triton.kernels.cells import (
    Corners,
    column_lines,
    corner_offsets,
    exp2_lines,
    find_pivot,
    hash_labels,
    interpolate,
    join_corners,
    load_corners,
    load_patch,
    locate_side,
    may_hold,
    pixel_exists,
    share_among_corners,
    store_patch,
    sum_columns,
)
from lal_triton.kernels.pixel_loss import (
    at_centres,
    class_weight,
    gather_class_weights,
    nll_and_one_minus_p_from,
    pixel_loss,
    sum_class_weights,
)
from lal_triton.kernels.planes import LOSSES, TOP, TOP_MINUS_OWN, TOTAL, find_plane
from lal_triton.kernels.window import INVALID, LN2, LOG2E, VOID


@triton.jit
def repeated(value, N: tl.constexpr):
    values = ()
    for _ in tl.static_range(N):
        values = values + (value,)
    return values


@triton.jit
def first_terms(sequences):
    terms = ()
    for j in tl.static_range(len(sequences)):
        terms = terms + (sequences[j][0],)
    return terms


@triton.jit
def add_exp(total, sequences):
    """To each pixel's sum exp2(f_c)."""
    PX: tl.constexpr = len(sequences)
    terms = first_terms(sequences)
    new = ()
    for i in tl.static_range(len(total)):
        new = new + (total[i] + terms[i],)
        terms = terms + (terms[i] * sequences[i % PX][1],)
    return new


@triton.jit
def add_exp_of_others(total, own_logit, lines, own, c):
    """`add_exp` where c is not the label, and f_y where it is."""
    PX: tl.constexpr = len(lines)
    sequences = exp2_lines(lines)
    terms = first_terms(sequences)
    new = ()
    new_own = ()
    for i in tl.static_range(len(total)):
        is_own = own[i] == c
        f = lines[i % PX][0] + (i // PX) * lines[i % PX][1]
        new = new + (total[i] + tl.where(is_own, 0.0, terms[i]),)
        new_own = new_own + (tl.where(is_own, f, own_logit[i]),)
        terms = terms + (terms[i] * sequences[i % PX][1],)
    return new, new_own


@triton.jit
def weigh_corners(sums, corners, class_weight_ptr, c, L: tl.constexpr):
    """The sums of w_c x logit, for label smoothing."""
    if L.HAS_SMOOTHING:
        w = class_weight(class_weight_ptr, c, L)
        sums = Corners(sums.a + w * corners.a, sums.b + w * corners.b, sums.c + w * corners.c, sums.d + w * corners.d)
    return sums


@triton.jit
def sum_exp(
    logits, offsets, stride_c, scale, pivot, down, across, own, class_weight_ptr, C, S: tl.constexpr, L: tl.constexpr
):
    """Each pixel's sum over c != y of exp2(f_c), and f_y, less the pivot; the corners' sums over the classes, too."""
    bits = hash_labels(own)
    zero = tl.zeros_like(pivot)
    total = repeated(zero, len(own))
    own_logit = total
    sums = Corners(zero, zero, zero, zero)
    for c in range(C):
        corners = load_corners(logits, offsets, scale, pivot)
        lines = column_lines(corners, down, across, S.PX)
        if may_hold(bits, c):  # rare
            tl.debug_barrier()  # else LLVM makes the branch a choice, at the cost of both sides
            total, own_logit = add_exp_of_others(total, own_logit, lines, own, c)
        else:
            total = add_exp(total, exp2_lines(lines))
        sums = weigh_corners(sums, corners, class_weight_ptr, c, L)
        logits += stride_c
    return total, own_logit, sums


@triton.jit
def sum_exp_slowly(
    logits,
    offsets,
    stride_c,
    scale,
    pivot,
    close,
    down,
    across,
    own,
    class_weight_ptr,
    C,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """Each pixel's sum over c != y of exp2(f_c - top), f_y, and top: 0 in close cells, else the highest f.

    All f are less the pivot. Gives the corners' sums over the classes, too.
    """
    PX: tl.constexpr = S.PX
    zero = tl.zeros_like(pivot)
    total = repeated(zero, len(own))
    own_logit = total
    top = repeated(tl.where(close, 0.0, float("-inf")), len(own))
    sums = Corners(zero, zero, zero, zero)
    for c in range(C):
        corners = load_corners(logits, offsets, scale, pivot)
        new = ()
        new_own = ()
        new_top = ()
        for i in tl.static_range(len(own)):
            f = interpolate(corners, down, across, i // PX, i % PX)
            is_own = own[i] == c
            now = tl.where(close, 0.0, tl.maximum(top[i], f))
            finite = tl.where(now == float("-inf"), 0.0, now)
            so_far = total[i] * tl.exp2(top[i] - finite)
            new = new + (so_far + tl.where(is_own, 0.0, tl.exp2(f - finite)),)
            new_own = new_own + (tl.where(is_own, f, own_logit[i]),)
            new_top = new_top + (now,)
        total = new
        own_logit = new_own
        top = new_top
        sums = weigh_corners(sums, corners, class_weight_ptr, c, L)
        logits += stride_c
    return total, own_logit, top, sums


@triton.jit
def cell_loss_fwd_kernel(
    workspace_ptr,
    logits_ptr,
    labels_ptr,
    class_weight_ptr,
    axis_y,
    axis_x,
    size,
    range_begin,
    strides,
    gain,
    options,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """The planes `losses`, `total`, `top` and `top_minus_own`.

    1. Locate the patch, its corners, and the pivot.
    2. Over the classes: interpolate, and sum exp(f_c - top), where top is the pivot or the pixel's own highest.
    3. Each pixel's loss, 0 at void and between centres, NaN at labels out of range.
    """
    C = size.C
    parts_x = (size.w + 1) * S.QX
    parts = (size.h + 1) * S.QY * parts_x
    blocks = tl.cdiv(parts, S.LANES)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    part = tl.program_id(0) % blocks * S.LANES + tl.arange(0, S.LANES)
    row = part // parts_x
    col = part % parts_x
    down = locate_side(axis_y, row // S.QY, row % S.QY, part < parts, size.h, S.PY)
    across = locate_side(axis_x, col // S.QX, col % S.QX, part < parts, size.w, S.PX)
    plane = n * size.H * size.W + down.first.to(tl.int64) * size.W + across.first
    own = load_patch(labels_ptr + plane, size.W, down, across, S, VOID)
    logits_ptr += n * strides.n
    offsets = corner_offsets(strides.h, strides.w, down, across, S)
    stride_c = strides.c.to(tl.int64)
    scale = gain * LOG2E
    pivot, close = find_pivot(workspace_ptr + range_begin, size, n, down, across, scale, S)
    workspace_ptr += plane

    if tl.min(close.to(tl.int32)) == 0:  # rare
        totals, own_logit, tops, sums = sum_exp_slowly(
            logits_ptr, offsets, stride_c, scale, pivot, close, down, across, own, class_weight_ptr, C, S, L
        )
    else:
        totals, own_logit, sums = sum_exp(
            logits_ptr, offsets, stride_c, scale, pivot, down, across, own, class_weight_ptr, C, S, L
        )
        tops = repeated(tl.zeros_like(pivot), len(own))

    PX: tl.constexpr = S.PX
    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    own_weights = gather_class_weights(class_weight_ptr, own, L)
    losses = ()
    others = ()
    differences = ()
    for i in tl.static_range(len(own)):
        total = tl.where(own[i] >= 0, totals[i], 0.0)
        difference = (tops[i] - own_logit[i]) * LN2
        nll, one_minus_p = nll_and_one_minus_p_from(difference, total)
        smoothing_sum = 0.0
        if L.HAS_SMOOTHING:
            smoothing_sum = interpolate(sums, down, across, i // PX, i % PX)
            smoothing_sum = (smoothing_sum - weight_sum * own_logit[i]) * LN2
        loss = pixel_loss(nll, one_minus_p, smoothing_sum, own_weights[i], weight_sum, options, C, L)
        loss = tl.where(own[i] == INVALID, float("nan"), loss)
        centre = at_centres(
            own[i] != VOID, down.first + i // PX, across.first + i % PX, options.centre_stride, L.STRIDED
        )
        losses = losses + (tl.where(centre, loss, 0.0),)
        others = others + (total,)
        differences = differences + (difference,)
    store_patch(find_plane(workspace_ptr, LOSSES, S, size.plane), losses, size.W, down, across, S)
    store_patch(find_plane(workspace_ptr, TOTAL, S, size.plane), others, size.W, down, across, S)
    store_patch(find_plane(workspace_ptr, TOP, S, size.plane), tops, size.W, down, across, S)
    store_patch(find_plane(workspace_ptr, TOP_MINUS_OWN, S, size.plane), differences, size.W, down, across, S)


@triton.jit
def weigh_columns(sequences, slopes):
    """Of each column the sum of slope x exp2(f_c), and of that times the row.

    They are a polynomial in the ratio of the column's sequence, and its derivative times the ratio.
    """
    PX: tl.constexpr = len(sequences)
    PY: tl.constexpr = len(slopes) // PX
    columns = ()
    for j in tl.static_range(PX):
        first, ratio = sequences[j]
        total = slopes[(PY - 1) * PX + j]
        derivative = tl.zeros_like(total)
        for k in tl.static_range(1, PY):
            derivative = total if k == 1 else derivative * ratio + total
            total = total * ratio + slopes[(PY - 1 - k) * PX + j]
        columns = columns + ((first * total, first * ratio * derivative),)
    return columns


@triton.jit
def weigh_columns_by_row(
    corners,
    down,
    across,
    slopes_ptr,
    labels_ptr,
    workspace_ptr,
    size,
    gain,
    weight_sum,
    c,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """The sums of dL/df_c itself: exp2(f_c - top), and what is not a slope times it where c is the label.

    A row of pixels at a time, which takes few registers.
    """
    PX: tl.constexpr = S.PX
    zero = tl.zeros_like(corners.a)
    columns = repeated((zero, zero), PX)
    for k in range(S.PY):
        new = ()
        for j in tl.static_range(PX):
            at = k * size.W + j
            inside = pixel_exists(down, across, k, j)
            own = tl.load(labels_ptr + at, mask=inside, other=VOID)
            labelled = inside & (own >= 0)
            slope = tl.load(slopes_ptr + at, mask=labelled, other=0.0) * gain
            total = tl.load(find_plane(workspace_ptr, TOTAL, S, size.plane) + at, mask=labelled, other=0.0)
            top = tl.load(find_plane(workspace_ptr, TOP, S, size.plane) + at, mask=labelled, other=0.0)
            own_gradient = -slope * total
            if L.HAS_SMOOTHING:  # less what it takes of every class
                uniform = tl.load(slopes_ptr + size.plane + at, mask=labelled, other=0.0) * gain
                own_gradient += uniform * weight_sum
            g = tl.where(own == c, own_gradient, slope * tl.exp2(interpolate(corners, down, across, k, j) - top))
            g = tl.where(labelled, g, 0.0)
            new = new + ((columns[j][0] + g, columns[j][1] + k * g),)
        columns = new
    return columns


@triton.jit
def cell_loss_bwd_kernel(
    out_ptr,
    held_ptr,
    slopes_ptr,
    workspace_ptr,
    logits_ptr,
    labels_ptr,
    class_weight_ptr,
    axis_y,
    axis_x,
    size,
    range_begin,
    out_strides,
    held_strides,
    strides,
    gain,
    S: tl.constexpr,
    L: tl.constexpr,
):
    """The gradient of the logits, from the slopes `[1 or 2, N, H, W]` that `pool_bwd_kernel` makes of a loss.

    A program has so many classes, CLASSES at most, and lanes for the patches beside each other in a row of cells; those
    of the image's other strips follow. It goes down the ROWS low-resolution rows of a strip. What the cells above a row
    give it is held until those below give theirs. The program's first lanes give to others only.

    1. Of a row of patches: locate them, and load the slopes.
    2. Over the classes: interpolate, and sum slope x exp(f_c - top) with the bilinear weights of each corner.
    3. Join what neighbouring cells give to a low-resolution pixel, and add what is held.
    """
    C = size.C
    FEEDS: tl.constexpr = 2 * S.QX - 1
    chunks = tl.cdiv(C, S.CLASSES)
    parts_x = (size.w + 1) * S.QX
    parts = tl.cdiv(size.h, S.ROWS) * parts_x
    blocks = tl.cdiv(parts, S.LANES - FEEDS)
    n = (tl.program_id(0) // chunks // blocks).to(tl.int64)
    lane = tl.arange(0, S.LANES)
    part = tl.program_id(0) // chunks % blocks * (S.LANES - FEEDS) - FEEDS + lane
    there = (part >= 0) & (part < parts)
    first_row = part // parts_x * S.ROWS
    col = part % parts_x
    across = locate_side(axis_x, col // S.QX, col % S.QX, there, size.w, S.PX)
    writes = there & (lane >= FEEDS) & (col >= S.QX) & (col % S.QX == S.QX - 1)
    chunk = tl.program_id(0) % chunks
    first_class = chunk * C // chunks
    classes = (chunk + 1) * C // chunks - first_class

    stride_c = strides.c.to(tl.int64)
    out_c = out_strides.c.to(tl.int64)
    held_c = held_strides.c.to(tl.int64)
    logits_ptr += n * strides.n + first_class * stride_c
    out_ptr += n * out_strides.n + first_class * out_c
    held_ptr += n * held_strides.n + first_class * held_c
    weight_sum = sum_class_weights(class_weight_ptr, C, L)
    HOLDS: tl.constexpr = out_ptr.dtype.element_ty != tl.float32
    for part_y in range((tl.minimum(S.ROWS, size.h) + 1) * S.QY):
        step = part_y // S.QY
        row = first_row + step
        down = locate_side(axis_y, row, part_y % S.QY, there & (row <= size.h), size.h, S.PY)
        plane = n * size.H * size.W + down.first.to(tl.int64) * size.W + across.first
        slopes = scaled(load_patch(slopes_ptr + plane, size.W, down, across, S, 0.0), gain)
        bits = hash_labels(load_patch(labels_ptr + plane, size.W, down, across, S, VOID))
        pivot, close = find_pivot(workspace_ptr + range_begin, size, n, down, across, gain * LOG2E, S)
        some_far = tl.min(close.to(tl.int32)) == 0
        uniform_above = 0.0
        uniform_below = 0.0
        if L.HAS_SMOOTHING:
            uniform = scaled(load_patch(slopes_ptr + size.plane + plane, size.W, down, across, S, 0.0), gain)
            columns = sum_columns(uniform, S.PX)
            uniform_above, uniform_below = join_corners(share_among_corners(columns, down, across), S.QX)

        offsets = corner_offsets(strides.h, strides.w, down, across, S)
        out_offsets = corner_offsets(out_strides.h, out_strides.w, down, across, S)
        held_offsets = out_offsets
        if HOLDS:
            held_offsets = corner_offsets(held_strides.h, held_strides.w, down, across, S)
        gives_above = writes & (step > 0) & (row <= size.h)
        gives_below = writes & (step < S.ROWS) & (row < size.h)
        logits = logits_ptr
        held = held_ptr
        out = out_ptr
        for k in range(classes):
            c = first_class + k
            corners = load_corners(logits, offsets, gain * LOG2E, pivot)
            if some_far | may_hold(bits, c):  # rare
                columns = weigh_columns_by_row(
                    corners,
                    down,
                    across,
                    slopes_ptr + plane,
                    labels_ptr + plane,
                    workspace_ptr + plane,
                    size,
                    gain,
                    weight_sum,
                    c,
                    S,
                    L,
                )
            else:
                columns = weigh_columns(exp2_lines(column_lines(corners, down, across, S.PX)), slopes)
            above, below = join_corners(share_among_corners(columns, down, across), S.QX)
            if L.HAS_SMOOTHING:
                w = class_weight(class_weight_ptr, c, L)
                above -= w * uniform_above
                below -= w * uniform_below
            above += tl.load(held + held_offsets.a, mask=gives_above, other=0.0)
            if S.QY > 1:
                below += tl.load(held + held_offsets.c, mask=gives_below & (part_y % S.QY > 0), other=0.0)
            if HOLDS:
                is_last = part_y % S.QY == S.QY - 1
                tl.store(held + held_offsets.a, above, mask=gives_above & ~is_last)
                tl.store(out + out_offsets.a, above.to(out_ptr.dtype.element_ty), mask=gives_above & is_last)
                out += out_c
            else:
                tl.store(held + held_offsets.a, above, mask=gives_above)
            tl.store(held + held_offsets.c, below, mask=gives_below)
            logits += stride_c
            held += held_c
        tl.debug_barrier()
