"""As many threads as torch uses, for functions that release the GIL."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads


def run(job: Callable[[Any], None], items: Sequence[Any], most: int | None = None) -> None:
    """job(item) for all of the items, in any order, on `most` threads; the caller's thread is one of them."""
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
