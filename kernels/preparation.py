# mypy: ignore-errors
"""Labels in the kernels' own form and, per pixel, what the merge needs of the logits as a whole."""

import triton
import triton.language as tl

from lal_triton.kernels.launching import kernel
from lal_triton.kernels.state import MEAN, OFFSETS, OWN_LOGIT, RSTD, find_plane
from lal_triton.kernels.strips import INVALID, VOID, wide

SMALL_UNIT = tl.constexpr(2.0**-80)  # in which no finite logit, nor a sum of squares of them, overflows


@triton.jit
def reciprocal(count):
    """1 / count to an ulp, in fewer instructions than a division."""
    root = tl.rsqrt(count)
    guess = root * root
    return guess * (2.0 - count * guess)


@triton.jit
def moments(x_ptr, unit, inside, C, stride_c):
    """The mean over the classes of the logits times a unit, and the sum of their squared differences from it.

    Welford's recurrence, of the differences from one logit: a common offset would cost the variance its digits.
    """
    first = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32) * unit
    average = tl.zeros_like(first)
    squares = tl.zeros_like(first)
    for c in range(C):
        x = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32) * unit - first
        delta = x - average
        average += delta * reciprocal(wide(c).to(tl.float32) + 1.0)
        squares += delta * (x - average)
        x_ptr += stride_c
    return average + first, squares


@kernel
def prepare_fwd_kernel(
    labels,
    target,
    state,
    logits,
    H,
    W,
    C,
    plane_size,
    pooled_begin,
    target_n,
    target_h,
    target_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    ignore_index,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OWN_LOGITS: tl.constexpr,
    MOMENTS: tl.constexpr,
    VOIDS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """`labels.encode_labels` of the target. Of logits of its size: that of the label, and the score's mean and 1 / std.

    The `offsets` `[N, bands, parts]` of ROWS x COLUMNS pixels are the largest |mean| / std of those that have a label,
    with MOMENTS, and with VOIDS infinite where a pixel without a label has a logit that is not finite. What counts the
    programs of `pool_fwd_kernel` that have arrived is set to 0.
    """
    parts = tl.cdiv(W, COLUMNS)
    bands = tl.cdiv(H, ROWS)
    tile = tl.program_id(0)
    n = (tile // parts // bands).to(tl.int64)
    lane = tl.arange(0, ROWS * COLUMNS)
    row = (tile // parts % bands * ROWS + lane // COLUMNS).to(tl.int64)
    col = (tile % parts * COLUMNS + lane % COLUMNS).to(tl.int64)
    inside = (row < H) & (col < W)
    pixel = n * H * W + row * W + col
    if tile == 0:
        tl.store(state + pooled_begin, 0.0)
    label = tl.load(target + n * target_n + row * target_h + col * target_w, mask=inside, other=0).to(tl.int64)
    encoded = tl.where((label >= 0) & (label < C), label, INVALID)
    encoded = tl.where(label == ignore_index, VOID, encoded)
    tl.store(labels + pixel, encoded.to(tl.int32), mask=inside)
    x_ptr = logits + n * stride_n + row * stride_h + col * stride_w
    labelled = inside & (encoded >= 0)
    if OWN_LOGITS:
        own = tl.load(x_ptr + encoded * stride_c, mask=labelled, other=0.0).to(tl.float32)
        tl.store(find_plane(state, OWN_LOGIT, PLACES, plane_size) + pixel, own, mask=inside)
    offset = tl.zeros(label.shape, tl.float32)
    if MOMENTS:
        unit = tl.full(label.shape, 1.0, tl.float32)
        average, squares = moments(x_ptr, unit, inside, C, stride_c)
        finite = squares < float("inf")
        if tl.max((labelled & ~finite).to(tl.int32)) > 0:
            unit = tl.where(finite, 1.0, SMALL_UNIT)
            average, squares = moments(x_ptr, unit, inside, C, stride_c)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(squares / C + eps * unit * unit)) * unit
        average /= unit
        tl.store(find_plane(state, MEAN, PLACES, plane_size) + pixel, average, mask=inside)
        tl.store(find_plane(state, RSTD, PLACES, plane_size) + pixel, rstd, mask=inside)
        offset = tl.abs(average) * rstd
        offset = tl.where(offset < float("inf"), offset, 0.0)
    if VOIDS:
        unlabelled = inside & (encoded < 0)
        zeros = tl.zeros(label.shape, tl.float32)
        if MOMENTS:
            zeros = tl.where(squares < float("inf"), 0.0, 1.0)
        elif tl.max(unlabelled.to(tl.int32)) > 0:
            for _ in range(C):
                zeros += tl.load(x_ptr, mask=unlabelled, other=0.0).to(tl.float32) * 0.0
                x_ptr += stride_c
        offset = tl.where(unlabelled, tl.where(zeros == 0.0, 0.0, float("inf")), offset)
    if MOMENTS or VOIDS:
        usable = labelled | (offset == float("inf"))
        tl.store(find_plane(state, OFFSETS, PLACES, plane_size) + tile, tl.max(tl.where(usable, offset, 0.0)))
