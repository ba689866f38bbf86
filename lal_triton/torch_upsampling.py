"""The torch backend where the labels are finer than the logits: no upsampled logits beyond one band of rows.

A merged pixel is a mixture of few low-resolution ones, f(p) = sum_i A(p, i) x(i), with A = M diag(rstd) B for the
masked window M and the bilinear weights B. A does not depend on the class: it is the merge of rows of B, as the
full-resolution merge is one of rows of scores. What has a class dimension is a batch of small matrix products between
a tile's pixels and its frame of low-resolution ones. The variance of an interpolated pixel, and its gradient, come from
the inner products of neighbouring low-resolution ones (their Gram planes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton.bilinear import TILE, Axis, Source, read
from lal_triton.labels import VOID
from lal_triton.options import LocalLoss
from lal_triton.torch_cost import cost_gradient, local_cost
from lal_triton.torch_pooling import Derivative, Results
from lal_triton.torch_windows import Layout, Taps

_BAND_ELEMENTS = 2**20  # of a band's upsampled logits


def sweep(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    options: LocalLoss,
    derivative: Derivative | None,
    out: Results,
) -> None:
    """Fills `out`."""
    images, num_classes, low_height, low_width = logits.shape
    height, width = labels.shape[1:]
    rows, reach = options.kernel_height // 2, options.kernel_width // 2
    vertical = Axis.of(low_height, height, options.align_corners, rows, logits.device)
    horizontal = Axis.of(low_width, width, options.align_corners, reach, logits.device)
    pitch = _whole_tiles(width + reach)
    row_elements = pitch * (num_classes + len(options.window) + vertical.span * horizontal.span)
    band_rows = min(TILE * max(1, _BAND_ELEMENTS // (TILE * row_elements)), _whole_tiles(height))
    layout = Layout(height + -height % band_rows, width, pitch, rows, reach, band_rows)  # the last band is whole, too
    flat_labels = layout.flatten(labels, VOID)
    flat_omega = layout.flatten(derivative.omega, 0) if derivative else None
    taps = Taps(flat_labels, layout, options, band_rows + 2 * rows, out.losses)
    along_rows, along_columns = _Matrices(vertical, out.losses), _Matrices(horizontal, out.losses, pitch)
    bands = [_Band(along_rows, along_columns, layout, first) for first in range(0, height, band_rows)]
    for image in range(images):
        source = read(logits[image], options.normalize)
        total = _Total(source, derivative) if derivative else None
        for band in bands:
            table, rstd = band.table(source, options)
            taps.select(image, layout.pixels(band.first - rows, band.first + band_rows + rows))
            own = layout.pixels(band.first, band.first + band_rows)
            xi = taps.xi[band.inside, None]
            mixture = band.to_tiles(taps.merge(table, band.inside).div_(xi))
            frames = source.logits.flatten(0, 1)[band.frames]
            f = torch.bmm(mixture, frames).flatten(0, 1)
            tile_labels = band.to_tiles(flat_labels[image, own])
            cost = local_cost(f, tile_labels.flatten(), weight, options)
            if source.bad is not None:
                holds = (mixture != 0).to(f.dtype)
                spoiled = torch.bmm(holds, source.bad.flatten()[band.frames][..., None]) > 0
                spoiled &= (tile_labels != VOID)[..., None]
                cost.losses.masked_fill_(spoiled.flatten(), torch.nan)
                if total is not None:
                    total.spoil(band, torch.bmm(holds.transpose(1, 2), spoiled.to(f.dtype)))
            last = min(band.first + band_rows, height)
            out.losses[image, band.first : last] = layout.rows_of(band.to_pixels(cost.losses))[: last - band.first]
            if total is None or derivative is None or flat_omega is None:
                continue
            coefficient, band_scale = derivative(cost.losses, band.to_tiles(flat_omega[image, own]).flatten())
            cost_gradient(cost, coefficient, weight, out=f)
            g = f.unflatten(0, mixture.shape[:2])
            total.rescale(band, band_scale)
            total.add_gradient(band, torch.bmm(mixture.transpose(1, 2), g))
            if options.normalize:
                slopes = torch.bmm(g, frames.transpose(1, 2)).masked_fill_(
                    mixture == 0, 0
                )  # large x can overflow there
                slopes = band.to_pixels(slopes.flatten(0, 1)).div_(xi)
                margin = layout.lead + band.inside.start
                slopes = taps.merge_transposed(F.pad(slopes, (0, 0, margin, margin)), slice(0, len(taps.xi)))
                slope = (slopes * layout.inside(table)).sum(1)  # by log(rstd)
                slope = slope.double() * rstd.double().square() * (-0.5 / num_classes)
                total.add_variance_gradient(band, layout.rows_of(slope))
        if total is not None:
            out.gradient[image], out.scale[image] = total.finish(options.normalize)


def _whole_tiles(size: int) -> int:
    return size + -size % TILE


class _Matrices:
    """An axis as what all bands take their parts of; zeros go beyond the image, up to `length` pixels."""

    def __init__(self, axis: Axis, like: Tensor, length: int = 0) -> None:
        self.axis = axis
        length = max(length, axis.high)
        self.weights = F.pad(axis.weights(axis.span), (0, 0, 0, length - axis.high)).to(like.dtype)
        self.squares, self.products = axis.square_weights()
        self.frames = F.pad(axis.frames(), (0, 0, 0, _whole_tiles(length) // TILE - len(axis.base)))


class _Band:
    """Rows [first, first + band_rows) of the pixels, with a halo of a window above and below."""

    def __init__(self, rows: _Matrices, columns: _Matrices, layout: Layout, first: int) -> None:
        self.layout, self.first, self.columns = layout, first, columns
        halo, band_rows = layout.rows, layout.band_rows
        self.inside = slice(halo * layout.pitch, (halo + band_rows) * layout.pitch)
        low, high = max(first - halo, 0), min(first + band_rows + halo, rows.axis.high)
        beyond = (0, 0, low - (first - halo), first + band_rows + halo - high)  # the rows outside the image
        self.weights = F.pad(rows.weights[low:high], beyond)

        tiles = slice(first // TILE, (first + band_rows) // TILE)
        frames = rows.frames[tiles]
        self.low_rows = slice(int(frames.min()), int(frames.max()) + 1)
        self.squares = F.pad(rows.squares[low:high, self.low_rows], beyond)
        self.products = F.pad(rows.products[low:high, self.low_rows], beyond)

        frames = F.pad(frames, (0, 0, 0, band_rows // TILE - len(frames)), value=self.low_rows.start)
        width = columns.axis.low
        self.frames = (frames[:, None, :, None] * width + columns.frames[None, :, None, :]).flatten(2).flatten(0, 1)
        local = self.frames.flatten() - self.low_rows.start * width
        self.order = local.argsort(stable=True)
        counts = local.bincount(minlength=(self.low_rows.stop - self.low_rows.start) * width)
        self.offsets = counts.cumsum(0) - counts

    def table(self, source: Source, options: LocalLoss) -> tuple[Tensor, Tensor]:
        """The rows rstd(q) B(q, .) of the band and its halo with the layout's margins, and rstd."""
        weights, columns = self.weights, self.columns
        rstd = weights.new_ones(len(weights), self.layout.pitch)
        if options.normalize:
            own, right, below, diagonal = source.gram[:, self.low_rows]
            same_column = self.squares @ own + 2 * (self.products @ below)
            next_column = self.squares @ right + self.products @ diagonal
            norm = same_column @ columns.squares.T + 2 * (next_column @ columns.products.T)
            variance = (norm / source.logits.shape[-1]).clamp_(min=0)
            rstd[:, : self.layout.width] = variance.add_(options.eps).rsqrt_()
        across = rstd[:, :, None] * columns.weights
        rows = weights[:, None, :, None] * across[:, :, None, :]
        reach = self.layout.reach
        return F.pad(rows.flatten(2).flatten(0, 1), (0, 0, reach, reach)), rstd.flatten()

    def to_tiles(self, pixels: Tensor) -> Tensor:
        """From the flat order to `[tiles, TILE^2, ...]`."""
        split = pixels.unflatten(0, (-1, TILE, self.layout.pitch // TILE, TILE))
        return split.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def to_pixels(self, tiled: Tensor) -> Tensor:
        """From the order of tiles, all flat, to that of the layout."""
        split = tiled.unflatten(0, (-1, self.layout.pitch // TILE, TILE, TILE))
        return split.transpose(1, 2).flatten(0, 3)


class _Total:
    """The gradient of an image's logits, summed over its bands at a scale for each row of it."""

    def __init__(self, source: Source, derivative: Derivative) -> None:
        self.source, self.derivative = source, derivative
        self.gradient = torch.zeros_like(source.logits)
        self.gram = torch.zeros_like(source.gram)
        self.scale = source.logits.new_zeros(len(source.logits))
        self.spoiled = torch.zeros_like(source.gram[0], dtype=torch.bool)

    def rescale(self, band: _Band, scale: Tensor) -> None:
        """Makes the scale of the band's rows the largest so far; `factor` brings the band itself to it."""
        rows = band.low_rows
        old, new = self.scale[rows], torch.maximum(self.scale[rows], scale)
        self.factor = self.derivative.rescale(scale, new)
        if self.derivative.p != 1:
            factor = self.derivative.rescale(old, new)
            self.gradient[rows] *= factor[:, None, None]
            self.gram[:, rows] *= factor[:, None]
        self.scale[rows] = new

    def add_gradient(self, band: _Band, parts: Tensor) -> None:
        """Adds what each tile has for its frame, `[tiles, frame, C]`."""
        self.gradient[band.low_rows].addcmul_(self._fold(band, parts), self.factor[:, None, None])

    def spoil(self, band: _Band, parts: Tensor) -> None:
        """Marks the pixels whose gradient is not finite, those with a positive part in `[tiles, frame, 1]`."""
        self.spoiled[band.low_rows] |= self._fold(band, parts)[..., 0] > 0

    def _fold(self, band: _Band, parts: Tensor) -> Tensor:
        folded = F.embedding_bag(band.order, parts.flatten(0, 1), band.offsets, mode="sum")
        return folded.unflatten(0, (-1, self.gradient.shape[1]))

    def add_variance_gradient(self, band: _Band, slope: Tensor) -> None:
        """Adds the gradient by the squared norms of the band's pixels, carried to the Gram planes."""
        same_column = slope @ band.columns.squares
        next_column = 2 * (slope @ band.columns.products)
        own, right = band.squares.T @ same_column, band.squares.T @ next_column
        below, diagonal = 2 * (band.products.T @ same_column), band.products.T @ next_column
        self.gram[:, band.low_rows] += torch.stack([own, right, below, diagonal]) * self.factor[:, None]

    def finish(self, normalize: bool) -> tuple[Tensor, Tensor]:
        """The gradient `[C, h, w]` and the one scale that it now has."""
        largest = self.scale.amax()
        factor = self.derivative.rescale(self.scale, largest)
        gradient = self.gradient.mul_(factor[:, None, None])
        if normalize:
            gradient += _neighbours(self.source.logits, self.gram * factor[:, None])
        if self.source.bad is not None:
            gradient[self.spoiled] = torch.nan
        return gradient.permute(2, 0, 1), largest


def _neighbours(x: Tensor, gram: Tensor) -> Tensor:
    """The gradient of `[h, w, C]` logits from that of their Gram planes: a sum over the neighbours of each pixel.

    Each neighbour is taken in units of a power of two: the gradient of Gram planes is small as its logits are large.
    """
    height, width, _ = x.shape
    own, right, below, diagonal = F.pad(gram, (1, 0, 1, 0))
    here, before = slice(1, None), slice(None, -1)
    taps = {
        (0, 0): 2 * own[here, here],
        (0, 1): right[here, here],
        (0, -1): right[here, before],
        (1, 0): below[here, here],
        (-1, 0): below[before, here],
        (1, 1): diagonal[here, here],
        (-1, -1): diagonal[before, before],
        (1, -1): diagonal[here, before],
        (-1, 1): diagonal[before, here],
    }
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    # beyond the image the weights are 0
    indices = [(row + i).clamp(0, height - 1) * width + (column + j).clamp(0, width - 1) for i, j in taps]
    bags, weights = (torch.stack(planes, -1).flatten(0, 1) for planes in (indices, list(taps.values())))
    exponents = torch.frexp(x.abs().amax(-1)).exponent.flatten()
    weights = torch.ldexp(weights, exponents[bags]).to(x.dtype)
    rows = torch.ldexp(x.flatten(0, 1), -exponents[:, None])
    return F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights).view_as(x)
