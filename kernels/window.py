# mypy: ignore-errors
# ruff: noqa: RUF005
"""What the full-resolution kernels share: tiles of pixels, labels, and the merge of one class over the window.

A lane owns a strip: ROWS output pixels, one below the other. Its window weights are a tuple of floats that lives in
registers through the loop over the classes, in which every input row is loaded once at each of its KW shifts and feeds
all the output rows whose window it is in. A window too large for that (LARGE, with ROWS = 1) is walked by a plain loop
over its taps. Lanes have the shape [1, lanes], so that what has a class may have the shape [classes, lanes].

Labels are encoded (`lal_triton.labels`), and they and all other `[N, H, W]` planes are contiguous.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels import configs
from lal_triton.kernels.planes import MEAN, OFFSETS, OWN_LOGIT, RSTD, find_plane
from lal_triton.kernels.records import WindowSpec

VOID = tl.constexpr(-1)
INVALID = tl.constexpr(-2)
NO_LABEL = tl.constexpr(-3)  # of a pixel that is to be like no other
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
PIVOT_ROWS = tl.constexpr(8)
BAND_ROWS = tl.constexpr(configs.BAND_ROWS)
MOST_OFFSET = tl.constexpr(1.0)
TINY = tl.constexpr(1.1754943508222875e-38)


class View(NamedTuple):
    """A tensor `[N, C, H, W]` from a lane's first pixel of class 0 on."""

    pointer: Any
    strides: Any


class Neighbourhood(NamedTuple):
    """Where a lane's pixels are, and what the weights of their windows are made from."""

    labels: Any  # pointers to the lane's first pixel in planes
    scale: Any
    window: Any  # pointer to the weights of a LARGE window
    own: Any  # the labels of the lane's own pixels
    row: Any  # of its first pixel
    col: Any
    H: Any
    W: Any


class Merge(NamedTuple):
    """What merging takes of a lane's neighbourhood, for all classes."""

    near: Any
    weights: Any
    pivot: Any  # subtracted from the logits
    start: Any  # where the sum of a class starts


# Triton 3.5's interpreter makes a plain tuple of a record that a constexpr_function is called with.
@triton.constexpr_function
def feeds(r, j, S):
    """Whether row r of the strip's ROWS + KH - 1 input rows is in the window of output row j."""
    return 0 <= r - j < WindowSpec(*S).KH


@triton.constexpr_function
def window_weight(i, cc, S):
    spec = WindowSpec(*S)
    return spec.WEIGHTS[i * spec.KW + cc]


@triton.constexpr_function
def weight_index(r, cc, j, S):
    """Where `strip_weights` puts the weight of input (r, cc) for output row j."""
    spec = WindowSpec(*S)
    before = sum(spec.KW * sum(0 <= r_ - j_ < spec.KH for j_ in range(spec.ROWS)) for r_ in range(r))
    fed = [j_ for j_ in range(spec.ROWS) if 0 <= r - j_ < spec.KH]
    return before + cc * len(fed) + fed.index(j)


@triton.jit
def locate_tile(H, W, S: tl.constexpr):
    """The program's image, each lane's first row and its column, and whether all windows lie inside the image."""
    tile = tl.program_id(0)
    across = tl.cdiv(W, S.COLUMNS)
    down = tl.cdiv(H, S.ROWS * S.STRIPS)
    n = (tile // across // down).to(tl.int64)
    row0 = tile // across % down * (S.ROWS * S.STRIPS)
    col0 = tile % across * S.COLUMNS
    inside_rows = (row0 >= S.KH // 2) & (row0 + S.ROWS * S.STRIPS + S.KH // 2 <= H)
    interior = inside_rows & (col0 >= S.KW // 2) & (col0 + S.COLUMNS + S.KW // 2 <= W)
    lane = tl.arange(0, S.COLUMNS * S.STRIPS)[None, :]
    return n, row0 + lane // S.COLUMNS * S.ROWS, col0 + lane % S.COLUMNS, interior


@triton.jit
def wide(i):
    """As int64, for offsets; the interpreter's loops count in plain numbers."""
    return tl.zeros([], tl.int64) + i


@triton.jit
def is_inside(row, col, H, W):
    return (row >= 0) & (row < H) & (col >= 0) & (col < W)


@triton.jit
def lane_offset(row, col, stride_h, stride_w):
    return row.to(tl.int64) * stride_h + col.to(tl.int64) * stride_w


@triton.jit
def view_image(pointer, strides, n, row, col):
    """The view of image n from the lane's first pixel on."""
    return View(pointer + n * strides.n + lane_offset(row, col, strides.h, strides.w), strides)


@triton.jit
def load_own_labels(labels, row, col, H, W, ROWS: tl.constexpr):
    """The labels of the lane's own pixels, VOID outside the image."""
    own = ()
    for j in tl.static_range(ROWS):
        own = own + (tl.load(labels + j * W, mask=is_inside(row + j, col, H, W), other=VOID),)
    return own


@triton.jit
def is_labelled(own):
    """Whether some lane owns a pixel with a label."""
    highest = own[0]
    for j in tl.static_range(1, len(own)):
        highest = tl.maximum(highest, own[j])
    return tl.max(highest) >= 0


@triton.jit
def fill_zero(view, near, first, C, ROWS: tl.constexpr):
    """0 at the lane's pixels for the classes from `first`."""
    for c in range(first, C):
        for j in tl.static_range(ROWS):
            zero = tl.zeros(near.row.shape, tl.float32).to(view.pointer.dtype.element_ty)
            here = view.pointer + wide(c) * view.strides.c + wide(j) * view.strides.h
            tl.store(here, zero, mask=is_inside(near.row + j, near.col, near.H, near.W))


@triton.jit
def like_no_other(own):
    """The labels with NO_LABEL in place of those that are none, so that two void pixels are not alike."""
    labels = ()
    for j in tl.static_range(len(own)):
        labels = labels + (tl.where(own[j] >= 0, own[j], NO_LABEL),)
    return labels


@triton.jit
def load_column(plane, own, W):
    """A plane at the lane's own pixels, 0 at those without a label."""
    values = ()
    for j in tl.static_range(len(own)):
        values = values + (tl.load(plane + j * W, mask=own[j] >= 0, other=0.0),)
    return values


@triton.jit
def lane_pivot(mean, labels, row, col, H, W, rows):
    """A value near the lane's logits, from the PIVOT_ROWS around it as for strips of any height; from no rows 0."""
    total = tl.zeros(row.shape, tl.float32)
    count = total
    for k in range(rows):
        step = k - row % PIVOT_ROWS
        label = tl.load(labels + step * W, mask=is_inside(row + step, col, H, W), other=VOID)
        value = tl.load(mean + step * W, mask=label >= 0, other=0.0)
        usable = (label >= 0) & (tl.abs(value) < float("inf"))
        total += tl.where(usable, value, 0.0)
        count += tl.where(usable, 1.0, 0.0)
    return total / tl.maximum(count, 1.0)


@triton.jit
def find_pivot(workspace, labels, n, pixel, row, col, size, S: tl.constexpr):
    """What to subtract from all logits of the lane, to keep their common offset out of the sums.

    It is 0 where no mean of the whole band of rows is larger than MOST_OFFSET standard deviations: the tile's height
    has no say in it. Gives, too, whether it is, and no logit at void that a window reaches is infinite or NaN.
    """
    pivot = tl.zeros(row.shape, tl.float32)
    plain = True
    REACH: tl.constexpr = 0 if S.LARGE else (S.KH // 2 + BAND_ROWS - 1) // BAND_ROWS
    if S.NORMALIZE or S.KH * S.KW > 1:
        bands = tl.cdiv(size.H, BAND_ROWS)
        band = tl.min(row) // BAND_ROWS
        offsets = find_plane(workspace, OFFSETS, S, size.plane)
        offsets += n * bands * tl.cdiv(size.W, S.BAND_COLUMNS)
        largest = largest_offset(offsets, band, size.W, S)
        plain = largest <= MOST_OFFSET
        if REACH > 0:
            for step in range(2 * REACH + 1):
                near = tl.minimum(tl.maximum(band + step - REACH, 0), bands - 1)
                plain = plain & (largest_offset(offsets, near, size.W, S) < float("inf"))
        if S.NORMALIZE:
            mean = find_plane(workspace, MEAN, S, size.plane) + pixel
            rows = tl.where(largest <= MOST_OFFSET, 0, PIVOT_ROWS)
            pivot = lane_pivot(mean, labels, row, col, size.H, size.W, rows)
    return pivot, plain


@triton.jit
def largest_offset(offsets, band, W, S: tl.constexpr):
    """Of a band of rows."""
    parts = tl.cdiv(W, S.BAND_COLUMNS)
    largest = 0.0
    for k in range(0, parts, 128):
        part = k + tl.arange(0, 128)
        largest = tl.maximum(largest, tl.max(tl.load(offsets + band * parts + part, mask=part < parts, other=0.0)))
    return largest


@triton.jit
def load_tap(near, plane, i, j, pivot, SCALED: tl.constexpr, VALUED: tl.constexpr, INTERIOR: tl.constexpr):
    """Of the pixel i rows and j columns on: label, scale, and with VALUED the plane's value less the pivot."""
    mask = None if INTERIOR else is_inside(near.row + i, near.col + j, near.H, near.W)
    label = tl.load(near.labels + i * near.W + j, mask=mask, other=None if INTERIOR else VOID)
    none = None if INTERIOR else 0.0
    scale = tl.zeros(label.shape, tl.float32)
    value = scale
    if SCALED:
        scale += tl.load(near.scale + i * near.W + j, mask=mask, other=none)
    else:
        scale += 1.0
    if VALUED:
        value = tl.load(plane + i * near.W + j, mask=mask, other=none) - pivot
    return label, scale, value


@triton.jit
def strip_weights(
    near, plane, pivot, S: tl.constexpr, SCALED: tl.constexpr, VALUED: tl.constexpr, INTERIOR: tl.constexpr
):
    """The weights mu w x scale, and of each output row xi and with VALUED the weighted sum of the plane."""
    ROWS: tl.constexpr = S.ROWS
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    own = like_no_other(near.own)
    zero = tl.zeros(own[0].shape, tl.float32)
    weights = ()
    xi = ()
    sums = ()
    if S.LARGE:
        count = zero
        total = zero
        for t in range(KH * KW):
            label, scale, x = load_tap(
                near, plane, t // KW - KH // 2, t % KW - KW // 2, pivot, SCALED, VALUED, INTERIOR
            )
            w = tl.load(near.window + t)
            count += tl.where(label == own[0], w if S.BY_WEIGHT else 1.0, 0.0)
            total += tl.where(label == own[0], w * scale, 0.0) * x
        xi = (count,)
        sums = (total,)
    else:
        for _ in tl.static_range(ROWS):
            xi = xi + (zero,)
            sums = sums + (zero,)
        for r in tl.static_range(ROWS + KH - 1):
            for cc in tl.static_range(KW):
                label, scale, x = load_tap(near, plane, r - KH // 2, cc - KW // 2, pivot, SCALED, VALUED, INTERIOR)
                new_xi = ()
                new_sums = ()
                for j in tl.static_range(ROWS):
                    if feeds(r, j, S):
                        w = window_weight(r - j, cc, S)
                        weight = tl.where(label == own[j], scale * w, 0.0)
                        weights = weights + (weight,)
                        new_xi = new_xi + (xi[j] + tl.where(label == own[j], w if S.BY_WEIGHT else 1.0, 0.0),)
                        new_sums = new_sums + (sums[j] + weight * x,)
                    else:
                        new_xi = new_xi + (xi[j],)
                        new_sums = new_sums + (sums[j],)
                xi = new_xi
                sums = new_sums
    return weights, xi, sums


@triton.jit
def tile_weights(interior, near, plane, pivot, S: tl.constexpr, SCALED: tl.constexpr, VALUED: tl.constexpr):
    """`strip_weights`, without border tests in tiles whose windows lie inside the image."""
    if interior:
        weights, xi, sums = strip_weights(near, plane, pivot, S, SCALED, VALUED, True)
    else:
        weights, xi, sums = strip_weights(near, plane, pivot, S, SCALED, VALUED, False)
    return weights, xi, sums


@triton.jit
def invert(xi):
    """1 / xi, 0 where nothing was counted."""
    inverse = ()
    for j in tl.static_range(len(xi)):
        inverse = inverse + (tl.where(xi[j] > 0, tl.div_rn(1.0, xi[j]), 0.0),)
    return inverse


@triton.jit
def logit_units(inverse, sums, BOUNDED: tl.constexpr):
    """The weights' scale, where the sum of a class starts, and f_y.

    With BOUNDED that sum becomes (f_c - f_y) / ln 2, ready for exp2 at no cost; else f_c itself, since subtracting f_y
    would cost the difference between the two highest of large logits its digits.
    """
    scale = ()
    start = ()
    own_merged = ()
    for j in tl.static_range(len(sums)):
        own_merged = own_merged + (sums[j] * inverse[j],)
        if BOUNDED:
            scale = scale + (inverse[j] * LOG2E,)
            start = start + (-sums[j] * scale[j],)
        else:
            scale = scale + (inverse[j],)
            start = start + (tl.zeros_like(sums[j]),)
    return scale, start, own_merged


@triton.jit
def scale_weights(weights, scale, S: tl.constexpr):
    """The weights times the scale of their output row; LARGE windows have no weights, and keep the scale alone."""
    ROWS: tl.constexpr = S.ROWS
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    scaled = ()
    if S.LARGE:
        scaled = scale
    else:
        for r in tl.static_range(ROWS + KH - 1):
            for cc in tl.static_range(KW):
                for j in tl.static_range(ROWS):
                    if feeds(r, j, S):
                        scaled = scaled + (weights[weight_index(r, cc, j, S)] * scale[j],)
    return scaled


@triton.jit
def prepare_merge(
    workspace, logits, labels, window, size, first_image, strides, S: tl.constexpr, BOUNDED: tl.constexpr
):
    """The tile's view of the logits and its merge, and what else the kernels take of it.

    The latter are: the image, the lane's first pixel in planes, the workspace from that pixel on, f_y, 1 / xi, and
    whether `merge_class` may be FAST. Logits and labels begin with image `first_image` of the workspace's images.
    """
    n, row, col, interior = locate_tile(size.H, size.W, S)
    if not S.LARGE:
        window = labels  # a function returns no None
    offset = lane_offset(row, col, size.W, 1)
    pixel = n * size.H * size.W + offset
    labels += pixel
    own = load_own_labels(labels, row, col, size.H, size.W, S.ROWS)
    image = n + first_image
    plane_pixel = image * size.H * size.W + offset
    pivot, plain = find_pivot(workspace, labels, image, plane_pixel, row, col, size, S)
    workspace += plane_pixel
    rstd = find_plane(workspace, RSTD, S, size.plane)
    near = Neighbourhood(labels, rstd, window, own, row, col, size.H, size.W)
    own_logits = find_plane(workspace, OWN_LOGIT, S, size.plane)
    weights, xi, sums = tile_weights(interior, near, own_logits, pivot, S, S.NORMALIZE, True)
    inverse = invert(xi)
    scale, start, own_merged = logit_units(inverse, sums, BOUNDED)
    merge = Merge(near, scale_weights(weights, scale, S), pivot, start)
    view = view_image(logits, strides, n, row, col)
    return view, merge, n, pixel, workspace, own_merged, inverse, interior & plain


@triton.jit
def merge_class(pointer, strides, merge, S: tl.constexpr, SCALED: tl.constexpr, FAST: tl.constexpr):
    """`merge.start` plus the weighted sum of one class, or of a column of them, with `pointer` at the first pixel.

    FAST where no window leaves the image, the pivot is 0, and what stands at void is finite; else NaN at void adds 0.
    """
    ROWS: tl.constexpr = S.ROWS
    KH: tl.constexpr = S.KH
    KW: tl.constexpr = S.KW
    near = merge.near
    weights = merge.weights
    merged = merge.start
    if S.LARGE:
        total = tl.zeros_like(merged[0])
        for t in range(KH * KW):
            i = t // KW - KH // 2
            j = t % KW - KW // 2
            label, scale, _ = load_tap(near, near.labels, i, j, 0.0, SCALED, False, False)
            same = (label == near.own[0]) & (label >= 0)
            x = tl.load(pointer + wide(i) * strides.h + wide(j) * strides.w, mask=same, other=0.0)
            total += tl.where(same, tl.load(near.window + t) * scale, 0.0) * (x.to(tl.float32) - merge.pivot)
        merged = (merged[0] + total * weights[0],)
    else:
        for r in tl.static_range(ROWS + KH - 1):
            line = pointer + wide(r - KH // 2) * strides.h
            for cc in tl.static_range(KW):
                x_ptr = line + wide(cc - KW // 2) * strides.w
                if KH * KW == 1:
                    x = tl.load(x_ptr, mask=near.own[r] >= 0, other=0.0).to(tl.float32) - merge.pivot
                elif FAST:
                    x = tl.load(x_ptr).to(tl.float32)
                else:
                    used = is_inside(near.row + (r - KH // 2), near.col + (cc - KW // 2), near.H, near.W)
                    if not SCALED:
                        weighs = tl.zeros(near.row.shape, tl.int1)
                        for j in tl.static_range(ROWS):
                            if feeds(r, j, S):
                                weighs = weighs | (weights[weight_index(r, cc, j, S)] != 0)
                        used = used & weighs
                    x = tl.load(x_ptr, mask=used, other=0.0).to(tl.float32)
                    if SCALED:  # the scale of a label's pixel is NaN with its logit, and that of void has no weight
                        x = tl.where(tl.abs(x) < float("inf"), x, 0.0)
                    x -= merge.pivot
                new = ()
                for j in tl.static_range(ROWS):
                    if feeds(r, j, S):
                        new = new + (merged[j] + weights[weight_index(r, cc, j, S)] * x,)
                    else:
                        new = new + (merged[j],)
                merged = new
    return merged
