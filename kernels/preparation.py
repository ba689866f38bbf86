# mypy: ignore-errors
"""Labels in the kernels' own form and, per pixel, what the merge needs of the logits as a whole."""

import triton.language as tl

from lal_triton.kernels.launching import kernel
from lal_triton.kernels.state import MEAN, OFFSETS, OWN_LOGIT, RSTD, find_plane
from lal_triton.kernels.strips import INVALID, VOID, wide


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
    PLACES: tl.constexpr,
):
    """`labels.encode_labels` of the target. Of logits of its size: that of the label, and the score's mean and 1 / std.

    With the moments go the `offsets` `[N, bands, parts]` of ROWS x COLUMNS pixels: the largest |mean| / std of those
    that have a label. What counts the programs of `pool_fwd_kernel` that have arrived is set to 0.
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
    if MOMENTS:
        # Welford's recurrence, of the differences from one logit: a common offset would cost the variance its digits
        first = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
        average = tl.zeros([ROWS * COLUMNS], tl.float32)
        squares = tl.zeros([ROWS * COLUMNS], tl.float32)
        for c in range(C):
            x = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32) - first
            delta = x - average
            root = tl.rsqrt(wide(c).to(tl.float32) + 1.0)  # in place of a division
            average += delta * (root * root)
            squares += delta * (x - average)
            x_ptr += stride_c
        average += first
        rstd = tl.div_rn(1.0, tl.sqrt_rn(squares / C + eps))
        tl.store(find_plane(state, MEAN, PLACES, plane_size) + pixel, average, mask=inside)
        tl.store(find_plane(state, RSTD, PLACES, plane_size) + pixel, rstd, mask=inside)
        offset = tl.abs(average) * rstd
        usable = labelled & (offset < float("inf"))
        tl.store(find_plane(state, OFFSETS, PLACES, plane_size) + tile, tl.max(tl.where(usable, offset, 0.0)))
