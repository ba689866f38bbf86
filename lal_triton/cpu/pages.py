"""Huge pages for large tensors, as numpy asks for them: the system maps one of 2 MB in the time of a few of 4 KB."""

import ctypes
import mmap

import torch

LARGE_BYTES = 2**22


def advise_huge(tensor: torch.Tensor) -> None:
    """Asks Linux to map a new tensor's memory in huge pages; where it has none, nothing changes."""
    advice, size = getattr(mmap, "MADV_HUGEPAGE", None), tensor.numel() * tensor.itemsize
    if advice is None or size < LARGE_BYTES:
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + size - begin
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)
