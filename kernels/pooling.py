# mypy: ignore-errors
"""Batch pooling (Eq. 5) of the map of losses, and its gradient: `lal_triton.pooling` in one launch each way."""

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import power
from lal_triton.kernels.cost import cost_slope, surprise_and_miss
from lal_triton.kernels.launching import kernel
from lal_triton.kernels.state import INVERSE, LOSSES, TOTAL, find_plane
from lal_triton.kernels.strips import VOID


@triton.jit
def root(x, p):
    """x^(1/p) of float64 numbers."""
    return tl.where(x > 0, tl.exp(tl.log(tl.where(x > 0, x, 1.0)) / p), x)


@triton.jit
def rate(norm, mass, p):
    """mass^(-1/p), for a norm that is rounded to float32, by a factor that makes up for the rounding."""
    rounded = norm.to(tl.float32).to(tl.float64)
    correction = power(tl.where(norm > 0, rounded / tl.where(norm > 0, norm, 1.0), 1.0), p - 1.0)
    return (correction / root(tl.where(mass > 0, mass, 1.0), p)).to(tl.float32)


@triton.jit
def place_pixels(labels, pixel_weight, H, W, weight_n, weight_h, weight_w, BLOCK: tl.constexpr, POINTED: tl.constexpr):
    """A program's image and pixels: their places in a plane, which of them exist, rows, columns, labels and weights."""
    area = H * W
    blocks = tl.cdiv(area, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    row = pixel // W
    col = pixel % W
    plane = n * area + pixel
    label = tl.load(labels + plane, mask=inside, other=VOID)
    if POINTED:
        pixel_weight += n * weight_n + row.to(tl.int64) * weight_h + col.to(tl.int64) * weight_w
    else:
        pixel_weight = labels  # a function returns no None
    return n, plane, inside, row, col, label, pixel_weight


@triton.jit
def load_omega(
    label, row, col, class_weight, pixel_weight, centre_stride, WEIGHTED: tl.constexpr, POINTED: tl.constexpr
):
    """The weight omega of a pixel's loss, 0 where none is taken; `pixel_weight` stands at the pixel."""
    centre = (label != VOID) & (row % centre_stride == 0) & (col % centre_stride == 0)
    omega = tl.where(centre, 1.0, 0.0)
    if WEIGHTED:
        omega *= tl.load(class_weight + tl.maximum(label, 0), mask=centre, other=0.0).to(tl.float32)
    if POINTED:
        omega *= tl.load(pixel_weight, mask=centre, other=0.0).to(tl.float32)
    return omega


@triton.jit
def reduce_images(partials, first, N, chunks, p, IMAGES: tl.constexpr, CHUNKS: tl.constexpr):
    """Of images first, first + 1, ...: the norms and the masses, from what their chunks have, in float64."""
    n = first + tl.arange(0, IMAGES)
    largest = tl.zeros([IMAGES], tl.float32)
    total = tl.zeros([IMAGES], tl.float64)
    mass = tl.zeros([IMAGES], tl.float64)
    size = N * chunks
    for k0 in range(0, chunks, CHUNKS):
        k = k0 + tl.arange(0, CHUNKS)[None, :]
        place = n[:, None] * chunks + k
        exists = (n < N)[:, None] & (k < chunks)
        peaks = tl.load(partials + place, mask=exists, other=0.0)
        sums = tl.load(partials + size + place, mask=exists, other=0.0).to(tl.float64)
        masses = tl.load(partials + 2 * size + place, mask=exists, other=0.0)
        now = tl.maximum(largest, tl.max(peaks, 1))
        scale = tl.where(now > 0, now, 1.0).to(tl.float64)
        total = total * power(largest / scale, p) + tl.sum(sums * power(peaks / scale[:, None], p), 1)
        mass += tl.sum(masses.to(tl.float64), 1)
        largest = now
    return largest * root(total, p), mass


@kernel
def pool_fwd_kernel(
    value,
    state,
    labels,
    class_weight,
    pixel_weight,
    N,
    H,
    W,
    plane_size,
    pooled_begin,
    weight_n,
    weight_h,
    weight_w,
    centre_stride,
    p,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
    CHUNKS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WEIGHTED_COST: tl.constexpr,
    POINTED: tl.constexpr,
    REDUCTION: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The pooled loss, and in `pooled` what the backward needs; with REDUCTION "none" the weighed map of losses.

    `pooled`: how many programs have arrived; the number of images that have a mass; of the batch the norm and the rate;
    of each image `[N]` the norm, then the rate; and of each chunk of an image the largest loss, the sum of
    omega (L / largest)^p, and the mass. The last program to arrive reduces those of the others, in their order.
    The derivative by a loss L is a rate x omega (L / norm)^(p - 1).
    """
    _n, plane, inside, row, col, label, pixel_weight = place_pixels(
        labels, pixel_weight, H, W, weight_n, weight_h, weight_w, BLOCK, POINTED
    )
    loss = tl.load(find_plane(state, LOSSES, PLACES, plane_size) + plane, mask=inside, other=0.0)
    mass = load_omega(label, row, col, class_weight, pixel_weight, centre_stride, WEIGHTED, POINTED)
    omega = mass
    if WEIGHTED_COST:
        omega = load_omega(label, row, col, class_weight, pixel_weight, centre_stride, False, POINTED)
    if REDUCTION == "none":
        tl.store(value + plane, omega * loss, mask=inside)
    else:
        chunks = tl.cdiv(H * W, BLOCK)
        pooled = state + pooled_begin
        partials = pooled + 4 + 2 * N
        size = N * chunks
        taken = tl.where(omega > 0, loss, 0.0)
        largest = tl.max(taken, 0)
        relative = tl.div_rn(taken, tl.where(largest > 0, largest, 1.0))
        tl.store(partials + tl.program_id(0), largest)
        tl.store(partials + size + tl.program_id(0), tl.sum(omega * power(relative, p), 0))
        tl.store(partials + 2 * size + tl.program_id(0), tl.sum(mass, 0))
        tl.debug_barrier()
        arrived = tl.atomic_add(pooled.to(tl.pointer_type(tl.int32), bitcast=True), 1, sem="acq_rel")
        if arrived == size - 1:
            images = tl.zeros([], tl.float64)
            whole_mass = images
            total = images  # of the images' pooled losses
            peak = images
            batch = images  # sum of (norm / peak)^p
            for first in range(0, N, IMAGES):
                norms, masses = reduce_images(partials, first, N, chunks, p, IMAGES, CHUNKS)
                image = first + tl.arange(0, IMAGES)
                tl.store(pooled + 4 + image, norms.to(tl.float32), mask=image < N)
                tl.store(pooled + 4 + N + image, rate(norms, masses, p), mask=image < N)
                images += tl.sum(tl.where(masses > 0, 1.0, 0.0).to(tl.float64), 0)
                whole_mass += tl.sum(masses, 0)
                if REDUCTION == "image":
                    total += tl.sum(norms / root(tl.where(masses > 0, masses, 1.0), p), 0)
                else:
                    total += tl.sum(norms, 0)
                now = tl.maximum(peak, tl.max(norms, 0))
                scale = tl.where(now > 0, now, 1.0)
                batch = batch * power(peak / scale, p) + tl.sum(power(norms / scale, p), 0)
                peak = now
            norm = peak * root(batch, p)
            safe_mass = tl.where(whole_mass > 0, whole_mass, 1.0)
            if REDUCTION == "image":
                total /= tl.where(images > 0, images, 1.0)
            elif REDUCTION == "batch":
                total = norm / root(safe_mass, p)
            elif REDUCTION == "mean":
                total /= safe_mass
            tl.store(pooled + 1, images.to(tl.float32))
            tl.store(pooled + 2, norm.to(tl.float32))
            tl.store(pooled + 3, rate(norm, whole_mass, p))
            tl.store(value, total.to(tl.float32))


@kernel
def pool_bwd_kernel(
    out,
    gradient,
    state,
    labels,
    class_weight,
    pixel_weight,
    N,
    H,
    W,
    C,
    plane_size,
    pooled_begin,
    gradient_n,
    gradient_h,
    gradient_w,
    weight_n,
    weight_h,
    weight_w,
    centre_stride,
    p,
    alpha,
    gamma,
    BLOCK: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WEIGHTED_COST: tl.constexpr,
    POINTED: tl.constexpr,
    REDUCTION: tl.constexpr,
    PRECISE: tl.constexpr,
    SLOPES: tl.constexpr,
    FOCAL: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The gradient of the map of losses `[N, H, W]`; with SLOPES what `merge_bwd_kernel` takes."""
    n, plane, inside, row, col, label, pixel_weight = place_pixels(
        labels, pixel_weight, H, W, weight_n, weight_h, weight_w, BLOCK, POINTED
    )
    omega = load_omega(
        label, row, col, class_weight, pixel_weight, centre_stride, WEIGHTED and not WEIGHTED_COST, POINTED
    )
    if REDUCTION == "none":
        gradient += n * gradient_n + row.to(tl.int64) * gradient_h + col.to(tl.int64) * gradient_w
        value = omega * tl.load(gradient, mask=inside, other=0.0)
    else:
        pooled = state + pooled_begin
        factor = tl.load(gradient).to(tl.float32)
        norm = tl.load(pooled + 4 + n)
        slope = tl.load(pooled + 4 + N + n)
        if REDUCTION == "image":
            factor /= tl.load(pooled + 1)
        else:
            norm = tl.load(pooled + 2)
            slope = tl.load(pooled + 3)
        if REDUCTION != "sum":
            factor *= slope
        loss = tl.load(find_plane(state, LOSSES, PLACES, plane_size) + plane, mask=inside, other=0.0)
        if PRECISE:  # a high power of a rounded number is far off
            relative = power(loss.to(tl.float64) / tl.where(norm == 0, 1.0, norm), p - 1.0).to(tl.float32)
        else:
            relative = power(tl.div_rn(loss, tl.where(norm == 0, 1.0, norm)), p - 1.0)
        value = factor * omega * relative
        value = tl.where(omega > 0, value, 0.0)
    if SLOPES:
        others = tl.load(find_plane(state, TOTAL, PLACES, plane_size) + plane, mask=inside, other=0.0)
        scale = tl.load(find_plane(state, INVERSE, PLACES, plane_size) + plane, mask=inside, other=0.0)
        surprise, miss = surprise_and_miss(tl.zeros_like(others), others)
        value = tl.where(label >= 0, value * scale, 0.0)
        coefficient, _, _ = cost_slope(value, surprise, miss, 1.0, 1.0, 0.0, alpha, gamma, C, FOCAL, False)
        tl.store(out + plane, tl.div_rn(coefficient, 1.0 + others), mask=inside)
    else:
        tl.store(out + plane, value, mask=inside)
