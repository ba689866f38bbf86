"""A gradient times a factor for each of its rows, which the backward knows."""

import torch
from torch import Tensor

from lal_triton.cpu.bands import run
from lal_triton.cpu.compiling import compiled
from lal_triton.cpu.vectors import lanes, load, store, where

SCALED_ELEMENTS = 2**18  # that one call scales


def scale_rows(gradient: Tensor, factor: Tensor, out: Tensor) -> None:
    """out = a gradient `[N, C, h, w]` times a factor for each row `[N, h]`, `out` laid out as the gradient is, or it.

    0 stays 0, also where the factor is NaN: void has no gradient.
    """
    if gradient.is_contiguous():
        lines, scaled = (x.detach().flatten(1, 2).numpy() for x in (gradient, out))
    elif gradient.is_contiguous(memory_format=torch.channels_last):
        lines, scaled = (x.detach().permute(0, 2, 3, 1).flatten(2).numpy() for x in (gradient, out))
    else:
        out.copy_(torch.where(gradient == 0, 0, gradient * factor[:, None, :, None]))
        return
    factors = factor.detach().contiguous().numpy()
    parts = max(1, gradient[0].numel() // SCALED_ELEMENTS)
    edges = [lines.shape[1] * part // parts for part in range(parts + 1)]

    def scale_part(job: tuple[int, int]) -> None:
        image, part = job
        own = slice(edges[part], edges[part + 1])
        scale_lines(lines[image, own], edges[part], factors[image], scaled[image, own])

    run(scale_part, [(image, part) for image in range(len(lines)) for part in range(parts)])


@compiled
def scale_lines(lines, first, factor, out):  # type: ignore[no-untyped-def]
    """Lines of a gradient, of which the first is number `first` of its image, times the factors of their rows.

    Vectors by name: LLVM takes number by number where `lines` and `out` may overlap.
    """
    zero, length = lines.dtype.type(0), lines.shape[1]
    whole = length - length % lanes(lines)
    for number in range(len(lines)):
        by = factor[(first + number) % len(factor)]
        for i in range(0, whole, lanes(lines)):
            slopes = load(lines, (number, i), lines)
            store(out, (number, i), where(slopes != zero, slopes * by, zero))
        for i in range(whole, length):
            slope = lines[number, i]
            out[number, i] = slope * by if slope != zero else zero
