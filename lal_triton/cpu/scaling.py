"""A gradient times a factor for each of its rows, which the backward knows."""

import torch
from torch import Tensor

from lal_triton.cpu import threads
from lal_triton.cpu.compiling import compiled

SCALED_ELEMENTS = 2**18  # that one call scales


def scale_rows(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient `[N, C, h, w]` times a factor for each row `[N, h]`."""
    if dtype != gradient.dtype or not gradient.is_contiguous():
        return torch.where(gradient == 0, 0, gradient * factor[:, None, :, None]).to(dtype)
    out = torch.empty_like(gradient)
    planes, factors, scaled = gradient.detach().numpy(), factor.detach().contiguous().numpy(), out.numpy()
    parts = max(1, gradient[0].numel() // SCALED_ELEMENTS)
    edges = [len(planes[0]) * part // parts for part in range(parts + 1)]

    def run(job: tuple[int, int]) -> None:
        image, part = job
        classes = slice(edges[part], edges[part + 1])
        scale_planes(planes[image, classes], factors[image], scaled[image, classes])

    threads.run(run, [(image, part) for image in range(len(planes)) for part in range(parts)])
    return out


@compiled
def scale_planes(gradient, factor, out):  # type: ignore[no-untyped-def]
    """`[C, h, w]` contiguous planes times `[h]`; 0 stays 0, also where the factor is NaN: void has no gradient."""
    zero = gradient.dtype.type(0)
    for c in range(len(gradient)):
        for y in range(len(factor)):
            row, line, by = gradient[c, y], out[c, y], factor[y]
            for i in range(len(line)):
                line[i] = row[i] * by if row[i] != zero else zero
