# mypy: ignore-errors
"""The loss of low-resolution logits and full-resolution labels: no upsampled logits, only a block of a tile at a time.

The products over a frame run on the tensor cores where PRECISION is "bf16x6": six products of bfloat16 parts make one
of float32 accuracy.
"""

import triton
import triton.language as tl

from lal_triton.kernels.cost import class_weight_sum, cost_slope, local_cost, surprise_and_miss
from lal_triton.kernels.forward import gather_weights
from lal_triton.kernels.frames import (
    frame_pixels,
    join_lanes,
    mix,
    place_tile,
    sum_lanes,
    tile_pixels,
    tile_site,
    unpack,
    variance_slopes,
)
from lal_triton.kernels.launching import kernel
from lal_triton.kernels.strips import INVALID, LOG2E, VOID, is_inside, lane_offset, load_own_labels


@triton.jit
def load_source(source, slots, c, C):
    """`[slots, classes]` of a frame."""
    return tl.load(source + (slots[:, None] * C + c[None, :]), mask=c[None, :] < C, other=0.0)


@triton.jit
def own_logit(source, y, x, h, w, C, mixture, own, SY: tl.constexpr, SX: tl.constexpr):
    """A lane's part of f_y, 0 where there is no label; its slots begin at low-resolution pixel (y, x)."""
    total = tl.zeros_like(own).to(tl.float32)
    weights = unpack(mixture)
    for i in tl.static_range(SY):
        line = source + own + tl.minimum(i, h - 1 - y) * (w * C)
        part = tl.zeros_like(total)  # fewer roundings than in one long sum
        for j in tl.static_range(SX):
            logit = tl.load(line + tl.minimum(x + j, w - 1) * C, mask=own >= 0, other=0.0)
            part += weights[i * SX + j] * logit
        total += part
    return total


@triton.jit
def find_spoiled(bad, mixture):
    """The pixels that mix a slot with a logit that is not finite, and the slots that those mix."""
    slot = tl.arange(0, mixture.shape[1])
    bits = tl.sum((bad > 0).to(tl.int64) << slot, 0)
    spoiled = tl.zeros([mixture.shape[0]], tl.int1)
    holes = tl.zeros([mixture.shape[1]], tl.int1)
    if bits != 0:
        mixed = (mixture != 0).to(tl.int32)
        spoiled = tl.max(mixed * (bits >> slot & 1).to(tl.int32)[None, :], 1) > 0
        holes = tl.max(tl.where(spoiled[:, None], mixed, 0), 0) > 0
    return spoiled, holes


@triton.jit
def mix_tile(
    tile,
    first_tile,
    tiles_y,
    source,
    bad,
    labels,
    rstd,
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
    KH: tl.constexpr,
    KW: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BY_WEIGHT: tl.constexpr,
):
    """What a tile of pixels mixes of its frame, for all classes.

    Gives the pixels' rows, columns, places in a plane and labels, and which exist; the labels' pointer there; the
    lanes' site and frame; A `[P, slots]` and the lanes' 1 / xi; f_y `[P]`; the source from the frame's first row on,
    and the slots' places there; the pixels that mix a logit that is not finite, and the slots that those mix.
    """
    G: tl.constexpr = SY * SX // 16
    LX: tl.constexpr = SX // G
    n, tile_y, tile_x, frame_y, frame_x = place_tile(tile, first_tile, tiles_y, W, base_y, base_x, TX)
    site = tile_site(labels, rstd, window, n, tile_y, tile_x, H, W, TY, TX, G, NORMALIZE)
    lane_x = frame_x + tl.arange(0, TY * TX * G) % G * LX
    frame = ((lower_y, fraction_y, frame_y, H), (lower_x, fraction_x, lane_x, W))
    lanes, inverse = mix(site, frame, KH, KW, SY, LX, NORMALIZE, BY_WEIGHT)
    mixture = join_lanes(lanes, SY, G)
    line = (n * h + frame_y) * w
    source += line * C
    own_merged = sum_lanes(own_logit(source, frame_y, lane_x, h, w, C, lanes, site[3], SY, LX), G)
    slots = frame_pixels(frame_y, frame_x, h, w, SY, SX)
    spoiled, holes = find_spoiled(tl.load(bad + line + slots), mixture)

    row, col = tile_pixels(tile_y, tile_x, TY, TX, 1)
    pixel = n * H * W + lane_offset(row, col, W, 1)
    labels += pixel
    own = load_own_labels(labels, row, col, H, W, 1)[0]
    inside = is_inside(row, col, H, W)
    pixels = (row, col, pixel, own, inside)
    return pixels, labels, site, frame, mixture, inverse, own_merged, source, slots, spoiled, holes


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
    pixels, labels, _site, _frame, mixture, _inverse, own_merged, source, slots, spoiled, _holes = mix_tile(
        tl.program_id(0),
        0,
        tl.cdiv(H, TY),
        source,
        bad,
        labels,
        rstd,
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
        KH,
        KW,
        TY,
        TX,
        SY,
        SX,
        NORMALIZE,
        BY_WEIGHT,
    )
    row, col, pixel, own, inside = pixels
    highest = own_merged
    others = tl.zeros_like(own_merged)
    drift = tl.zeros_like(own_merged)
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)
        merged = tl.dot(mixture, load_source(source, slots, c, C), input_precision=PRECISION)
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
                difference *= tl.load(class_weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
            drift += tl.sum(tl.where(counts, difference, 0.0), 1)

    tl.store(total + pixel, others, mask=inside)
    if not BOUNDED:
        tl.store(top + pixel, highest, mask=inside)
    # loaded anew, the labels have one pixel to a lane, and so has what follows from them
    own = load_own_labels(labels, row, col, H, W, 1)[0]
    others = tl.where(own >= 0, others, 0.0)
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
    loss = tl.where((own == INVALID) | spoiled, float("nan"), loss)
    centre = (own != VOID) & (row % centre_stride == 0) & (col % centre_stride == 0)
    tl.store(losses + pixel, tl.where(centre, loss, 0.0), mask=inside)


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
    pixels, _labels, site, frame, mixture, inverse, own_merged, source, slots, spoiled, holes = mix_tile(
        tile,
        first_tile,
        tiles_y,
        source,
        bad,
        labels,
        rstd,
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
        KH,
        KW,
        TY,
        TX,
        SY,
        SX,
        NORMALIZE,
        BY_WEIGHT,
    )
    row, col, pixel, own, inside = pixels
    others = tl.load(total + pixel, mask=inside, other=0.0)
    highest = own_merged
    lead = tl.zeros_like(own_merged)
    if not BOUNDED:
        highest = tl.load(top + pixel, mask=inside, other=0.0)
        lead = highest - own_merged
    surprise, miss = surprise_and_miss(lead, others)
    taken = (own >= 0) & (row % centre_stride == 0) & (col % centre_stride == 0)
    coefficient, own_gradient, uniform = cost_slope(
        tl.load(gradient + pixel, mask=taken & ~spoiled, other=0.0),
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
    factor = tl.div_rn(coefficient, tl.exp(-lead) + others)

    pitch = C
    if NORMALIZE:
        pitch = C + 4
    slot = tl.arange(0, SY * SX)
    kept = (slot // SX < span_y) & (slot % SX < span_x)
    parts += tile.to(tl.int64) * span_y * span_x * pitch
    slope = tl.zeros_like(mixture)
    for c0 in range(0, C, CLASSES):
        c = c0 + tl.arange(0, CLASSES)
        x = load_source(source, slots, c, C)
        merged = tl.dot(mixture, x, input_precision=PRECISION) - highest[:, None]
        g = factor[:, None] * (tl.exp2(merged * LOG2E) if BOUNDED else tl.exp(merged))
        if SMOOTHING:
            if WEIGHTED:
                g -= uniform[:, None] * tl.load(class_weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
            else:
                g -= uniform[:, None]
        g = tl.where(c[None, :] == own[:, None], own_gradient[:, None], g)
        if NORMALIZE:
            slope += tl.dot(g, tl.trans(x), input_precision=PRECISION)
        part = tl.trans(tl.dot(tl.trans(g), mixture, input_precision=PRECISION))
        part = tl.where(holes[:, None], float("nan"), part)
        tl.store(
            parts + (slot // SX * span_x + slot % SX)[:, None] * pitch + c[None, :],
            part,
            mask=kept[:, None] & (c[None, :] < C),
        )
    if NORMALIZE:
        G: tl.constexpr = SY * SX // 16
        slopes = variance_slopes(slope, inverse / C, site, frame, KH, KW, SY, SX // G, G)
        k = tl.arange(0, 4 * SY * SX)
        row = k // (2 * SX)
        col = k % (2 * SX)
        kept = (row // 2 < span_y) & (col // 2 < span_x)
        tl.store(parts + (row // 2 * span_x + col // 2) * pitch + C + row % 2 * 2 + col % 2, slopes, mask=kept)
