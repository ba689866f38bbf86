"""The target as the sweep reads it, checked on the way."""

import numpy as np
import torch
from torch import Tensor

from lal_triton import validation
from lal_triton.cpu import threads
from lal_triton.cpu.bands import Bands
from lal_triton.cpu.compiling import compiled
from lal_triton.labels import INVALID, VOID

PIXELS_OF_A_THREAD = 2**17  # fewer take less time than waking a thread does


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
    validation.check_weight_values("weight", weight)
    labels, omega = torch.empty(target.shape, dtype=torch.int32), torch.empty(target.shape, dtype=dtype)
    images, height, _ = target.shape
    none = np.empty(0, np.float64 if dtype == torch.float64 else np.float32)
    of_classes = none if weight is None else weight.detach().to(dtype).contiguous().numpy()
    of_pixels = None if pixel_weight is None else pixel_weight.detach().to(dtype).contiguous().numpy()
    targets, encoded, weights = target.long().contiguous().numpy(), labels.numpy(), omega.numpy()
    bands = Bands(images, height)
    sums, right = np.zeros((images, bands.count)), np.ones((images, bands.count), bool)

    def run(job: tuple[int, int]) -> None:
        image, band = job
        own = none[:, None] if of_pixels is None else of_pixels[image]
        first, last = bands.edges[band], bands.edges[band + 1]
        planes = of_classes, own, encoded[image], weights[image]
        sums[job], right[job] = encode(targets[image], first, last, num_classes, ignore_index, stride, *planes)

    threads.run(run, bands.jobs, most=1 + target.numel() // PIXELS_OF_A_THREAD)
    if not right.all():
        validation.check_values(target, weight, pixel_weight, num_classes, ignore_index)
    return labels, omega, torch.from_numpy(sums.sum(1)).to(dtype)


@compiled
def encode(target, first, last, num_classes, ignore_index, stride, weight, pixel_weight, labels, omega):  # type: ignore[no-untyped-def]
    """Rows [first, last) of one image: `labels.encode_labels`, and omega(p) = weight[y(p)] x pixel_weight(p).

    target, labels, omega: `[H, W]`; weight `[C]`, pixel_weight `[H, W]`, or empty.

    Returns the sum of omega in float64, and whether labels and pixel weights are what they may be.
    """
    zero, one = omega.dtype.type(0), omega.dtype.type(1)
    total, right = 0.0, True
    for y in range(first, last):
        centred = y % stride == 0
        for i in range(target.shape[1]):
            label = np.int64(target[y, i])
            if label == ignore_index:
                label = VOID
            elif label < 0 or label >= num_classes:
                label = INVALID
                right = False
            labels[y, i] = label
            value = one if label != VOID and centred and (stride == 1 or i % stride == 0) else zero
            if weight.size > 0 and value > zero:
                value = weight[max(label, 0)]
            if pixel_weight.size > 0:
                factor = pixel_weight[y, i]
                right &= zero <= factor < np.inf
                value = value * factor if value > zero else zero
            omega[y, i] = value
            total += value
    return total, right
