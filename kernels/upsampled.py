# mypy: ignore-errors
"""The loss of low-resolution logits and full-resolution labels: no upsampled logits, only a block of a tile at a time.

The products over a frame run on the tensor cores where PRECISION is "bf16x6": six products of bfloat16 parts make one
of float32 accuracy.
"""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, cost_slope, local_cost, surprise_and_miss
from lal_triton.kernels.forward import gather_weights
from lal_triton.kernels.frames import frame_pixels, mix, place_tile, variance_slopes
from lal_triton.kernels.strips import INVALID, LOG2E, VOID, is_inside, kernel, lane_offset, load_own_labels


@triton.jit
def load_source(source, pixels, c, C):
    """`[slots, classes]` of a frame."""
    return tl.load(source + pixels[:, None] * C + c[None, :], mask=c[None, :] < C, other=0.0)


@triton.jit
def own_logit(source, pixels, mixture, own, C):
    """f_y `[P]`, 0 where there is no label."""
    x = tl.load(source + pixels[None, :] * C + own[:, None], mask=own[:, None] >= 0, other=0.0)
    return tl.sum(mixture * x, 1)


@triton.jit
def is_spoiled(bad, pixels, mixture):
    """Whether some slot that a pixel mixes holds a logit that is not finite."""
    return tl.max(tl.where((mixture != 0) & (tl.load(bad + pixels)[None, :] > 0), 1, 0), 1) > 0


@kernel
def upsampled_loss_fwd_kernel(
    losses,
    top,
    total,
    source,
    bad,
    labels,
    rstd,
    class_weight,
    window,
    lower_y,
    fraction_y,
    base_y,
    lower_x,
    fraction_x,
    base_x,
    h,
    w,
    H,
    W,
    C,
    centre_stride,
    smoothing,
    alpha,
    gamma,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CLASSES: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    FOCAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n, row, col, frame_y, frame_x = place_tile(tl.program_id(0), 0, tl.cdiv(H, TY), W, base_y, base_x, TY, TX)
    pixel = n * H * W + lane_offset(row, col, W, 1)
    labels += pixel
    if NORMALIZE:
        rstd += pixel
    own = load_own_labels(labels, row, col, H, W, 1)[0]
    site = (labels, rstd, window, own, row, col, H, W)
    frame = (lower_y, fraction_y, frame_y, lower_x, fraction_x, frame_x)
    mixture, _ = mix(site, frame, KH, KW, SY, SX, NORMALIZE, BY_WEIGHT)
    pixels = frame_pixels(n, frame_y, frame_x, h, w, SY, SX)
    own_merged = own_logit(source, pixels, mixture, own, C)

    highest = own_merged
    others = tl.zeros_like(own_merged)
    drift = tl.zeros_like(own_merged)
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)
        merged = tl.dot(mixture, load_source(source, pixels, c, C), input_precision=PRECISION)
        difference = merged - own_merged[:, None]
        # without the own class, whose term is known, what is small keeps its digits
        counts = (c[None, :] < C) & (c[None, :] != own[:, None])
        if BOUNDED:
            others += tl.sum(tl.where(counts, tl.exp2(difference * LOG2E), 0.0), 1)
        else:
            # of `merged` itself: the backward has the same bits, and large logits leave no others
            now = tl.maximum(highest, tl.max(tl.where(counts, merged, float("-inf")), 1))
            others = others * tl.exp(highest - now)
            others += tl.sum(tl.where(counts, tl.exp(merged - now[:, None]), 0.0), 1)
            highest = now
        if SMOOTHING:
            if WEIGHTED:
                difference *= tl.load(class_weight + c, mask=c < C, other=0.0)[None, :]
            drift += tl.sum(tl.where(counts, difference, 0.0), 1)

    surprise, miss = surprise_and_miss(highest - own_merged, others)
    weight_sum = class_weight_sum(class_weight, C, WEIGHTED)
    loss = local_cost(
        surprise,
        miss,
        drift,
        gather_weights(class_weight, (own,), 1, WEIGHTED)[0],
        weight_sum,
        smoothing,
        alpha,
        gamma,
        C,
        FOCAL,
        SMOOTHING,
    )
    loss = tl.where((own == INVALID) | is_spoiled(bad, pixels, mixture), float("nan"), loss)
    centre = (own != VOID) & (row % centre_stride == 0) & (col % centre_stride == 0)
    inside = is_inside(row, col, H, W)
    tl.store(losses + pixel, tl.where(centre, loss, 0.0), mask=inside)
    tl.store(total + pixel, others, mask=inside)
    if not BOUNDED:
        tl.store(top + pixel, highest, mask=inside)


@kernel
def upsampled_loss_bwd_kernel(
    parts,
    gradient,
    top,
    total,
    source,
    bad,
    labels,
    rstd,
    class_weight,
    window,
    lower_y,
    fraction_y,
    base_y,
    lower_x,
    fraction_x,
    base_x,
    h,
    w,
    H,
    W,
    C,
    first_tile,
    tiles_y,
    span_y,
    span_x,
    gradient_n,
    gradient_h,
    gradient_w,
    centre_stride,
    smoothing,
    alpha,
    gamma,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CLASSES: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
    FOCAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of tiles_y rows of tiles, `[tiles, span_y span_x, C]`: A^T G; with NORMALIZE four more, the planes of T."""
    tile = tl.program_id(0)
    n, row, col, frame_y, frame_x = place_tile(tile, first_tile, tiles_y, W, base_y, base_x, TY, TX)
    pixel = n * H * W + lane_offset(row, col, W, 1)
    labels += pixel
    if NORMALIZE:
        rstd += pixel
    own = load_own_labels(labels, row, col, H, W, 1)[0]
    site = (labels, rstd, window, own, row, col, H, W)
    frame = (lower_y, fraction_y, frame_y, lower_x, fraction_x, frame_x)
    mixture, inverse = mix(site, frame, KH, KW, SY, SX, NORMALIZE, BY_WEIGHT)
    pixels = frame_pixels(n, frame_y, frame_x, h, w, SY, SX)
    own_merged = own_logit(source, pixels, mixture, own, C)

    inside = is_inside(row, col, H, W)
    others = tl.load(total + pixel, mask=inside, other=0.0)
    highest = own_merged
    if not BOUNDED:
        highest = tl.load(top + pixel, mask=inside, other=0.0)
    lead = highest - own_merged
    surprise, miss = surprise_and_miss(lead, others)
    spoiled = is_spoiled(bad, pixels, mixture)
    taken = (own >= 0) & (row % centre_stride == 0) & (col % centre_stride == 0)
    gradient += n * gradient_n + lane_offset(row, col, gradient_h, gradient_w)
    coefficient, own_gradient, uniform = cost_slope(
        tl.load(gradient, mask=taken & ~spoiled, other=0.0),
        surprise,
        miss,
        gather_weights(class_weight, (own,), 1, WEIGHTED)[0],
        class_weight_sum(class_weight, C, WEIGHTED),
        smoothing,
        alpha,
        gamma,
        C,
        FOCAL,
        SMOOTHING,
    )
    factor = coefficient / (tl.exp(-lead) + others)

    pitch = C
    if NORMALIZE:
        pitch = C + 4
    slot = tl.arange(0, SY * SX)
    kept = (slot // SX < span_y) & (slot % SX < span_x)
    parts += (tile.to(tl.int64) * span_y * span_x + slot // SX * span_x + slot % SX) * pitch
    # 0 x NaN: what is spoiled goes round the products
    holes = tl.max(tl.where((mixture != 0) & spoiled[:, None], 1, 0), 0) > 0
    slope = tl.zeros_like(mixture)
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)
        x = load_source(source, pixels, c, C)
        merged = tl.dot(mixture, x, input_precision=PRECISION) - highest[:, None]
        g = factor[:, None] * (tl.exp2(merged * LOG2E) if BOUNDED else tl.exp(merged))
        if SMOOTHING:
            if WEIGHTED:
                g -= uniform[:, None] * tl.load(class_weight + c, mask=c < C, other=0.0)[None, :]
            else:
                g -= uniform[:, None]
        g = tl.where(c[None, :] == own[:, None], own_gradient[:, None], g)
        if NORMALIZE:
            slope += tl.dot(g, tl.trans(x), input_precision=PRECISION)
        part = tl.trans(tl.dot(tl.trans(g), mixture, input_precision=PRECISION))
        part = tl.where(holes[:, None], float("nan"), part)
        tl.store(parts[:, None] + c[None, :], part, mask=kept[:, None] & (c[None, :] < C))
    if NORMALIZE:
        same, right, below, diagonal = variance_slopes(slope / C, inverse, site, frame, KH, KW, SY, SX)
        tl.store(parts + C, same, mask=kept)
        tl.store(parts + C + 1, right, mask=kept)
        tl.store(parts + C + 2, below, mask=kept)
        tl.store(parts + C + 3, diagonal, mask=kept)
