"""Rows of the labels in bands of about the same height, and the threads that take them.

Bands depend on sizes alone, so that results have the same bits for any number of threads.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

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


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads


def run(job: Callable[[Any], None], items: Sequence[Any], most: int | None = None) -> None:
    """job(item) for all of the items, in any order, on as many threads as torch uses, or `most`.

    The jobs release the GIL. The caller's thread is one of the threads.
    """
    others = min(torch.get_num_threads(), len(items), len(items) if most is None else most) - 1
    numbers = itertools.count()

    def work() -> None:
        while (number := next(numbers)) < len(items):
            job(items[number])

    if others > 0 and others not in _pools:
        _pools[others] = ThreadPoolExecutor(others, thread_name_prefix="lal_triton")
    futures = [_pools[others].submit(work) for _ in range(others)]
    try:
        work()
    finally:
        numbers = itertools.count(len(items))  # after an error or Ctrl-C nothing else is begun
        for future in futures:
            future.result()
