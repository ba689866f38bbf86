# mypy: ignore-errors
# ruff: noqa: RUF005
"""What the kernels share: tiles of pixels, labels, and the merge of one class over a strip.

A lane owns one column of TH output rows. Its window weights are a tuple of floats that lives in registers through the
loop over the classes, in which every input row is loaded once at each of its KW shifts and feeds all the output rows
whose window it is in. A window too large for that (LARGE, with TH = 1) is walked by a plain loop over its taps. Lanes
have the shape [1, lanes], so that what has a class may have the shape [classes, lanes].

Labels are encoded (`lal_triton.labels`), and they and all other `[N, H, W]` planes are contiguous. Every pointer stands
at the lane's first pixel. Two tuples keep the signatures short: a `view` of the logits is (pointer, stride_c, stride_h,
stride_w), and a `site`, from which weights are made, (labels, rstd, window, own, row, col, H, W), where `own` has the
labels of the lane's own pixels.
"""

import triton
import triton.language as tl

from lal_triton.kernels import configs
from lal_triton.kernels.state import MEAN, OFFSETS, OWN_LOGIT, RSTD, find_plane

VOID = tl.constexpr(-1)
INVALID = tl.constexpr(-2)
NO_LABEL = tl.constexpr(-3)  # of a pixel that is to be like no other
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
PIVOT_ROWS = tl.constexpr(8)
BAND_ROWS = tl.constexpr(configs.BAND_ROWS)
MOST_OFFSET = tl.constexpr(1.0)
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.constexpr_function
def feeds(r, j, KH):
    """Whether row r of the strip's TH + KH - 1 input rows is in the window of output row j."""
    return 0 <= r - j < KH


@triton.constexpr_function
def window_weight(WINDOW, KW, i, cc):
    return WINDOW[i * KW + cc]


@triton.constexpr_function
def slot(r, cc, j, KH, KW, TH):
    """Where `strip_weights` puts the weight of input (r, cc) for output row j."""
    before = sum(KW * sum(0 <= r_ - j_ < KH for j_ in range(TH)) for r_ in range(r))
    fed = [j_ for j_ in range(TH) if 0 <= r - j_ < KH]
    return before + cc * len(fed) + fed.index(j)


@triton.jit
def place(H, W, KH: tl.constexpr, KW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, G: tl.constexpr):
    """The program's image, each lane's first row and its column, and whether all windows lie inside the image."""
    tile = tl.program_id(0)
    across = tl.cdiv(W, TW)
    down = tl.cdiv(H, TH * G)
    n = (tile // across // down).to(tl.int64)
    row0 = tile // across % down * (TH * G)
    col0 = tile % across * TW
    inside_rows = (row0 >= KH // 2) & (row0 + TH * G + KH // 2 <= H)
    interior = inside_rows & (col0 >= KW // 2) & (col0 + TW + KW // 2 <= W)
    lane = tl.arange(0, TW * G)[None, :]
    return n, row0 + lane // TW * TH, col0 + lane % TW, interior


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
def load_own_labels(labels, row, col, H, W, TH: tl.constexpr):
    """The labels of the lane's own pixels, VOID outside the image."""
    own = ()
    for j in tl.static_range(TH):
        own = own + (tl.load(labels + j * W, mask=is_inside(row + j, col, H, W), other=VOID),)
    return own


@triton.jit
def is_labelled(own, TH: tl.constexpr):
    """Whether some lane owns a pixel with a label."""
    highest = own[0]
    for j in tl.static_range(1, TH):
        highest = tl.maximum(highest, own[j])
    return tl.max(highest) >= 0


@triton.jit
def fill_zero(pointer, stride_c, stride_h, first, C, row, col, H, W, TH: tl.constexpr):
    """0 at the lane's pixels for the classes from `first`; `pointer` stands at its first pixel, of class 0."""
    for c in range(first, C):
        for j in tl.static_range(TH):
            zero = tl.zeros(row.shape, tl.float32).to(pointer.dtype.element_ty)
            here = pointer + wide(c) * stride_c + wide(j) * stride_h
            tl.store(here, zero, mask=is_inside(row + j, col, H, W))


@triton.jit
def like_no_other(own, TH: tl.constexpr):
    """The labels with NO_LABEL in place of those that are none, so that two void pixels are not alike."""
    labels = ()
    for j in tl.static_range(TH):
        labels = labels + (tl.where(own[j] >= 0, own[j], NO_LABEL),)
    return labels


@triton.jit
def load_column(plane, own, W, TH: tl.constexpr):
    """A plane at the lane's own pixels, 0 at those without a label."""
    values = ()
    for j in tl.static_range(TH):
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
def find_pivot(
    state,
    labels,
    n,
    pixel,
    row,
    col,
    H,
    W,
    plane_size,
    BAND: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """What to subtract from all logits of the lane, to keep their common offset out of the sums.

    It is 0 where no mean of the whole band of rows is larger than MOST_OFFSET standard deviations: the tile's height
    has no say in it. Gives, too, whether it is, and no logit at void that a window reaches is infinite or NaN.
    """
    pivot = tl.zeros(row.shape, tl.float32)
    plain = True
    if NORMALIZE or KH * KW > 1:
        bands = tl.cdiv(H, BAND_ROWS)
        band = tl.min(row) // BAND_ROWS
        offsets = find_plane(state, OFFSETS, PLACES, plane_size) + n * bands * tl.cdiv(W, BAND)
        largest = largest_offset(offsets, band, W, BAND)
        plain = largest <= MOST_OFFSET
        reach: tl.constexpr = (KH // 2 + BAND_ROWS - 1) // BAND_ROWS
        if reach > 0:
            for step in range(2 * reach + 1):
                near = tl.minimum(tl.maximum(band + step - reach, 0), bands - 1)
                plain = plain & (largest_offset(offsets, near, W, BAND) < float("inf"))
        if NORMALIZE:
            mean = find_plane(state, MEAN, PLACES, plane_size) + pixel
            pivot = lane_pivot(mean, labels, row, col, H, W, tl.where(largest <= MOST_OFFSET, 0, PIVOT_ROWS))
    return pivot, plain


@triton.jit
def largest_offset(offsets, band, W, BAND: tl.constexpr):
    """Of a band of rows."""
    parts = tl.cdiv(W, BAND)
    largest = 0.0
    for k in range(0, parts, 128):
        part = k + tl.arange(0, 128)
        largest = tl.maximum(largest, tl.max(tl.load(offsets + band * parts + part, mask=part < parts, other=0.0)))
    return largest


@triton.jit
def load_tap(site, plane, i, j, pivot, SCALED: tl.constexpr, VALUED: tl.constexpr, INTERIOR: tl.constexpr):
    """Of the pixel i rows and j columns on: label, scale, and with VALUED the plane's value less the pivot."""
    labels, scales, _, _, row, col, H, W = site
    mask = None if INTERIOR else is_inside(row + i, col + j, H, W)
    label = tl.load(labels + i * W + j, mask=mask, other=None if INTERIOR else VOID)
    none = None if INTERIOR else 0.0
    scale = tl.zeros(label.shape, tl.float32)
    value = scale
    if SCALED:
        scale += tl.load(scales + i * W + j, mask=mask, other=none)
    else:
        scale += 1.0
    if VALUED:
        value = tl.load(plane + i * W + j, mask=mask, other=none) - pivot
    return label, scale, value


@triton.jit
def strip_weights(
    site,
    plane,
    pivot,
    WINDOW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    SCALED: tl.constexpr,
    VALUED: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    LARGE: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    """The weights mu w x scale, and of each output row xi and with VALUED the weighted sum of the plane."""
    window = site[2]
    own = like_no_other(site[3], TH)
    zero = tl.zeros(own[0].shape, tl.float32)
    weights = ()
    xi = ()
    sums = ()
    if LARGE:
        count = zero
        total = zero
        for t in range(KH * KW):
            near, scale, x = load_tap(site, plane, t // KW - KH // 2, t % KW - KW // 2, pivot, SCALED, VALUED, INTERIOR)
            w = tl.load(window + t)
            count += tl.where(near == own[0], w if BY_WEIGHT else 1.0, 0.0)
            total += tl.where(near == own[0], w * scale, 0.0) * x
        xi = (count,)
        sums = (total,)
    else:
        for _ in tl.static_range(TH):
            xi = xi + (zero,)
            sums = sums + (zero,)
        for r in tl.static_range(TH + KH - 1):
            for cc in tl.static_range(KW):
                near, scale, x = load_tap(site, plane, r - KH // 2, cc - KW // 2, pivot, SCALED, VALUED, INTERIOR)
                new_xi = ()
                new_sums = ()
                for j in tl.static_range(TH):
                    if feeds(r, j, KH):
                        w = window_weight(WINDOW, KW, r - j, cc)
                        weight = tl.where(near == own[j], scale * w, 0.0)
                        weights = weights + (weight,)
                        new_xi = new_xi + (xi[j] + tl.where(near == own[j], w if BY_WEIGHT else 1.0, 0.0),)
                        new_sums = new_sums + (sums[j] + weight * x,)
                    else:
                        new_xi = new_xi + (xi[j],)
                        new_sums = new_sums + (sums[j],)
                xi = new_xi
                sums = new_sums
    return weights, xi, sums


@triton.jit
def tile_weights(
    interior,
    site,
    plane,
    pivot,
    WINDOW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    SCALED: tl.constexpr,
    VALUED: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    LARGE: tl.constexpr,
):
    """`strip_weights`, without border tests in tiles whose windows lie inside the image."""
    if interior:
        weights, xi, sums = strip_weights(
            site, plane, pivot, WINDOW, KH, KW, TH, SCALED, VALUED, BY_WEIGHT, LARGE, True
        )
    else:
        weights, xi, sums = strip_weights(
            site, plane, pivot, WINDOW, KH, KW, TH, SCALED, VALUED, BY_WEIGHT, LARGE, False
        )
    return weights, xi, sums


@triton.jit
def invert(xi, TH: tl.constexpr):
    """1 / xi, 0 where nothing was counted."""
    inverse = ()
    for j in tl.static_range(TH):
        inverse = inverse + (tl.where(xi[j] > 0, tl.div_rn(1.0, xi[j]), 0.0),)
    return inverse


@triton.jit
def logit_units(inverse, sums, TH: tl.constexpr, BOUNDED: tl.constexpr):
    """The weights' scale, where the sum of a class starts, and f_y.

    With BOUNDED that sum becomes (f_c - f_y) / ln 2, ready for exp2 at no cost; else f_c itself, since subtracting f_y
    would cost the difference between the two highest of large logits its digits.
    """
    scale = ()
    start = ()
    own_merged = ()
    for j in tl.static_range(TH):
        own_merged = own_merged + (sums[j] * inverse[j],)
        if BOUNDED:
            scale = scale + (inverse[j] * LOG2E,)
            start = start + (-sums[j] * scale[j],)
        else:
            scale = scale + (inverse[j],)
            start = start + (tl.zeros_like(sums[j]),)
    return scale, start, own_merged


@triton.jit
def scale_weights(weights, scale, KH: tl.constexpr, KW: tl.constexpr, TH: tl.constexpr, LARGE: tl.constexpr):
    """The weights times the scale of their output row; LARGE windows have no weights, and keep the scale alone."""
    scaled = ()
    if LARGE:
        scaled = scale
    else:
        for r in tl.static_range(TH + KH - 1):
            for cc in tl.static_range(KW):
                for j in tl.static_range(TH):
                    if feeds(r, j, KH):
                        scaled = scaled + (weights[slot(r, cc, j, KH, KW, TH)] * scale[j],)
    return scaled


@triton.jit
def prepare_merge(
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
    WINDOW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    G: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    BOUNDED: tl.constexpr,
    LARGE: tl.constexpr,
    BAND: tl.constexpr,
    PLACES: tl.constexpr,
):
    """All that merging a tile's logits takes of their image and its neighbours but the logits of the classes.

    Gives the image, the pixel, the state and the logits at the lane's first pixel, the site, the weights, the pivot,
    1 / xi, where the sum of a class starts, f_y, and whether `merge_class` may be FAST. `logits` and `labels` begin
    with image `first_image` of those that the state is of.
    """
    n, row, col, interior = place(H, W, KH, KW, TH, TW, G)
    if not LARGE:
        window = labels  # a function returns no None
    offset = lane_offset(row, col, W, 1)
    pixel = n * H * W + offset
    labels += pixel
    own = load_own_labels(labels, row, col, H, W, TH)
    image = n + first_image
    plane_pixel = image * H * W + offset
    pivot, plain = find_pivot(
        state, labels, image, plane_pixel, row, col, H, W, plane_size, BAND, 1 if LARGE else KH, KW, NORMALIZE, PLACES
    )
    state += plane_pixel
    site = (labels, find_plane(state, RSTD, PLACES, plane_size), window, own, row, col, H, W)
    own_logits = find_plane(state, OWN_LOGIT, PLACES, plane_size)
    weights, xi, sums = tile_weights(
        interior, site, own_logits, pivot, WINDOW, KH, KW, TH, NORMALIZE, True, BY_WEIGHT, LARGE
    )
    inverse = invert(xi, TH)
    scale, start, own_merged = logit_units(inverse, sums, TH, BOUNDED)
    weights = scale_weights(weights, scale, KH, KW, TH, LARGE)
    pointer = logits + n * stride_n + lane_offset(row, col, stride_h, stride_w)
    return n, pixel, state, pointer, site, weights, pivot, inverse, start, own_merged, interior & plain


@triton.jit
def merge_class(
    merged,
    pointer,
    stride_h,
    stride_w,
    weights,
    pivot,
    site,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    SCALED: tl.constexpr,
    LARGE: tl.constexpr,
    FAST: tl.constexpr,
):
    """`merged` plus the weighted sum of one class, or of a column of them, with `pointer` at the lane's first pixel.

    FAST where no window leaves the image, the pivot is 0, and what stands at void is finite; else NaN at void adds 0.
    """
    labels, _, window, own, row, col, H, W = site
    if LARGE:
        total = tl.zeros_like(merged[0])
        for t in range(KH * KW):
            i = t // KW - KH // 2
            j = t % KW - KW // 2
            tap = load_tap(site, labels, i, j, 0.0, SCALED, False, False)
            same = (tap[0] == own[0]) & (tap[0] >= 0)
            x = tl.load(pointer + wide(i) * stride_h + wide(j) * stride_w, mask=same, other=0.0)
            total += tl.where(same, tl.load(window + t) * tap[1], 0.0) * (x.to(tl.float32) - pivot)
        merged = (merged[0] + total * weights[0],)
    else:
        for r in tl.static_range(TH + KH - 1):
            line = pointer + wide(r - KH // 2) * stride_h
            for cc in tl.static_range(KW):
                x_ptr = line + wide(cc - KW // 2) * stride_w
                if KH * KW == 1:
                    x = tl.load(x_ptr, mask=own[r] >= 0, other=0.0).to(tl.float32) - pivot
                elif FAST:
                    x = tl.load(x_ptr).to(tl.float32)
                else:
                    used = is_inside(row + (r - KH // 2), col + (cc - KW // 2), H, W)
                    if not SCALED:
                        weighs = tl.zeros(row.shape, tl.int1)
                        for j in tl.static_range(TH):
                            if feeds(r, j, KH):
                                weighs = weighs | (weights[slot(r, cc, j, KH, KW, TH)] != 0)
                        used = used & weighs
                    x = tl.load(x_ptr, mask=used, other=0.0).to(tl.float32)
                    if SCALED:  # the scale of a label's pixel is NaN with its logit, and that of void has no weight
                        x = tl.where(tl.abs(x) < float("inf"), x, 0.0)
                    x -= pivot
                new = ()
                for j in tl.static_range(TH):
                    if feeds(r, j, KH):
                        new = new + (merged[j] + weights[slot(r, cc, j, KH, KW, TH)] * x,)
                    else:
                        new = new + (merged[j],)
                merged = new
    return merged
