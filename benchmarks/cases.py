"""What is measured: every loss of the comparison at every kernel size, and again at other image sizes."""

from typing import NamedTuple

import torch


class Settings(NamedTuple):
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    backends: tuple[str, ...]  # of our loss
    kernel_sizes: tuple[int, ...]
    batch_size: int
    num_classes: int
    size: int  # side of the square crop at which all kernel sizes are compared
    sweep: tuple[int, ...]  # further sides, at one kernel size
    quick: bool

    @property
    def sweep_kernel_size(self) -> int:
        return 5 if 5 in self.kernel_sizes else self.kernel_sizes[0]


class Case(NamedTuple):
    name: str  # "copy" | "cross_entropy" | "lal" | "shift_add" | "unfold"
    backend: str | None  # of our loss, else None
    compiled: bool
    kernel_size: int | None
    size: int
    dtype: torch.dtype
    skipped: str | None = None

    @property
    def label(self) -> str:
        return loss_label(self.name, self.backend, self.compiled)


def loss_label(name: str, backend: str | None, compiled: bool) -> str:
    """How tables and plots call a loss."""
    known = {
        "copy": "copy of the logits",
        "cross_entropy": "F.cross_entropy",
        "lal": f"lal_triton ({backend})",
        "shift_add": "LAL by shift-and-add",
        "unfold": "LAL by F.unfold",
    }
    return known[name] + (", compiled" if compiled else "")


def plan(settings: Settings) -> list[Case]:
    """In the order of running: what takes minutes to compile comes last."""
    cases, slow = [], []
    not_quick = "left out by --quick" if settings.quick else None
    for dtype in settings.dtypes:
        for size in dict.fromkeys((settings.size, *settings.sweep)):
            at_headline = size == settings.size
            cases.append(Case("copy", None, False, None, size, dtype))
            cases.append(Case("cross_entropy", None, False, None, size, dtype))
            cases.append(Case("cross_entropy", None, True, None, size, dtype, None if at_headline else not_quick))
            for k in settings.kernel_sizes if at_headline else (settings.sweep_kernel_size,):
                cases += [Case("lal", backend, False, k, size, dtype) for backend in settings.backends]
                cases += [Case(name, None, False, k, size, dtype) for name in ("shift_add", "unfold")]
                if at_headline:
                    slow.append(Case("shift_add", None, True, k, size, dtype, not_quick))
    return cases + slow
