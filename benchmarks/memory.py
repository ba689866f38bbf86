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
    return allocations(run)[1]


def allocations(run: Callable[[], object]) -> tuple[int, int]:
    """The largest single allocation on the CPU and the peak of what is live, in bytes.

    The CPU allocator keeps no statistics, but reports to the profiler whoever calls it, custom ops included.
    """
    with _stderr_muted(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak, largest = max(peak, live), max(largest, event.nbytes())
    return largest, peak


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
