"""Memory of the sweeps: zeros for the rows of a thread, and huge pages for gradients."""

import ctypes
import itertools
import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch

LARGE_BYTES = 2**22
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
libc = ctypes.CDLL(None) if ADVICE is not None else None


def advise_huge(tensor: torch.Tensor) -> None:
    """Asks Linux to map a new tensor's memory in huge pages, as numpy does; where it has none, nothing changes.

    The system maps a page of 2 MB in the time of a few of 4 KB.
    """
    size = tensor.numel() * tensor.itemsize
    if libc is None or size < LARGE_BYTES:
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + size - begin
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ADVICE)


def zeros(dtype: torch.dtype, *shapes: Sequence[int]) -> list[np.ndarray]:
    """An array of each shape, in one piece from torch's allocator, whose profiler counts it.

    torch would fill it in parallel, by threads that go on spinning.
    """
    sizes = [math.prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes), dtype=dtype).numpy()
    memory.fill(0)
    ends = itertools.accumulate(sizes)
    return [memory[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]
