"""The masked window of the torch backend: rows of a table, one to a pixel, summed with the weights mu(p, q) w(q - p).

Pixels are one flat sequence: each row of the image, then at least as many void pixels as a window reaches sideways. A
window's neighbours are constant offsets in that sequence, and none crosses a border unseen. The merge of a pixel is
then a weighted sum of rows of a table, which is what embedding_bag computes: one pass, where shifting and adding makes
k^2. Most pixels of a label map see one label only and share their weights; the others are worked out.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton.options import LocalLoss


class Layout(NamedTuple):
    """Planes `[N, H, W]` as flat sequences: rows `pitch` apart, void rows above and below, a margin at both ends."""

    height: int  # at least H
    width: int
    pitch: int  # at least width + reach
    rows: int  # Kh // 2
    reach: int  # Kw // 2
    band_rows: int

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
        below = above + self.height - plane.shape[1]
        padded = F.pad(plane, (0, self.pitch - self.width, above, below), value=fill).flatten(1)
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


class Taps:
    """The weights mu(p, q) w(q - p) of a band's pixels, `[P, Kh Kw]`, and xi(p); rows of one label keep w itself."""

    def __init__(self, flat_labels: Tensor, layout: Layout, options: LocalLoss, rows: int, like: Tensor) -> None:
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

    def merge(self, table: Tensor, pixels: slice) -> Tensor:
        """sum_q mu(p, q) w(q - p) table(q) for some of the band's pixels p; the table begins a `lead` before them."""
        return self._sum(table, self.forward_weights[pixels])

    def merge_transposed(self, table: Tensor, pixels: slice) -> Tensor:
        """The same with w(p - q)."""
        return self._sum(table, self.backward_weights[pixels])

    def _sum(self, table: Tensor, weights: Tensor) -> Tensor:
        if len(self.window) == 1:
            return table * self.window
        return F.embedding_bag(self.indices[: len(weights)], table, mode="sum", per_sample_weights=weights)


def _one_label(flat_labels: Tensor, layout: Layout) -> Tensor:
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
