"""Huge pages for large tensors, as numpy asks for them: the system maps one of 2 MB in the time of a few of 4 KB."""

import ctypes
import mmap

import torch

LARGE_BYTES = 2**22
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
libc = ctypes.CDLL(None) if ADVICE is not None else None


def advise_huge(tensor: torch.Tensor) -> None:
    """Asks Linux to map a new tensor's memory in huge pages; where it has none, nothing changes."""
    size = tensor.numel() * tensor.itemsize
    if libc is None or size < LARGE_BYTES:
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + size - begin
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ADVICE)
