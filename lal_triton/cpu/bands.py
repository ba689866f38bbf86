"""Rows of the labels in bands of about the same height, each of which is work for one thread.

Bands depend on sizes alone, so that results have the same bits for any number of threads.
"""

from lal_triton.cpu.logits import Tables

BAND_ROWS = 64  # about: each band scores and merges its halo anew


class Bands:
    """Bands `[edges[i], edges[i + 1])` of a batch of label maps, and `jobs`, an image and a band each."""

    def __init__(self, images: int, height: int) -> None:
        self.count = max(1, round(height / BAND_ROWS))
        self.edges = [height * band // self.count for band in range(self.count + 1)]
        self.jobs = [(image, band) for image in range(images) for band in range(self.count)]

    def low_rows(self, band: int, tables: Tables) -> range:
        """The low-resolution rows that a band is interpolated from."""
        first, last = (int(tables.lower_row[row]) for row in (self.edges[band], self.edges[band + 1] - 1))
        return range(first, min(last + 2, tables.height))
