"""What is measured: every loss of the comparison at every kernel size, and again at other image sizes.

With ratios of upsampling, the logits are smaller than the labels: our losses take them as they are, the peers after
F.interpolate. The sweep over image sizes is then one of memory.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch

NOT_QUICK = "left out by --quick"
ON_GPU = "measured on a GPU only"


class Settings(NamedTuple):
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    backends: tuple[str, ...]  # of our loss
    kernel_sizes: tuple[int, ...]
    batch_size: int
    num_classes: tuple[int, ...]
    size: int  # side of the square crop at which all kernel sizes are compared
    sweep: tuple[int, ...]  # further sides, at one kernel size
    quick: bool
    ratios: tuple[int, ...] = ()  # of the labels' side to that of the logits; none: the comparison at full resolution
    memory_limit: int | None = None  # bytes; a peer that needs more is not run
    peers: bool = False  # other libraries' losses, too

    @property
    def sweep_kernel_size(self) -> int:
        return 5 if 5 in self.kernel_sizes else self.kernel_sizes[0]


class Case(NamedTuple):
    name: str  # a key of `loss_label`'s
    backend: str | None  # of our losses, else None
    compiled: bool
    kernel_size: int | None
    size: int  # of the labels
    dtype: torch.dtype
    batch_size: int
    num_classes: int
    skipped: str | None = None
    upsampling: int = 1
    memory_sweep: bool = False  # one repeat, as memory is what matters
    beside: int = 0  # busy processes
    one_thread: bool = False  # of torch and of ours; else as many as torch uses

    @property
    def label(self) -> str:
        return loss_label(self.name, self.backend, self.compiled)

    @property
    def full_bytes(self) -> int:
        """Of logits at the resolution of the labels."""
        return self.batch_size * self.num_classes * self.size**2 * self.dtype.itemsize


def loss_label(name: str, backend: str | None, compiled: bool) -> str:
    """How tables and plots call a loss."""
    known = {
        "copy": "copy of the logits",
        "cross_entropy": "F.cross_entropy",
        "focal": "focal by F.cross_entropy",
        "own_cross_entropy": f"lal_triton CE ({backend})",
        "own_focal": f"lal_triton focal ({backend})",
        "lal": f"lal_triton LAL ({backend})",
        "shift_add": "LAL by shift-and-add",
        "unfold": "LAL by F.unfold",
        "monai_focal": "MONAI focal",
        "kornia_focal": "kornia focal",
        "smp_focal": "smp focal, sigmoid per class",
        "smp_cross_entropy": "smp CE, mean with void",
        "liger_cross_entropy": "Liger CE on [N H W, C]",
        "flat_cross_entropy": "CE on [N H W, C]",
    }
    return known[name] + (", compiled" if compiled else "")


def plan(settings: Settings) -> list[Case]:
    return list(plan_upsampled(settings)) if settings.ratios else plan_full_resolution(settings)


def plan_full_resolution(settings: Settings) -> list[Case]:
    """In the order of running: what takes minutes to compile comes last."""
    cases, slow = [], []
    not_quick = NOT_QUICK if settings.quick else None
    for dtype, num_classes in product(settings.dtypes, settings.num_classes):
        for size in dict.fromkeys((settings.size, *settings.sweep)):
            at_headline = size == settings.size
            at = (size, dtype, settings.batch_size, num_classes)
            cases.append(Case("copy", None, False, None, *at))
            cases.append(Case("cross_entropy", None, False, None, *at))
            cases.append(Case("cross_entropy", None, True, None, *at, None if at_headline else not_quick))
            cases += [Case("own_cross_entropy", backend, False, None, *at) for backend in settings.backends]
            if at_headline and settings.peers:
                cases += [Case("own_focal", backend, False, None, *at) for backend in settings.backends]
                cases += other_libraries(settings, cases[-1])
            for k in settings.kernel_sizes if at_headline else (settings.sweep_kernel_size,):
                cases += [Case("lal", backend, False, k, *at) for backend in settings.backends]
                cases += [Case(name, None, False, k, *at) for name in ("shift_add", "unfold")]
                if at_headline:
                    slow.append(Case("shift_add", None, True, k, *at, not_quick))
    if settings.device.type == "cpu":
        threads, again = torch.get_num_threads(), [case for case in cases if _runs_again(case, settings)]
        cases += [case._replace(one_thread=True) for case in again if threads > 1]
        cases += [case._replace(beside=threads) for case in again]
    return cases + slow


def other_libraries(settings: Settings, case: Case) -> list[Case]:
    """Their losses at the sizes of `case`, after the focal loss that PyTorch makes of its cross-entropy."""
    case = case._replace(backend=None, compiled=False, kernel_size=None)
    on_gpu = None if settings.device.type == "cuda" else ON_GPU
    names = ("focal", "monai_focal", "kornia_focal", "smp_focal", "smp_cross_entropy")
    return [
        *(case._replace(name=name) for name in names),
        case._replace(name="liger_cross_entropy", skipped=on_gpu),
        case._replace(name="flat_cross_entropy", compiled=True, skipped=on_gpu),
    ]


def _runs_again(case: Case, settings: Settings) -> bool:
    """On one thread and beside others: cross-entropy and our losses at the headline size, at one kernel size."""
    named = case.name in ("cross_entropy", "own_cross_entropy", "lal") and not case.compiled
    return named and case.size == settings.size and case.kernel_size in (None, settings.sweep_kernel_size)


def plan_upsampled(settings: Settings) -> Iterator[Case]:
    """Times at `settings.size`, then memory against the size for one image with the most classes."""
    for dtype in settings.dtypes:
        for ratio, num_classes in product(settings.ratios, settings.num_classes):
            at = (settings.size, dtype, settings.batch_size, num_classes)
            yield from upsampled_losses(
                settings, settings.kernel_sizes, Case("copy", None, False, None, *at, None, ratio)
            )
        for size in settings.sweep:
            at = (size, dtype, 1, max(settings.num_classes))
            case = Case("copy", None, False, None, *at, None, settings.ratios[0], memory_sweep=True)
            yield from upsampled_losses(settings, (settings.sweep_kernel_size,), case)


def upsampled_losses(settings: Settings, kernel_sizes: tuple[int, ...], case: Case) -> Iterator[Case]:
    """Every loss at the sizes of `case`."""
    yield case
    yield case._replace(name="cross_entropy")
    yield case._replace(
        name="cross_entropy", compiled=True, skipped=NOT_QUICK if settings.quick and case.memory_sweep else None
    )
    for backend in settings.backends:
        for name in ("own_cross_entropy", "own_focal"):
            yield case._replace(name=name, backend=backend)
        for k in kernel_sizes:
            yield case._replace(name="lal", backend=backend, kernel_size=k)
    if settings.peers and not case.memory_sweep:
        yield from other_libraries(settings, case)
    for k in kernel_sizes:
        slow = (
            settings.quick
            and not case.memory_sweep
            and (k, case.num_classes) != (min(kernel_sizes), min(settings.num_classes))
        )
        yield case._replace(name="unfold", kernel_size=k, skipped=NOT_QUICK if slow else None)
