# mypy: ignore-errors
"""Labels in the kernels' own form and, per pixel, what the merge needs of the logits as a whole."""

import triton
import triton.language as tl

from lal_triton.kernels.planes import MEAN, OFFSETS, OWN_LOGIT, RSTD, find_plane
from lal_triton.kernels.window import INVALID, VOID, wide

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


@triton.jit
def prepare_fwd_kernel(
    labels_ptr,
    target_ptr,
    workspace_ptr,
    logits_ptr,
    size,
    pooled_begin,
    target_strides,
    strides,
    ignore_index,
    eps,
    S: tl.constexpr,
):
    """The labels, encoded as `labels.encode_labels` does, and what the merge needs of logits of their size.

    1. Encode the labels. Set to 0 what counts the programs of `pool_fwd_kernel` that have arrived.
    2. With HAS_OWN_LOGIT, the plane `own_logit`: that of the label.
    3. With HAS_MOMENTS, the planes `mean` and `rstd` of the standard score.
    4. The `offsets` `[N, bands, parts]` of ROWS x COLUMNS pixels: the largest |mean| / std of those that have a label,
       with HAS_VOID_CHECK infinite where a pixel without a label has a logit that is not finite.
    """
    parts = tl.cdiv(size.W, S.COLUMNS)
    bands = tl.cdiv(size.H, S.ROWS)
    tile = tl.program_id(0)
    n = (tile // parts // bands).to(tl.int64)
    lane = tl.arange(0, S.ROWS * S.COLUMNS)
    row = (tile // parts % bands * S.ROWS + lane // S.COLUMNS).to(tl.int64)
    col = (tile % parts * S.COLUMNS + lane % S.COLUMNS).to(tl.int64)
    inside = (row < size.H) & (col < size.W)
    pixel = n * size.H * size.W + row * size.W + col
    if tile == 0:
        tl.store(workspace_ptr + pooled_begin, 0.0)
    target = target_ptr + n * target_strides.n + row * target_strides.h + col * target_strides.w
    label = tl.load(target, mask=inside, other=0).to(tl.int64)
    encoded = tl.where((label >= 0) & (label < size.C), label, INVALID)
    encoded = tl.where(label == ignore_index, VOID, encoded)
    tl.store(labels_ptr + pixel, encoded.to(tl.int32), mask=inside)
    x_ptr = logits_ptr + n * strides.n + row * strides.h + col * strides.w
    labelled = inside & (encoded >= 0)
    if S.HAS_OWN_LOGIT:
        own = tl.load(x_ptr + encoded * strides.c, mask=labelled, other=0.0).to(tl.float32)
        tl.store(find_plane(workspace_ptr, OWN_LOGIT, S, size.plane) + pixel, own, mask=inside)
    offset = tl.zeros(label.shape, tl.float32)
    if S.HAS_MOMENTS:
        unit = tl.full(label.shape, 1.0, tl.float32)
        average, squares = moments(x_ptr, unit, inside, size.C, strides.c)
        finite = squares < float("inf")
        if tl.max((labelled & ~finite).to(tl.int32)) > 0:
            unit = tl.where(finite, 1.0, SMALL_UNIT)
            average, squares = moments(x_ptr, unit, inside, size.C, strides.c)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(squares / size.C + eps * unit * unit)) * unit
        average /= unit
        tl.store(find_plane(workspace_ptr, MEAN, S, size.plane) + pixel, average, mask=inside)
        tl.store(find_plane(workspace_ptr, RSTD, S, size.plane) + pixel, rstd, mask=inside)
        offset = tl.abs(average) * rstd
        offset = tl.where(offset < float("inf"), offset, 0.0)
    if S.HAS_VOID_CHECK:
        unlabelled = inside & (encoded < 0)
        zeros = tl.zeros(label.shape, tl.float32)
        if S.HAS_MOMENTS:
            zeros = tl.where(squares < float("inf"), 0.0, 1.0)
        elif tl.max(unlabelled.to(tl.int32)) > 0:
            for _ in range(size.C):
                zeros += tl.load(x_ptr, mask=unlabelled, other=0.0).to(tl.float32) * 0.0
                x_ptr += strides.c
        offset = tl.where(unlabelled, tl.where(zeros == 0.0, 0.0, float("inf")), offset)
    if S.HAS_MOMENTS or S.HAS_VOID_CHECK:
        usable = labelled | (offset == float("inf"))
        offsets = find_plane(workspace_ptr, OFFSETS, S, size.plane)
        tl.store(offsets + tile, tl.max(tl.where(usable, offset, 0.0)))
