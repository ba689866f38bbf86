"""Host time of a training step, from the module's call to the last launch of the backward.

    python -m lal_triton.benchmarks.overhead

No GPU is needed: a stand-in has the kernels compiled for sm_90 and drops their launches; the tensors are small ones on
the CPU. What is left is Python, torch's dispatch and autograd, and the launch path down to
the driver. F.cross_entropy beside it computes, too, on a few elements. Nothing of this depends on the kernel size.
Times are of this process on one thread, whatever else the machine does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss
from lal_triton.benchmarks import environment
from lal_triton.kernels.host.stand_in import standing_in

REPEATS = 15
SHAPE = (1, 21, 4, 4)


class Counter:
    """A driver that drops launches and counts them."""

    def __init__(self) -> None:
        self.launches = 0

    def __call__(self, compiled: Any, grid: tuple[int, int, int], arguments: Any) -> None:
        self.launches += 1


def count_launches(step: Callable[[], None], counter: Counter) -> int:
    step()
    before = counter.launches
    step()
    return counter.launches - before


def host_microseconds(step: Callable[[], None], steps: int) -> list[float]:
    """Of one step, in each of REPEATS runs of so many."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        for _ in range(steps):
            step()
        found.append((time.process_time() - start) / steps * 1e6)
    return found


def measure(steps: int = 500) -> list[dict[str, Any]]:
    from triton.backends.compiler import GPUTarget

    logits = torch.randn(SHAPE, requires_grad=True)
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))
    finer = target.repeat_interleave(4, 1).repeat_interleave(4, 2)

    def step_of(loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor = target) -> Callable[[], None]:
        def step() -> None:
            logits.grad = None
            loss(logits, labels).backward()

        return step

    triton: dict[str, Any] = {"backend": "triton"}
    compared = {
        "F.cross_entropy": step_of(F.cross_entropy),
        "LocallyAdaptiveLoss": step_of(LocallyAdaptiveLoss(3, **triton)),
        "LocallyAdaptiveLoss, upsampled x 4": step_of(LocallyAdaptiveLoss(3, **triton), finer),
        "CrossEntropyLoss": step_of(CrossEntropyLoss(**triton)),
    }
    torch.set_num_threads(1)
    counter = Counter()
    with standing_in(counter, GPUTarget("cuda", 90, 32)):
        launches = {name: count_launches(step, counter) for name, step in compared.items()}
        found = {name: host_microseconds(step, steps) for name, step in compared.items()}
    least = min(found["F.cross_entropy"])
    return [
        {
            "step": name,
            "launches": launches[name],
            "microseconds": round(min(times), 1),
            "median": round(statistics.median(times), 1),
            "beyond_cross_entropy": round(min(times) - least, 1),
        }
        for name, times in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Host time of a training step, with launches that do nothing.")
    parser.add_argument("--steps", type=int, default=500, help="of each run; the least of 15 runs counts (500)")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    rows = measure(arguments.steps)
    for row in rows:
        print(
            f"{row['step']:36}{row['microseconds']:7.1f} us, {row['beyond_cross_entropy']:6.1f} us more than "
            f"F.cross_entropy, {row['launches']} launches"
        )
    if arguments.output:
        described = environment.describe(torch.device("cpu"))
        arguments.output.write_text(json.dumps({"environment": described, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
