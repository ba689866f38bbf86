"""The target as the sweep reads it, checked on the way."""

import numpy as np
import torch
from torch import Tensor

from lal_triton import validation
from lal_triton.cpu.bands import Bands, run
from lal_triton.cpu.compiling import compiled, inlined
from lal_triton.labels import INVALID, VOID

PIXELS_OF_A_THREAD = 2**19  # fewer take less time than waking a thread does


def prepare(
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    num_classes: int,
    stride: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded labels, omega, and each image's sum of omega; ValueError as `validation.check_values` raises it."""
    if weight is not None:
        validation.check_weight_values("weight", weight)
    labels, omega = torch.empty(target.shape, dtype=torch.int32), torch.empty(target.shape, dtype=dtype)
    images, height, _ = target.shape
    none = np.empty(0, np.float64 if dtype == torch.float64 else np.float32)
    of_classes = none if weight is None else weight.detach().to(dtype).contiguous().numpy()
    of_pixels = None if pixel_weight is None else pixel_weight.detach().to(dtype).contiguous().numpy()
    targets, encoded, weights = target.long().contiguous().numpy(), labels.numpy(), omega.numpy()
    bands = Bands(images, height)
    sums, right = np.zeros((images, bands.count)), np.ones((images, bands.count), bool)

    def encode_band(job: tuple[int, int]) -> None:
        image, band = job
        own = none[:, None] if of_pixels is None else of_pixels[image]
        first, last = bands.edges[band], bands.edges[band + 1]
        planes = of_classes, own, encoded[image], weights[image]
        sums[job], right[job] = encode(targets[image], first, last, num_classes, ignore_index, stride, *planes)

    run(encode_band, bands.jobs, most=1 + target.numel() // PIXELS_OF_A_THREAD)
    if not right.all():
        validation.check_values(target, weight, pixel_weight, num_classes, ignore_index)
    return labels, omega, torch.from_numpy(sums.sum(1)).to(dtype)


@compiled
def encode(target, first, last, num_classes, ignore_index, stride, weight, pixel_weight, labels, omega):  # type: ignore[no-untyped-def]
    """Rows [first, last) of one image: `labels.encode_labels`, and omega(p) = weight[y(p)] x pixel_weight(p).

    target, labels, omega: `[H, W]`; weight `[C]`, pixel_weight `[H, W]`, or empty.

    Returns the sum of omega in float64, and whether labels and pixel weights are what they may be.
    """
    zero, total, right = omega.dtype.type(0), 0.0, True
    for y in range(first, last):
        own, value = labels[y], omega[y]
        right &= encode_row(target[y], num_classes, ignore_index, own)
        for i in range(len(value)):
            value[i] = own[i] != VOID
        if stride > 1:
            for i in range(len(value)):
                if y % stride > 0 or i % stride > 0:
                    value[i] = zero
        if weight.size > 0:
            for i in range(len(value)):
                value[i] = weight[max(own[i], 0)] if value[i] > zero else zero
        if pixel_weight.size > 0:
            factor = pixel_weight[y]
            for i in range(len(value)):
                right &= zero <= factor[i] < np.inf
                value[i] = value[i] * factor[i] if value[i] > zero else zero
        total += sum_of(value)
    return total, right


@inlined
def encode_row(target, num_classes, ignore_index, labels):  # type: ignore[no-untyped-def]
    wrong = 0
    for i in range(len(target)):
        label = target[i]
        inside = 0 <= label < num_classes
        encoded = label if inside else INVALID
        labels[i] = VOID if label == ignore_index else encoded
        wrong += not inside and label != ignore_index
    return wrong == 0


@inlined
def sum_of(values):  # type: ignore[no-untyped-def]
    """In float64, by four sums that need not wait for each other."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = len(values) - len(values) % 4
    for i in range(0, whole, 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    for i in range(whole, len(values)):
        a += values[i]
    return (a + b) + (c + d)
