"""Times of the forward pass, the backward pass and the whole step of a loss."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLUSH_BYTES = 512 * 2**20  # many times any L2, and long enough to write for the host to queue a whole step meanwhile


class Effort(NamedTuple):
    """Repeats go on for `seconds`, but there are at least `fewest` and at most `most` of them."""

    seconds: float
    fewest: int
    most: int


class Timing(NamedTuple):
    lower: float  # quartiles, ms
    median: float
    upper: float
    repeats: int


class Stopwatch:
    """Marks points in time: of the host on a CPU, of the device's queue on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES if self.on_gpu else 0, dtype=torch.uint8, device=device)

    def empty_cache(self) -> None:
        """A GPU's L2 would otherwise still hold the logits; a CPU's caches are left to what the last step left."""
        self.flush.zero_()

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        if not self.on_gpu:
            return float(end - start) * 1e3
        end.synchronize()
        return float(start.elapsed_time(end))


def time_step(loss: Callable[[Tensor], Tensor], logits: Tensor, effort: Effort) -> dict[str, Timing]:
    """Each repeat is a step, cut into its phases; the backward pass finds what the forward pass left in the caches."""
    stopwatch = Stopwatch(logits.device)
    samples: dict[str, list[float]] = {"forward": [], "backward": [], "step": []}

    def repeat() -> None:
        stopwatch.empty_cache()
        start = stopwatch.mark()
        value = loss(logits)
        middle = stopwatch.mark()
        torch.autograd.grad(value, logits)
        end = stopwatch.mark()
        samples["step"].append(stopwatch.milliseconds(start, end))
        samples["forward"].append(stopwatch.milliseconds(start, middle))
        samples["backward"].append(stopwatch.milliseconds(middle, end))

    _repeat(repeat, effort)
    return {phase: summarise(times) for phase, times in samples.items()}


def time_copy(logits: Tensor, effort: Effort) -> Timing:
    """Reading and writing the logits once: what the memory of this device can do."""
    stopwatch = Stopwatch(logits.device)
    source, copy = logits.detach(), torch.empty_like(logits)
    samples: list[float] = []

    def repeat() -> None:
        stopwatch.empty_cache()
        start = stopwatch.mark()
        copy.copy_(source)
        samples.append(stopwatch.milliseconds(start, stopwatch.mark()))

    repeat()
    samples.clear()
    _repeat(repeat, effort)
    return summarise(samples)


def _repeat(repeat: Callable[[], None], effort: Effort) -> None:
    start = time.perf_counter()
    for count in range(1, effort.most + 1):
        repeat()
        if count >= effort.fewest and time.perf_counter() - start > effort.seconds:
            break


def summarise(samples: list[float]) -> Timing:
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(lower, median, upper, len(samples))
