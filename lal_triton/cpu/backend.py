"""Images cut into bands of rows, each of which is one call of the compiled sweep.

Bands depend on sizes alone, so that results have the same bits for any number of threads.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lal_triton import validation
from lal_triton.bilinear import Axis
from lal_triton.cpu import scaling, threads
from lal_triton.cpu.logits import Tables
from lal_triton.cpu.sweep import Settings, sweep
from lal_triton.cpu.targets import encode
from lal_triton.cpu.window import Window
from lal_triton.labels import INVALID, centre_mask
from lal_triton.options import LocalLoss, loss_dtype

BAND_ROWS = 64  # of the labels, about: each band scores and merges its halo anew
SCALED_ELEMENTS = 2**18  # of the gradient that one call scales
NOWHERE = (0, 0, 0, 0)


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
    bands = _Bands(height)
    sums, right = np.zeros((images, bands.count)), np.ones((images, bands.count), bool)

    def run(job: tuple[int, int]) -> None:
        image, band = job
        own = none[:, None] if of_pixels is None else of_pixels[image]
        first, last = bands.edges[band], bands.edges[band + 1]
        planes = of_classes, own, encoded[image], weights[image]
        sums[job], right[job] = encode(targets[image], first, last, num_classes, ignore_index, stride, *planes)

    threads.run(run, [(image, band) for image in range(images) for band in range(bands.count)])
    if not right.all():
        validation.check_values(target, weight, pixel_weight, num_classes, ignore_index)
    return labels, omega, torch.from_numpy(sums.sum(1)).to(dtype)


def scale_rows(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient `[N, C, h, w]` times a factor for each row `[N, h]`."""
    if dtype != gradient.dtype or not gradient.is_contiguous():
        return torch.where(gradient == 0, 0, gradient * factor[:, None, :, None]).to(dtype)
    out = torch.empty_like(gradient)
    planes, factors, scaled = gradient.detach().numpy(), factor.detach().contiguous().numpy(), out.numpy()
    parts = max(1, gradient[0].numel() // SCALED_ELEMENTS)
    edges = [len(planes[0]) * part // parts for part in range(parts + 1)]

    def run(job: tuple[int, int]) -> None:
        image, part = job
        classes = slice(edges[part], edges[part + 1])
        scaling.scale_rows(planes[image, classes], factors[image], scaled[image, classes])

    threads.run(run, [(image, part) for image in range(len(planes)) for part in range(parts)])
    return out


class Results(NamedTuple):
    losses: Tensor  # [N, H, W], or empty
    gradient: Tensor  # [N, C, h, w] of the losses' dtype (half precision would round twice), or empty
    scale: Tensor  # [N, h], of the gradient
    norms: Tensor  # [N], (sum_p omega(p) L(p)^p)^(1/p), float64


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss) -> Tensor:
    """The map of per-pixel losses `[N, H, W]`, as `reference.local_loss`."""
    losses = torch.empty(labels.shape, dtype=loss_dtype(logits))
    _sweep_images(logits, labels, weight, torch.zeros_like(losses), 1.0, options, losses=losses, derive=False)
    losses.masked_fill_(labels == INVALID, torch.nan)
    return losses.masked_fill_(~centre_mask(labels, options.stride), 0)


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss
) -> Tensor:
    """The gradient of the logits from any gradient of the map; everything is computed again."""
    omega = torch.where(centre_mask(labels, options.stride), gradient, 0)
    return _sweep_images(logits, labels, weight, omega, 1.0, options).gradient.to(logits.dtype)


def power_norms(
    logits: Tensor, labels: Tensor, weight: Tensor | None, omega: Tensor, p: float, options: LocalLoss, derive: bool
) -> Results:
    """The norms, and with `derive` sum_p omega(p) (L(p) / scale)^(p - 1) dL(p)/dlogits."""
    return _sweep_images(logits, labels, weight, omega, p, options, derive=derive)


def _sweep_images(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    omega: Tensor,
    p: float,
    options: LocalLoss,
    *,
    losses: Tensor | None = None,
    derive: bool = True,
) -> Results:
    logits = logits.detach()
    dtype, real = loss_dtype(logits), np.float64 if logits.dtype == torch.float64 else np.float32
    images, classes, height, width = logits.shape
    settings, window = _settings(options, classes, p, real), _window(options, real)
    class_weight = np.ones(classes, real) if weight is None else weight.detach().to(dtype).numpy()
    bands = _Bands(labels.shape[1])
    jobs = [(image, band) for image in range(images) for band in range(bands.count)]
    gradient = torch.empty_like(logits, dtype=dtype) if derive else torch.empty(0, dtype=dtype)
    map_ = torch.empty(images, 0, 0, dtype=dtype) if losses is None else losses
    scale = torch.ones(images, height, dtype=dtype)
    scales, sums = np.ones((images, bands.count)), np.zeros((images, bands.count))
    planes = [plane.detach().contiguous().numpy() for plane in (labels, omega, map_)]

    def run(
        job: tuple[int, int], x: Tensor, place: tuple[int, ...], tables: Tables | None, out: np.ndarray, target: Any
    ) -> None:
        image, band = job
        label, weights, loss = (plane[image] for plane in planes)
        scales[job], sums[job] = sweep(
            x.numpy(),
            place,
            tables,
            label,
            weights,
            class_weight,
            window,
            settings,
            bands.edges[band],
            bands.edges[band + 1],
            loss,
            out,
            target,
            scale.numpy()[image],
        )

    if logits.shape[2:] == labels.shape[1:]:
        halo = 2 * (options.kernel_height // 2)

        def run_band(job: tuple[int, int]) -> None:
            image, band = job
            top, bottom = max(bands.edges[band] - halo, 0), bands.edges[band + 1] + halo
            x, place = _flat(logits[image])
            if logits.dtype != dtype:
                x, place = _flat(logits[image, :, top:bottom].to(dtype))
                place = (-top * place[2], *place[1:])
            out, target = _flat(gradient[image]) if derive else (gradient, NOWHERE)
            run(job, x, place, None, out.numpy(), target)

        threads.run(run_band, jobs)
    else:
        tables = _tables(height, labels.shape[1], width, labels.shape[2], options.align_corners, dtype)
        low = (_centred(logits.to(dtype)) if options.normalize else logits.to(dtype)).contiguous()
        parts = [np.empty((0, 0, 0), real)] * len(jobs)

        def run_interpolated(number: int) -> None:
            image, band = jobs[number]
            if derive:
                parts[number] = np.zeros((len(bands.low_rows(band, tables)), classes, width), real)
            x, place = _flat(low[image])
            run(jobs[number], x, place, tables, parts[number], NOWHERE)

        threads.run(run_interpolated, range(len(jobs)))
        if derive:
            largest = scales.max(1)
            scale[:] = torch.from_numpy(largest)[:, None]
            gradient.zero_()
            for (image, band), part in zip(jobs, parts, strict=True):
                rows = bands.low_rows(band, tables)
                share = (scales[image, band] / largest[image]) ** (p - 1)
                gradient[image, :, rows.start : rows.stop].add_(torch.from_numpy(part).transpose(0, 1), alpha=share)
    return Results(map_, gradient, scale, torch.from_numpy(_norms(scales, sums, p)))


class _Bands:
    """Rows of the labels, in bands of about the same height."""

    def __init__(self, height: int) -> None:
        self.count = max(1, round(height / BAND_ROWS))
        self.edges = [height * band // self.count for band in range(self.count + 1)]

    def low_rows(self, band: int, tables: Tables) -> range:
        """The low-resolution rows that a band is interpolated from."""
        first, last = (int(tables.lower_row[row]) for row in (self.edges[band], self.edges[band + 1] - 1))
        return range(first, min(last + 2, tables.height))


def _settings(options: LocalLoss, classes: int, p: float, real: Any) -> Settings:
    return Settings(
        normalize=options.normalize,
        eps=real(options.eps),
        bounded=options.exp_is_bounded(classes),
        focal=options.cost == "focal",
        alpha=real(options.focal_alpha),
        gamma=real(options.focal_gamma),
        smoothing=real(options.label_smoothing),
        p=real(p),
        tiny=np.finfo(real).tiny,
    )


def _window(options: LocalLoss, real: Any) -> Window:
    weights = np.array(options.window, real)
    mirrored = weights[::-1].copy()
    counted = weights if options.average == "weight" else np.ones_like(weights)
    symmetric = np.array_equal(weights, mirrored)
    boxes = _boxes(weights.reshape(options.kernel_height, options.kernel_width))
    return Window(options.kernel_height, options.kernel_width, weights, mirrored, counted, symmetric, boxes)


def _boxes(weights: np.ndarray) -> np.ndarray:
    """The weights of the nested boxes that make up a `[Kh, Kw]` window, from the inner to the outer, if they do."""
    reach = len(weights) // 2
    row, column = np.indices(weights.shape)
    distance = np.maximum(abs(row - reach), abs(column - weights.shape[1] // 2))
    radial = weights[reach, weights.shape[1] // 2 :]  # at each distance
    if weights.shape[0] != weights.shape[1] or not np.array_equal(weights, radial[distance]):
        return weights[0, :0]
    return radial - np.append(radial[1:], weights.dtype.type(0))


@functools.lru_cache(16)
def _tables(
    low_height: int, height: int, low_width: int, width: int, align_corners: bool, dtype: torch.dtype
) -> Tables:
    rows, columns = (
        Axis.of(low, high, align_corners, reach=0, device=torch.device("cpu"), tile=high)
        for low, high in ((low_height, height), (low_width, width))
    )
    of_rows, of_columns = ((axis.lower.numpy(), axis.fraction.to(dtype).numpy()) for axis in (rows, columns))
    return Tables(*of_rows, *of_columns, low_height, low_width)


def _flat(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The memory of a `[C, H, W]` tensor from its first element to its last, and where (c, y, i) lies in it."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((extent,), (1,)), (0, *x.stride())


def _centred(logits: Tensor) -> Tensor:
    """Low-resolution logits less their first class, which no score notices, and no interpolation needs to round."""
    centred = logits - logits[:, :1]
    return torch.where(centred.isfinite().all(1, keepdim=True), centred, logits)


def _norms(scales: np.ndarray, sums: np.ndarray, p: float) -> np.ndarray:
    """(sum omega L^p)^(1/p) of each image, from its bands' sums in units of their scales."""
    largest = scales.max(1)
    return largest * (sums * (scales / largest[:, None]) ** p).sum(1) ** (1 / p)
