"""The loss in torch operations and bounded memory, with a hand-derived gradient: for CPUs, and float64 anywhere.

An image is walked in bands of rows. Inside a band the classes are the last dimension and the pixels one flat sequence:
each row of the image, then as many void pixels as a window reaches sideways. A window's neighbours are constant offsets
in that sequence, and none crosses a border unseen. The merge of a pixel is then a weighted sum of rows of a table,
which is what embedding_bag computes: one pass, where shifting and adding makes k^2. Most pixels of a label map see one
label only and share their weights; the others are worked out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton.labels import INVALID, VOID, centre_mask
from lal_triton.options import LocalLoss, loss_dtype

_BAND_ELEMENTS = 3 * 2**18  # of a band's logits and window weights: a core's level-2 cache, and a bound on the memory
_MIN_BAND_ROWS = 32  # each band computes its halo anew

# The derivative of the pooled loss by each per-pixel loss of a band, from (losses, image, rows of the padded image).
Coefficient = Callable[[Tensor, int, slice], Tensor]

# MKL chooses each function's kernel at its first call, and a first call from several threads at once may run one of low
# precision (pytorch/pytorch#188792): let one element go first.
for _dtype in (torch.float32, torch.float64):
    for _function in (torch.exp, torch.log, torch.expm1):
        _function(torch.ones(1, dtype=_dtype))


def local_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss) -> Tensor:
    """The map of per-pixel losses `[N, H, W]`, as `reference.local_loss`."""
    return _sweep(logits, labels, weight, options)[0]


def local_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, options: LocalLoss
) -> Tensor:
    """The gradient of the logits from any gradient of the map; the merge is computed again."""
    planes = _Layout.of(logits, options).flatten(gradient * centre_mask(labels, options.stride), 0)
    return _sweep(logits, labels, weight, options, lambda losses, image, pixels: planes[image, pixels])[1]


def local_loss_and_gradient(
    logits: Tensor, labels: Tensor, weight: Tensor | None, omega: Tensor, p: float, options: LocalLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """The map, sum_p omega(p) (L(p) / scale)^(p - 1) dL(p)/dlogits, and the scale of each row, `[N, H]`.

    The scale is the largest loss of the row's band, so that no power overflows.
    """
    layout = _Layout.of(logits, options)
    planes = layout.flatten(omega, 0)
    scales: list[Tensor] = []

    def coefficient(losses: Tensor, image: int, pixels: slice) -> Tensor:
        omega = planes[image, pixels]
        if p == 1:
            scales.append(losses.new_ones(()))
            return omega
        counted = torch.where(omega > 0, losses, 0)
        largest = counted.amax()
        scales.append(torch.where(largest == 0, 1, largest))
        return omega * (counted / scales[-1]) ** (p - 1)

    losses, gradient = _sweep(logits, labels, weight, options, coefficient)
    scale = torch.stack(scales).view(len(logits), -1).repeat_interleave(layout.band_rows, 1)
    return losses, gradient, scale[:, : layout.height]


class _Layout(NamedTuple):
    """Planes `[N, H, W]` as flat sequences: rows W + reach apart, void rows above and below, a margin at both ends."""

    height: int
    width: int
    rows: int  # Kh // 2
    reach: int  # Kw // 2
    band_rows: int

    @classmethod
    def of(cls, logits: Tensor, options: LocalLoss) -> "_Layout":
        _, num_classes, height, width = logits.shape
        rows, reach = options.kernel_height // 2, options.kernel_width // 2
        band_rows = max(_MIN_BAND_ROWS, _BAND_ELEMENTS // ((num_classes + len(options.window)) * (width + reach)))
        return cls(height, width, rows, reach, min(band_rows, height))

    @property
    def pitch(self) -> int:
        return self.width + self.reach

    @property
    def lead(self) -> int:
        """Distance from the first pixel of a window to its centre."""
        return self.rows * self.pitch + self.reach

    def pixels(self, first: int, last: int) -> slice:
        """The flat pixels of rows [first, last); two windows' rows beyond the image are there too."""
        above = 2 * self.rows
        return slice(self.reach + (first + above) * self.pitch, self.reach + (last + above) * self.pitch)

    def flatten(self, plane: Tensor, fill: float) -> Tensor:
        above = 2 * self.rows
        padded = F.pad(plane, (0, self.reach, above, above), value=fill).flatten(1)
        return F.pad(padded, (self.reach, self.reach), value=fill)

    def table_length(self, rows: int) -> int:
        return rows * self.pitch + 2 * self.reach

    def inside(self, table: Tensor) -> Tensor:
        return table[self.reach : len(table) - self.reach]

    def rows_of(self, flat: Tensor) -> Tensor:
        """The pixels of whole rows as `[rows, W, ...]`."""
        return flat.unflatten(0, (-1, self.pitch))[:, : self.width]

    def gaps_of(self, flat: Tensor) -> Tensor:
        return flat.unflatten(0, (-1, self.pitch))[:, self.width :]


def _sweep(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    options: LocalLoss,
    coefficient: Coefficient | None = None,
) -> tuple[Tensor, Tensor]:
    """The map of losses and the gradient of sum_p coefficient(p) L(p), which is empty without a coefficient."""
    images, num_classes, height, _width = logits.shape
    layout = _Layout.of(logits, options)
    flat_labels = layout.flatten(labels, VOID)
    losses = torch.empty(labels.shape, dtype=loss_dtype(logits), device=logits.device)
    gradient = torch.empty_like(logits) if coefficient else logits.new_empty(0)
    class_weight = losses.new_ones(num_classes) if weight is None else weight.to(losses.dtype)

    halo = layout.rows if coefficient else 0
    scores = losses.new_zeros(layout.table_length(layout.band_rows + 2 * (halo + layout.rows)), num_classes)
    slopes = losses.new_zeros(layout.table_length(layout.band_rows + 2 * halo), num_classes)
    taps = _Taps(flat_labels, layout, options, layout.band_rows + 2 * halo, losses)
    for image in range(images):
        for first in range(0, height, layout.band_rows):
            last = min(first + layout.band_rows, height)
            pixels = layout.pixels(first - halo, last + halo)
            inside = slice(halo * layout.pitch, (halo + last - first) * layout.pitch)
            own = flat_labels[image, pixels]

            z, rstd = _score(
                logits[image], first - halo - layout.rows, last + halo + layout.rows, scores, layout, options
            )
            taps.select(image, pixels)
            cost = _cost(taps.merge(z), taps.xi, own, class_weight, options)
            losses[image, first:last] = layout.rows_of(cost.losses[inside])
            if coefficient:
                g = slopes[: layout.table_length(last - first + 2 * halo)]
                _cost_gradient(cost, coefficient(cost.losses, image, pixels) / taps.xi, class_weight, layout.inside(g))
                layout.gaps_of(layout.inside(g)).zero_()  # 0 x NaN would cross from one row's end to the next row
                dz = taps.merge_transposed(g, inside)
                own_pixels = slice(layout.lead + inside.start, layout.lead + inside.stop)
                if options.normalize:
                    dz = _unscore(dz, z[own_pixels], rstd[own_pixels])
                gradient[image, :, first:last] = layout.rows_of(dz).permute(2, 0, 1)
    losses.masked_fill_(labels == INVALID, torch.nan)
    return losses.masked_fill_(~centre_mask(labels, options.stride), 0), gradient


class _Taps:
    """The weights mu(p, q) w(q - p) of a band's pixels, `[P, Kh Kw]`, and xi(p); rows of one label keep w itself."""

    def __init__(self, flat_labels: Tensor, layout: _Layout, options: LocalLoss, rows: int, like: Tensor) -> None:
        self.labels, self.lead, self.by_weight = flat_labels, layout.lead, options.average == "weight"
        self.uniform = _one_label(flat_labels, layout)
        self.window = like.new_tensor(options.window)
        mirrored = self.window.flip(0)
        self.offsets = torch.tensor(
            [i * layout.pitch + j for i in range(options.kernel_height) for j in range(options.kernel_width)],
            device=like.device,
        )
        pixels = torch.arange(rows * layout.pitch, device=like.device)
        self.indices = (pixels[:, None] + self.offsets).int()
        self.forward_weights = self.window.repeat(len(pixels), 1)
        self.backward_weights = self.forward_weights
        self.buffers = [(self.forward_weights, self.window)]
        if not torch.equal(self.window, mirrored):
            self.backward_weights = mirrored.repeat(len(pixels), 1)
            self.buffers.append((self.backward_weights, mirrored))
        self.mixed = pixels[:0]

    def select(self, image: int, pixels: slice) -> None:
        """Sets the weights and xi to those of a band."""
        self._set_mixed(torch.ones_like(self.mixed, dtype=torch.bool)[:, None])
        first = pixels.start - self.lead
        self.mixed = (~self.uniform[image, first : pixels.stop - self.lead]).nonzero()[:, 0]
        windows = self.labels[image][(first + self.mixed)[:, None] + self.offsets]
        same = windows == self.labels[image, pixels][self.mixed, None]
        self._set_mixed(same)
        counted = self.window if self.by_weight else torch.ones_like(self.window)
        self.xi = counted.sum().repeat(pixels.stop - pixels.start)
        self.xi[self.mixed] = same.to(counted.dtype).mv(counted)

    def _set_mixed(self, same: Tensor) -> None:
        for weights, window in self.buffers:
            weights.index_copy_(0, self.mixed, same * window)

    def merge(self, table: Tensor) -> Tensor:
        return self._sum(table, self.forward_weights[: len(self.xi)])

    def merge_transposed(self, table: Tensor, pixels: slice) -> Tensor:
        """sum_q mu(p, q) w(p - q) table(q) for some of the band's pixels p."""
        return self._sum(table, self.backward_weights[pixels])

    def _sum(self, table: Tensor, weights: Tensor) -> Tensor:
        if len(self.window) == 1:
            return table * self.window
        return F.embedding_bag(self.indices[: len(weights)], table, mode="sum", per_sample_weights=weights)


def _one_label(flat_labels: Tensor, layout: _Layout) -> Tensor:
    """Whether the window that starts at each flat pixel holds a single label."""
    windows = flat_labels.shape[1] - 2 * layout.lead
    across = flat_labels[:, 1:] == flat_labels[:, :-1]
    down = flat_labels[:, layout.pitch :] == flat_labels[:, : -layout.pitch]
    uniform = torch.ones_like(flat_labels[:, :windows], dtype=torch.bool)
    row = torch.ones_like(flat_labels[:, : flat_labels.shape[1] - 2 * layout.reach], dtype=torch.bool)
    for j in range(2 * layout.reach):
        row &= across[:, j : j + row.shape[1]]
    for i in range(2 * layout.rows + 1):
        uniform &= row[:, i * layout.pitch : i * layout.pitch + windows]
    for i in range(2 * layout.rows):
        uniform &= down[:, i * layout.pitch : i * layout.pitch + windows]
    return uniform


def _score(
    logits: Tensor, first: int, last: int, table: Tensor, layout: _Layout, options: LocalLoss
) -> tuple[Tensor, Tensor]:
    """Fills the table with the scores of rows [first, last), 0 beyond the image; returns its used part and 1 / std."""
    low, high = max(first, 0), min(last, layout.height)
    used = table[: layout.table_length(last - first)]
    rows = layout.rows_of(layout.inside(used))
    rows[: low - first] = 0
    rows[low - first : high - first] = logits[:, low:high].permute(1, 2, 0)
    rows[high - first :] = 0
    used[len(used) - layout.reach :] = 0
    if not options.normalize:
        return used, used[:, 0]
    mean = used.new_full(used.shape[1:], 1 / used.shape[1])
    used.sub_(used.mv(mean)[:, None])
    residual = used.mv(mean)  # of a mean that was rounded; it matters where a large offset hides a small variance
    rstd = used.square().mv(mean).sub_(residual.square_()).add_(options.eps).rsqrt_()
    return used.mul_(rstd[:, None]), rstd


def _unscore(dz: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of the logits from that of their scores, rstd (dz - mean(dz) - z mean(dz z)).

    The means of dz and z are 0 but for rounding, which a large common offset of the logits would magnify.
    """
    mean = z.mv(z.new_full(z.shape[1:], 1 / z.shape[1]))[:, None]
    projected = torch.ops.aten.native_layer_norm_backward(
        dz, z, [z.shape[1]], mean, torch.ones_like(mean), None, None, [True, False, False]
    )[0]
    return projected.mul_(rstd[:, None])


class _Cost(NamedTuple):
    losses: Tensor  # [P]
    exp: Tensor  # [P, C], softmax x total
    total: Tensor
    own: Tensor  # [P, 1], the label's class
    slope: Tensor  # dL/df = slope (softmax - onehot) + smoothing (sum(weight) softmax - weight)
    smoothing: float


def _cost(merged: Tensor, xi: Tensor, labels: Tensor, weight: Tensor, options: LocalLoss) -> _Cost:
    """Eq. 3-4 of merged logits that are still to be divided by xi; overwrites them."""
    num_classes = merged.shape[1]
    own = labels.clamp(min=0).long()[:, None]
    inverse = xi.reciprocal()[:, None]
    f = merged.mul_(inverse)
    f.sub_(f.gather(1, own))
    own_shifted = torch.zeros_like(xi)
    if not options.exp_is_bounded(num_classes):
        largest = f.amax(1)
        f.sub_(largest[:, None])
        own_shifted -= largest
    smoothing = options.label_smoothing / num_classes
    linear = f.mv(weight) if smoothing else None
    exp = f.exp_()
    total = exp.mv(torch.ones_like(weight))
    log_total = total.log()
    nll = (log_total - own_shifted).clamp_(min=0)
    if options.cost == "focal":
        miss = -torch.expm1(-nll)
        ratio = torch.where(miss > 0, nll / miss, 1)
        power = options.focal_alpha * miss**options.focal_gamma
        losses, slope = power * nll, power * (1 + options.focal_gamma * (1 - miss) * ratio)
    else:
        slope = (1 - options.label_smoothing) * weight[own[:, 0]]
        losses = slope * nll
        if linear is not None:
            losses = (losses + smoothing * (weight.sum() * log_total - linear)).clamp_(min=0)
    return _Cost(losses, exp, total, own, slope, smoothing)


def _cost_gradient(cost: _Cost, coefficient: Tensor, weight: Tensor, out: Tensor) -> None:
    slope = coefficient * cost.slope
    softmax = slope + coefficient * (cost.smoothing * weight.sum()) if cost.smoothing else slope
    torch.mul(cost.exp, (softmax / cost.total)[:, None], out=out)
    if cost.smoothing:
        out.addr_(coefficient, weight, alpha=-cost.smoothing)
    out.scatter_add_(1, cost.own, -slope[:, None])
