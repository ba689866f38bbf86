"""The peak of what a call allocates, above what is live before it."""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_of_host_allocator(run)


def _peak_of_host_allocator(run: Callable[[], object]) -> int:
    """The CPU allocator keeps no statistics, but reports to the profiler whoever calls it, custom ops included."""
    with _stderr_muted(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    """The profiler's C++ library writes two lines to the file descriptor each time it runs."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
