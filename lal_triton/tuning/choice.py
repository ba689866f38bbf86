"""Which tuned configuration a step takes.

`evaluation` puts `tuned` among the sources of `kernels.configs`, so that importing a loss imports this: `search`, which
needs more, is imported when something is searched.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch
from torch._guards import detect_fake_mode

from lal_triton.kernels.configs import Config, Setting
from lal_triton.tuning import cache

CLASSES = {32: 21, 64: 64, 256: 150, 0: 512}  # by bucket, what LAL_TRITON_AUTOTUNE=1 times
SIDE = 512  # of the labels
MOST_LOGITS = 2**25

_searched: set[tuple[object, ...]] = set()
_searching = threading.RLock()


def tuned(setting: Setting, device: torch.device) -> Config | None:
    """The configuration that the cache holds; None where it holds none.

    LAL_TRITON_AUTOTUNE=1 in the environment tunes first what the cache does not hold, once in a process, with all that
    a step of this loss asks for. "step" does not start it: its setting does not say how many classes there are.
    """
    found = cache.lookup(setting, device)
    if found or os.environ.get("LAL_TRITON_AUTOTUNE") != "1" or setting.family == "step" or not _may_search(device):
        return found
    with _searching:  # a configuration that a search tries holds for all threads
        if (device, *setting[1:]) not in _searched:
            _searched.add((device, *setting[1:]))
            _search(setting, device)
    return cache.lookup(setting, device)


def _may_search(device: torch.device) -> bool:
    """On a GPU, while no graph is captured, `torch.compile` does not trace, and no backward pass runs."""
    if device.type != "cuda" or torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return False
    return torch._C._current_graph_task_id() == -1 and not torch.cuda.is_current_stream_capturing()


def _search(setting: Setting, device: torch.device) -> None:
    """Tune for as many classes as the bucket stands for; a search that fails is a warning."""
    from lal_triton.tuning import search

    ratio = setting.ratio
    classes, side = CLASSES[setting.classes], SIDE // ratio * ratio
    images = max(1, min(16, MOST_LOGITS * ratio**2 // (classes * side**2)))
    try:
        search.tune([setting.kernel_size], (images, classes, side, side), getattr(torch, setting.dtype), ratio, device)
    except Exception as error:
        message = f"LAL_TRITON_AUTOTUNE: the default stays for {setting}: {type(error).__name__}: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
