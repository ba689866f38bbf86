"""The loss of a batch on a CPU: images cut into bands of rows, each of which is one call of the compiled sweep."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lal_triton.bilinear import Axis
from lal_triton.cpu.bands import Bands, run
from lal_triton.cpu.logits import Tables
from lal_triton.cpu.memory import advise_huge
from lal_triton.cpu.sweep import Settings, make_workspace, sweep
from lal_triton.cpu.window import Window
from lal_triton.labels import INVALID, centre_mask
from lal_triton.options import LocalLoss

Place = tuple[int, ...]  # in a tensor's memory: the first element's, and the strides of C, h and w
NOWHERE: Place = (0, 0, 0, 0)


class Results(NamedTuple):
    gradient: Tensor  # [N, C, h, w] of the losses' dtype (half precision would round twice), or empty
    scale: Tensor  # [N, h], of the gradient
    norms: Tensor  # [N], (sum_p omega(p) L(p)^p)^(1/p), float64


class Plan:
    """The sweeps over logits `[N, C, h, w]` and labels `[N, H, W]` of such sizes, with powers p of the losses."""

    def __init__(
        self, shape: Sequence[int], labels: Sequence[int], dtype: torch.dtype, options: LocalLoss, p: float
    ) -> None:
        """`dtype` is that of the losses."""
        images, self._classes, *low = shape
        self._options, self._p, self._dtype, self._width = options, p, dtype, labels[2]
        real = np.float64 if dtype == torch.float64 else np.float32
        self._settings, self._window = _settings(options, self._classes, p, real), _window(options, real)
        self._tables = _tables(low, labels[1:], options.align_corners, dtype)
        self._ones = np.ones(self._classes, real)
        self._bands = Bands(images, labels[1])

    def local_loss(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """The map of per-pixel losses `[N, H, W]`, as `reference.local_loss`."""
        losses = torch.empty(labels.shape, dtype=self._dtype)
        self._sweep_images(logits, labels, weight, torch.zeros_like(losses), losses=losses, derive=False)
        losses.masked_fill_(labels == INVALID, torch.nan)
        return losses.masked_fill_(~centre_mask(labels, self._options.stride), 0)

    def local_loss_backward(self, gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """The gradient of the logits from any gradient of the map; everything is computed again."""
        omega = torch.where(centre_mask(labels, self._options.stride), gradient, 0)
        return self._sweep_images(logits, labels, weight, omega).gradient.to(logits.dtype)

    def power_norms(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None, omega: Tensor, total: Tensor, derive: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The images' norms `[N]` with omega / total, and with `derive` their gradient, up to a factor of each row.

        Gives the norms, the gradient (or an empty tensor) and the factors `[N, h]`.
        """
        shares = omega if total == 1 else torch.from_numpy(omega.detach().numpy() / total.numpy())
        gradient, scale, norms = self._sweep_images(logits, labels, weight, shares, derive=derive)
        norms = norms * (total / total)  # NaN where the total overflows
        factor = (scale / torch.where(norms == 0, 1, norms)[:, None]) ** (self._p - 1)
        return norms.to(self._dtype), gradient, factor.to(self._dtype)

    def _sweep_images(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        omega: Tensor,
        *,
        losses: Tensor | None = None,
        derive: bool = True,
    ) -> Results:
        """The gradient of sum_p omega(p) (L(p) / scale)^(p - 1) L(p), and the norms."""
        logits, dtype, bands, tables, p = logits.detach(), self._dtype, self._bands, self._tables, self._p
        images, classes, height, width = logits.shape
        class_weight = self._ones if weight is None else weight.detach().to(dtype).numpy()
        gradient = torch.empty_like(logits, dtype=dtype) if derive else torch.empty(0, dtype=dtype)
        advise_huge(gradient)
        map_ = torch.empty(images, 0, 0, dtype=dtype) if losses is None else losses
        scale = torch.ones(images, height, dtype=dtype)
        scales, sums = np.ones((images, bands.count)), np.zeros((images, bands.count))
        planes = [plane.detach().contiguous().numpy() for plane in (labels, omega, map_)]
        scale_rows, own = scale.numpy(), threading.local()

        def sweep_band(job: tuple[int, int], x: np.ndarray, place: Place, out: np.ndarray, target: Place) -> None:
            image, band = job
            if not hasattr(own, "workspace"):
                own.workspace = make_workspace(self._window, tables, classes, self._width, dtype)
            label, weights, loss = (plane[image] for plane in planes)
            scales[job], sums[job] = sweep(
                own.workspace,
                x,
                place,
                tables,
                label,
                weights,
                class_weight,
                self._window,
                self._settings,
                bands.edges[band],
                bands.edges[band + 1],
                loss,
                out,
                target,
                scale_rows[image],
            )

        if tables is None:
            halo, sink = 2 * (self._options.kernel_height // 2), _memory(gradient)

            def run_band(job: tuple[int, int]) -> None:
                image, band = job
                rows, top = logits[image : image + 1], 0
                if logits.dtype != dtype:
                    # A sweep reads pairs of rows, and so may read one row below the halo.
                    top, bottom = max(bands.edges[band] - halo, 0), bands.edges[band + 1] + halo + 1
                    rows = rows[:, :, top:bottom].to(dtype)
                target = _place(gradient, image) if derive else NOWHERE
                sweep_band(job, _memory(rows), _place(rows, 0, top), sink, target)

            run(run_band, bands.jobs)
        else:
            low = (_centred(logits.to(dtype)) if self._options.normalize else logits.to(dtype)).contiguous()
            source, parts = _memory(low), [torch.empty(0, 0, 0, dtype=dtype)] * len(bands.jobs)

            def run_interpolated(number: int) -> None:
                image, band = bands.jobs[number]
                if derive:
                    parts[number] = torch.zeros(len(bands.low_rows(band, tables)), classes, width, dtype=dtype)
                sweep_band(bands.jobs[number], source, _place(low, image), parts[number].numpy(), NOWHERE)

            run(run_interpolated, range(len(bands.jobs)))
            if derive:
                largest = scales.max(1)
                scale[:] = torch.from_numpy(largest)[:, None]
                gradient.zero_()
                for (image, band), part in zip(bands.jobs, parts, strict=True):
                    rows = bands.low_rows(band, tables)
                    share = (scales[image, band] / largest[image]) ** (p - 1)
                    gradient[image, :, rows.start : rows.stop].add_(part.transpose(0, 1), alpha=share)
        return Results(gradient, scale, torch.from_numpy(_norms(scales, sums, p)))


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
    return Window(options.kernel_height, options.kernel_width, weights, mirrored, counted, symmetric)


def _tables(low: Sequence[int], high: Sequence[int], align_corners: bool, dtype: torch.dtype) -> Tables | None:
    """Of the interpolation from one (height, width) to another; None where they are equal."""
    if tuple(low) == tuple(high):
        return None
    axes = (Axis.of(*sizes, align_corners) for sizes in zip(low, high, strict=True))
    of_rows, of_columns = ((axis.lower.numpy(), axis.fraction.to(dtype).numpy()) for axis in axes)
    return Tables(*of_rows, *of_columns, *low)


def _memory(x: Tensor) -> np.ndarray:
    """All elements of a tensor, in the order of its memory, from its first to its last."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((extent if x.numel() else 0,), (1,)).numpy()


def _place(x: Tensor, image: int, top: int = 0) -> Place:
    """Where (c, y, i) of an image lies in the memory of `[N, C, h, w]`, whose first row is number `top`."""
    of_image, *strides = x.stride()
    return (image * of_image - top * strides[1], *strides)


def _centred(logits: Tensor) -> Tensor:
    """Low-resolution logits less their first class, which no score notices, and no interpolation needs to round."""
    centred = logits - logits[:, :1]
    return torch.where(centred.isfinite().all(1, keepdim=True), centred, logits)


def _norms(scales: np.ndarray, sums: np.ndarray, p: float) -> np.ndarray:
    """(sum omega L^p)^(1/p) of each image, from its bands' sums in units of their scales."""
    largest = scales.max(1)
    return largest * (sums * (scales / largest[:, None]) ** p).sum(1) ** (1 / p)
