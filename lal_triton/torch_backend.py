"""The loss in torch operations and bounded memory, with a hand-derived gradient: for CPUs, and float64 anywhere.

An image is walked in bands of rows, with the classes as the last dimension of everything: here at full resolution,
where the merge sums rows of standard scores, and in `torch_upsampling` where the labels are finer than the logits.
"""

import torch
from torch import Tensor

from lal_triton import reference, torch_upsampling
from lal_triton.labels import INVALID, VOID, centre_mask
from lal_triton.options import LocalLoss, loss_dtype
from lal_triton.torch_cost import cost_gradient, local_cost
from lal_triton.torch_pooling import Derivative, Results
from lal_triton.torch_windows import Layout, Taps

_BAND_ELEMENTS = 3 * 2**18  # of a band's logits and window weights: a core's level-2 cache, and a bound on the memory
_MIN_BAND_ROWS = 32  # each band computes its halo anew

# MKL chooses each function's kernel at its first call, and a first call from several threads at once may run one of low
# precision (pytorch/pytorch#188792): let one element go first.
for _dtype in (torch.float32, torch.float64):
    for _function in (torch.exp, torch.log, torch.expm1):
        _function(torch.ones(1, dtype=_dtype))


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss) -> Tensor:
    """The map of per-pixel losses `[N, H, W]`, as `reference.local_loss`."""
    return _sweep(logits, labels, weight, options, None).losses


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss
) -> Tensor:
    """The gradient of the logits from any gradient of the map; the merge is computed again."""
    derivative = Derivative(gradient * centre_mask(labels, options.stride), 1.0)
    return _sweep(logits, labels, weight, options, derivative).gradient.to(logits.dtype)


def local_loss_and_gradient(
    logits: Tensor, labels: Tensor, weight: Tensor | None, omega: Tensor, p: float, options: LocalLoss
) -> Results:
    """The map, sum_p omega(p) (L(p) / scale)^(p - 1) dL(p)/dlogits, and the scale of each row of logits, `[N, h]`.

    The gradient has the dtype of the losses: one of half precision would be rounded twice.
    """
    return _sweep(logits, labels, weight, options, Derivative(omega, p))


def _sweep(
    logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss, derivative: Derivative | None
) -> Results:
    """The map, and what `local_loss_and_gradient` says of the gradient, which is empty without a derivative."""
    fine = logits.shape[2:] != labels.shape[1:]
    losses = torch.empty(labels.shape, dtype=loss_dtype(logits), device=logits.device)
    class_weight = losses.new_ones(logits.shape[1]) if weight is None else weight.to(losses.dtype)
    gradient = torch.empty_like(logits, dtype=losses.dtype) if derivative else losses.new_empty(0)
    results = Results(losses, gradient, losses.new_ones(logits.shape[0], logits.shape[2]))
    sweep = torch_upsampling.sweep if fine else _sweep_bands
    sweep(logits, labels, class_weight, options, derivative, results)
    losses.masked_fill_(labels == INVALID, torch.nan)
    losses.masked_fill_(~centre_mask(labels, options.stride), 0)
    return results


def _sweep_bands(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    options: LocalLoss,
    derivative: Derivative | None,
    out: Results,
) -> None:
    images, num_classes, height, _width = logits.shape
    layout = _layout(logits, options)
    flat_labels = layout.flatten(labels, VOID)
    flat_omega = layout.flatten(derivative.omega, 0) if derivative else None

    halo = layout.rows if derivative else 0
    scores = out.losses.new_zeros(layout.table_length(layout.band_rows + 2 * (halo + layout.rows)), num_classes)
    slopes = out.losses.new_zeros(layout.table_length(layout.band_rows + 2 * halo), num_classes)
    taps = Taps(flat_labels, layout, options, layout.band_rows + 2 * halo, out.losses)
    for image in range(images):
        for first in range(0, height, layout.band_rows):
            last = min(first + layout.band_rows, height)
            pixels = layout.pixels(first - halo, last + halo)
            whole = slice(0, pixels.stop - pixels.start)
            inside = slice(halo * layout.pitch, (halo + last - first) * layout.pitch)

            scored = first - halo - layout.rows, last + halo + layout.rows
            void = flat_labels[image, layout.pixels(*scored)] == VOID
            z, rstd = _score(logits[image], void, *scored, scores, layout, options)
            taps.select(image, pixels)
            f = taps.merge(z, whole).mul_(taps.xi.reciprocal()[:, None])
            cost = local_cost(f, flat_labels[image, pixels], weight, options)
            out.losses[image, first:last] = layout.rows_of(cost.losses[inside])
            if derivative and flat_omega is not None:
                coefficient, out.scale[image, first:last] = derivative(cost.losses, flat_omega[image, pixels])
                g = slopes[: layout.table_length(last - first + 2 * halo)]
                cost_gradient(cost, coefficient / taps.xi, weight, layout.inside(g))
                layout.gaps_of(layout.inside(g)).zero_()  # 0 x NaN would cross from one row's end to the next row
                dz = taps.merge_transposed(g, inside)
                own_pixels = slice(layout.lead + inside.start, layout.lead + inside.stop)
                if options.normalize:
                    dz = _unscore(dz, z[own_pixels], rstd[own_pixels])
                out.gradient[image, :, first:last] = layout.rows_of(dz).permute(2, 0, 1)


def _layout(logits: Tensor, options: LocalLoss) -> Layout:
    _, num_classes, height, width = logits.shape
    rows, reach = options.kernel_height // 2, options.kernel_width // 2
    band_rows = max(_MIN_BAND_ROWS, _BAND_ELEMENTS // ((num_classes + len(options.window)) * (width + reach)))
    return Layout(height, width, width + reach, rows, reach, min(band_rows, height))


def _score(
    logits: Tensor, void: Tensor, first: int, last: int, table: Tensor, layout: Layout, options: LocalLoss
) -> tuple[Tensor, Tensor]:
    """Fills the table with the scores of rows [first, last), 0 at void; returns its used part and 1 / std."""
    used = table[: layout.table_length(last - first)]
    _fill(used, logits, void, first, last, layout)
    if not options.normalize:
        return used, used[:, 0]
    mean = used.new_full(used.shape[1:], 1 / used.shape[1])
    used.sub_(used.mv(mean)[:, None])
    residual = used.mv(mean)  # of a mean that was rounded; it matters where a large offset hides a small variance
    variance = used.square().mv(mean).sub_(residual.square_())
    if not bool(variance.isfinite().all()):
        _fill(used, logits, void, first, last, layout)
        z, rstd = reference.standard_score(used, options.eps)
        return used.copy_(z), rstd[:, 0]
    rstd = variance.add_(options.eps).rsqrt_()
    return used.mul_(rstd[:, None]), rstd


def _fill(used: Tensor, logits: Tensor, void: Tensor, first: int, last: int, layout: Layout) -> None:
    """The logits of rows [first, last), 0 at void: beyond the image, too."""
    low, high = max(first, 0), min(last, layout.height)
    pixels = layout.inside(used)
    layout.rows_of(pixels)[low - first : high - first] = logits[:, low:high].permute(1, 2, 0)
    pixels.index_fill_(0, void.nonzero()[:, 0], 0)
    used[: layout.reach] = 0
    used[len(used) - layout.reach :] = 0


def _unscore(dz: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of the logits from that of their scores, rstd (dz - mean(dz) - z mean(dz z)).

    The means of dz and z are 0 but for rounding, which a large common offset of the logits would magnify.
    """
    mean = z.mv(z.new_full(z.shape[1:], 1 / z.shape[1]))[:, None]
    projected = torch.ops.aten.native_layer_norm_backward(
        dz, z, [z.shape[1]], mean, torch.ones_like(mean), None, None, [True, False, False]
    )[0]
    return projected.mul_(rstd[:, None])
