"""What the peers need, so that one that does not fit is left out before it exhausts the machine."""

import os

import torch

from lal_triton.benchmarks.cases import Case

GIB = 2**30


def available_bytes(device: torch.device) -> int | None:
    """None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reason_to_skip(case: Case, limit: int | None) -> str | None:
    """Why a case is left out, None where it runs."""
    needed = bytes_needed(case)
    if case.skipped is None and limit is not None and needed > limit:
        return f"does not fit: needs {needed / GIB:.1f} GiB of {limit / GIB:.1f} GiB"
    return case.skipped


def bytes_needed(case: Case) -> int:
    """An upper estimate of a peer's peak, made for eager float32; our own losses are always tried."""
    classes, taps = case.num_classes, (case.kernel_size or 1) ** 2
    floats_per_pixel = {
        "cross_entropy": 3 * classes,
        "focal": 3 * classes + 6,
        "shift_add": 6 * classes + 1.5 * taps,
        "unfold": 6 * classes + (2 * classes + 2) * taps,
        "monai_focal": 9 * classes + 2,
        "kornia_focal": 3 * classes + 4,
        "smp_focal": 9 * classes,
        "smp_cross_entropy": 3 * classes + 1,
        "liger_cross_entropy": 4 * classes,
        "flat_cross_entropy": 3 * classes + 1,
    }
    return case.batch_size * case.size**2 * int(4 * floats_per_pixel.get(case.name, 0))
