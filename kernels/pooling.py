# mypy: ignore-errors
"""Batch pooling (Eq. 5) of the map of losses, and its gradient: `lal_triton.pooling` in one launch each way."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lal_triton.kernels.arithmetic import power
from lal_triton.kernels.pixel_loss import (
    at_centres,
    gather_class_weights,
    nll_and_one_minus_p,
    nll_and_one_minus_p_from,
    pixel_loss_slope,
    sum_class_weights,
)
from lal_triton.kernels.planes import INVERSE, LOSSES, TOP_MINUS_OWN, TOTAL, find_plane
from lal_triton.kernels.window import VOID


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


class Pixels(NamedTuple):
    """The pixels of a program, of image n."""

    n: Any
    plane: Any  # where they are in a plane
    inside: Any  # which exist
    row: Any
    col: Any
    label: Any
    weight: Any  # pointers into `pixel_weight`


@triton.jit
def locate_pixels(labels, pixel_weight, H, W, weight_strides, S: tl.constexpr):
    area = H * W
    blocks = tl.cdiv(area, S.BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * S.BLOCK + tl.arange(0, S.BLOCK)
    inside = pixel < area
    row = pixel // W
    col = pixel % W
    plane = n * area + pixel
    label = tl.load(labels + plane, mask=inside, other=VOID)
    if S.HAS_PIXEL_WEIGHT:
        pixel_weight += n * weight_strides.n + row.to(tl.int64) * weight_strides.h + col.to(tl.int64) * weight_strides.w
    else:
        pixel_weight = labels  # a function returns no None
    return Pixels(n, plane, inside, row, col, label, pixel_weight)


@triton.jit
def load_omega(pixels, class_weight, centre_stride, HAS_CLASS_WEIGHT: tl.constexpr, S: tl.constexpr):
    """The weight omega of each pixel's loss, 0 where none is taken."""
    label = pixels.label
    centre = at_centres(label != VOID, pixels.row, pixels.col, centre_stride, S.STRIDED)
    omega = tl.where(centre, 1.0, 0.0)
    if HAS_CLASS_WEIGHT:
        omega *= tl.load(class_weight + tl.maximum(label, 0), mask=centre, other=0.0).to(tl.float32)
    if S.HAS_PIXEL_WEIGHT:
        omega *= tl.load(pixels.weight, mask=centre, other=0.0).to(tl.float32)
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


@triton.jit
def pool_fwd_kernel(
    value_ptr,
    workspace_ptr,
    labels_ptr,
    class_weight_ptr,
    pixel_weight_ptr,
    N,
    H,
    W,
    plane_size,
    pooled_begin,
    weight_strides,
    centre_stride,
    p,
    S: tl.constexpr,
    IMAGES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The pooled loss, and in `pooled` what the backward needs; with REDUCTION "none" the weighed map of losses.

    1. Each program: of its chunk of an image the largest loss, the sum of omega (L / largest)^p, and the mass.
    2. The last program to arrive reduces those of the others, in their order, to norms and masses of images.
    3. It pools the images.

    `pooled`: how many programs have arrived; the number of images that have a mass; of the batch the norm and the rate;
    of each image `[N]` the norm, then the rate; and what step 1 gives. The derivative by a loss L is a rate x omega
    (L / norm)^(p - 1).
    """
    pixels = locate_pixels(labels_ptr, pixel_weight_ptr, H, W, weight_strides, S)
    loss = tl.load(find_plane(workspace_ptr, LOSSES, S, plane_size) + pixels.plane, mask=pixels.inside, other=0.0)
    mass = load_omega(pixels, class_weight_ptr, centre_stride, S.HAS_CLASS_WEIGHT, S)
    omega = mass
    if S.WEIGHTS_IN_LOSS:
        omega = load_omega(pixels, class_weight_ptr, centre_stride, False, S)
    if S.REDUCTION == "none":
        tl.store(value_ptr + pixels.plane, omega * loss, mask=pixels.inside)
    else:
        chunks = tl.cdiv(H * W, S.BLOCK)
        pooled = workspace_ptr + pooled_begin
        partials = pooled + 4 + 2 * N
        size = N * chunks
        taken = tl.where(omega > 0, loss, 0.0)
        largest = tl.max(taken, 0)
        relative = tl.div_rn(taken, tl.where(largest > 0, largest, 1.0))
        tl.store(partials + tl.program_id(0), largest)
        if S.HAS_POWER:
            relative = power(relative, p)
        tl.store(partials + size + tl.program_id(0), tl.sum(omega * relative, 0))
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
                if S.REDUCTION == "image":
                    total += tl.sum(norms / root(tl.where(masses > 0, masses, 1.0), p), 0)
                else:
                    total += tl.sum(norms, 0)
                now = tl.maximum(peak, tl.max(norms, 0))
                scale = tl.where(now > 0, now, 1.0)
                batch = batch * power(peak / scale, p) + tl.sum(power(norms / scale, p), 0)
                peak = now
            norm = peak * root(batch, p)
            safe_mass = tl.where(whole_mass > 0, whole_mass, 1.0)
            if S.REDUCTION == "image":
                total /= tl.where(images > 0, images, 1.0)
            elif S.REDUCTION == "batch":
                total = norm / root(safe_mass, p)
            elif S.REDUCTION == "mean":
                total /= safe_mass
            tl.store(pooled + 1, images.to(tl.float32))
            tl.store(pooled + 2, norm.to(tl.float32))
            tl.store(pooled + 3, rate(norm, whole_mass, p))
            tl.store(value_ptr, total.to(tl.float32))


@triton.jit
def pool_bwd_kernel(
    out_ptr,
    gradient_ptr,
    workspace_ptr,
    labels_ptr,
    class_weight_ptr,
    pixel_weight_ptr,
    N,
    size,
    pooled_begin,
    gradient_strides,
    weight_strides,
    p,
    options,
    S: tl.constexpr,
    L: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """The gradient of the map of losses `[N, H, W]`; with SLOPES those of `merge_bwd_kernel`, or of cells.

    1. The weight omega of each pixel's loss.
    2. The derivative of the pooled loss by that loss, a power of it by the norm.
    3. With SLOPES times the slope of the loss by the exponentials of the other classes; of "cells" with label smoothing
       a second map, of what every class loses by it.
    """
    pixels = locate_pixels(labels_ptr, pixel_weight_ptr, size.H, size.W, weight_strides, S)
    HAS_CLASS_WEIGHT: tl.constexpr = S.HAS_CLASS_WEIGHT and not S.WEIGHTS_IN_LOSS
    omega = load_omega(pixels, class_weight_ptr, options.centre_stride, HAS_CLASS_WEIGHT, S)
    if S.REDUCTION == "none":
        row = pixels.row.to(tl.int64)
        col = pixels.col.to(tl.int64)
        gradient_ptr += pixels.n * gradient_strides.n + row * gradient_strides.h + col * gradient_strides.w
        value = omega * tl.load(gradient_ptr, mask=pixels.inside, other=0.0)
    else:
        pooled = workspace_ptr + pooled_begin
        factor = tl.load(gradient_ptr).to(tl.float32)
        norm = tl.load(pooled + 4 + pixels.n)
        slope = tl.load(pooled + 4 + N + pixels.n)
        if S.REDUCTION == "image":
            factor /= tl.load(pooled + 1)
        else:
            norm = tl.load(pooled + 2)
            slope = tl.load(pooled + 3)
        if S.REDUCTION != "sum":
            factor *= slope
        value = factor * omega
        if S.HAS_POWER:
            losses = find_plane(workspace_ptr, LOSSES, S, size.plane)
            loss = tl.load(losses + pixels.plane, mask=pixels.inside, other=0.0)
            if PRECISE:  # a high power of a rounded number is far off
                relative = power(loss.to(tl.float64) / tl.where(norm == 0, 1.0, norm), p - 1.0).to(tl.float32)
            else:
                relative = power(tl.div_rn(loss, tl.where(norm == 0, 1.0, norm)), p - 1.0)
            value *= relative
        value = tl.where(omega > 0, value, 0.0)
    if S.SLOPES == "saved":
        totals = find_plane(workspace_ptr, TOTAL, S, size.plane)
        others = tl.load(totals + pixels.plane, mask=pixels.inside, other=0.0)
        inverses = find_plane(workspace_ptr, INVERSE, S, size.plane)
        inverse = tl.load(inverses + pixels.plane, mask=pixels.inside, other=0.0)
        nll, one_minus_p = nll_and_one_minus_p(tl.zeros_like(others), others)
        value = tl.where(pixels.label >= 0, value * inverse, 0.0)
        coefficient, _, _ = pixel_loss_slope(value, nll, one_minus_p, 1.0, 1.0, options, size.C, L)
        tl.store(out_ptr + pixels.plane, tl.div_rn(coefficient, 1.0 + others), mask=pixels.inside)
    elif S.SLOPES == "cells":
        totals = find_plane(workspace_ptr, TOTAL, S, size.plane)
        others = tl.load(totals + pixels.plane, mask=pixels.inside, other=0.0)
        differences = find_plane(workspace_ptr, TOP_MINUS_OWN, S, size.plane)
        difference = tl.load(differences + pixels.plane, mask=pixels.inside, other=0.0)
        nll, one_minus_p = nll_and_one_minus_p_from(difference, others)
        own_weight = gather_class_weights(class_weight_ptr, (pixels.label,), L)[0]
        weight_sum = sum_class_weights(class_weight_ptr, size.C, L)
        value = tl.where(pixels.label >= 0, value, 0.0)
        coefficient, _, uniform = pixel_loss_slope(value, nll, one_minus_p, own_weight, weight_sum, options, size.C, L)
        tl.store(out_ptr + pixels.plane, tl.div_rn(coefficient, tl.exp(-difference) + others), mask=pixels.inside)
        if L.HAS_SMOOTHING:
            tl.store(out_ptr + size.plane + pixels.plane, uniform, mask=pixels.inside)
    else:
        tl.store(out_ptr + pixels.plane, value, mask=pixels.inside)
