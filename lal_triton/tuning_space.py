"""What is searched by `lal_triton.tuning`: the problems, their candidates, and what the compiler says of these.

Run as `python -m lal_triton.tuning_space` this compiles: a process that interprets the kernels cannot, and several
processes compile at the same time. What they compile is in Triton's own cache when it is launched.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lal_triton import functional, steps, validation
from lal_triton.kernels import configs
from lal_triton.kernels.configs import Config, Setting, upsampling_is_served
from lal_triton.options import make_options

Forced = Mapping[str, Config]
BLOCK = 32  # side of the label map's patches of one label
# Bytes of a thread that the compiler may spill: it gives up two registers where that lets another program run beside.
# On an H200 the forward at K = 7 took 1.03 ms so, and 1.47 or more without (benchmarks/NOTES.md).
SMALL_SPILL = 8


class Problem(NamedTuple):
    """What is timed: a loss through its public function, on synthetic logits and labels."""

    kernel_size: tuple[int, int]
    shape: tuple[int, int, int, int]  # images, classes, and height and width of the labels
    dtype: str
    ratio: int  # of the labels' size to that of the logits

    @classmethod
    def of(cls, kernel_size: Any, shape: Sequence[int], dtype: torch.dtype, ratio: int) -> Problem:
        """Raises what is wrong with it, before anything is tuned."""
        if len(shape) != 4:
            raise ValueError(f"shape is {tuple(shape)!r}, expected images, classes, height and width")
        images, classes, height, width = (validation.check_integer("shape", size, low=1) for size in shape)
        validation.check_integer("upsampling", ratio, low=1)
        if height % ratio or width % ratio:
            raise ValueError(f"upsampling is {ratio}, expected a divisor of the labels' size {height} x {width}")
        pair = validation.check_kernel_size(kernel_size)
        problem = cls(pair, (images, classes, height, width), str(dtype).removeprefix("torch."), ratio)
        low = height // ratio, width // ratio
        if ratio > 1 and not upsampling_is_served(low, (height, width), make_options(kernel_size=pair)):
            raise NotImplementedError(
                f"kernel_size is {kernel_size} and upsampling {ratio}, expected a smaller window or another ratio: the "
                "logits are interpolated before the loss there, with the configurations of upsampling 1"
            )
        return problem

    def make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        images, classes, height, width = self.shape
        size = (images, classes, height // self.ratio, width // self.ratio)
        values = torch.arange(images * classes * size[2] * size[3], device=device, dtype=torch.float32).sin_()
        logits = values.view(size).to(getattr(torch, self.dtype)).requires_grad_()
        rows, columns = (torch.arange(side, device=device) // BLOCK for side in (height, width))
        labels = (7 * rows[:, None] + columns) % classes
        return logits, labels.expand(images, height, width).contiguous()

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.kernel_size == (1, 1):
            return functional.cross_entropy(logits, target, backend="triton")
        return functional.locally_adaptive_loss(logits, target, kernel_size=self.kernel_size, backend="triton")

    def work(self, phase: str, logits: Tensor, target: Tensor) -> Callable[[], object]:
        """The forward, the backward, or both, as a function to be timed."""
        if phase == "forward":
            return lambda: self.loss(logits, target)
        if phase == "backward":
            value = self.loss(logits, target)
            return lambda: torch.autograd.grad(value, logits, retain_graph=True)
        return lambda: torch.autograd.grad(self.loss(logits, target), logits)

    def record(self, forced: Forced) -> list[Any]:
        """The launches of a step, which are not made."""
        from lal_triton.kernels.host import launch as launching

        with configs.forcing(forced), launching.recording() as launches:
            steps.clear()
            self.work("step", *self.make(torch.device("meta")))()
        steps.clear()
        return launches

    def settings(self) -> dict[Setting, Forced]:
        """What there is to tune, in this order, each with what must be forced so that a step asks for it."""
        found: dict[Setting, Forced] = {}
        kernels = []
        for forced in ({}, *({"step": {"saves_exp": saves}} for saves in (1, 0))):
            with configs.asking() as asked:
                kernels.append([launch.kernel.__name__ for launch in self.record(forced)])
            found = {**dict.fromkeys(asked, forced), **found}
        if kernels[1] == kernels[2]:  # through an upsampling nothing can be kept
            found = {setting: forced for setting, forced in found.items() if setting.family != "step"}
        families = list(configs.FAMILIES)
        return dict(sorted(found.items(), key=lambda item: (item[0].family == "step", families.index(item[0].family))))


def phase_of(family: str) -> str:
    """What a family is timed by."""
    return "step" if family == "step" else "backward" if family.endswith("_bwd") else "forward"


def candidates(setting: Setting) -> list[Config]:
    """The search space: 64 to 256 threads, few rows for each, since many leave registers for few threads."""
    names = configs.FAMILIES[setting.family]
    taps = setting.kernel_size[0] * setting.kernel_size[1]
    rows = [count for count in (1, 2, 4) if count * taps < configs.WEIGHTS_IN_REGISTERS] or [1]
    space: dict[str, Sequence[int]] = {
        "rows": rows,
        "columns": (32, 64, 128),
        "strips": (1, 2, 4),
        "groups": (1,) if 0 < setting.classes <= 64 else (1, 2, 4),
        "saves_exp": (1, 0),
        "classes": (16, 32, 64),
        "lanes_per_slot": (2, 4, 8),
        "num_stages": (1, 2, 3),
    }
    every = (dict(zip(names, values, strict=True)) for values in itertools.product(*(space[name] for name in names)))
    if "strips" not in names:
        return list(every)
    return [
        config
        for config in every
        if 64 <= config["columns"] * config["strips"] * config.get("groups", 1) <= 256
        and config["rows"] * config["strips"] <= configs.BAND_ROWS
    ]


class Target(NamedTuple):
    """What is compiled for, and what a program may take of it."""

    backend: str
    arch: int | str
    warp_size: int
    registers: int  # of all threads
    shared_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> Target:
        """The present device; an H100 where there is none."""
        if device.type != "cuda":
            return cls("cuda", 90, 32, registers=65536, shared_bytes=232448)
        from triton.runtime import driver

        with torch.cuda.device(device):
            target = driver.active.get_current_target()
            limits = driver.active.utils.get_device_properties(torch.cuda.current_device())
        fields = target.backend, target.arch, target.warp_size
        return cls(*fields, registers=limits["max_num_regs"], shared_bytes=limits["max_shared_mem"])


def is_affordable(report: Mapping[str, Any], target: Target) -> bool:
    """No more than SMALL_SPILL is spilled, and a program gets the registers and the shared memory that it asks for."""
    return (
        "error" not in report
        and report["spill_bytes"] <= SMALL_SPILL
        and report["registers"] * report["threads"] <= target.registers
        and report["shared_bytes"] <= target.shared_bytes
    )


def compile_candidates(
    problem: Problem, jobs: Sequence[tuple[str, Forced]], target: Target, advance: Callable[[], object]
) -> list[list[dict[str, Any]]]:
    """The reports on the kernels of a family, with the configurations forced, of each job; `advance` counts them."""
    found: list[list[dict[str, Any]]] = [[] for _ in jobs]
    children = min(len(jobs), torch.get_num_threads())
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def run(first: int) -> None:
        part = range(first, len(jobs), children)
        command = [sys.executable, "-m", "lal_triton.tuning_space"]
        question = json.dumps({"problem": problem, "target": target, "jobs": [jobs[index] for index in part]})
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as child:
            assert child.stdin
            assert child.stdout
            child.stdin.write(question)
            child.stdin.close()
            for index, line in zip(part, child.stdout, strict=False):
                found[index] = json.loads(line)
                advance()
        if child.returncode or not all(found[index] for index in part):
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode} and not all reports")

    with ThreadPoolExecutor(children) as pool:
        list(pool.map(run, range(children)))
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    kernel_size, shape, *rest = asked["problem"]
    problem, target = Problem(tuple(kernel_size), tuple(shape), *rest), Target(*asked["target"])
    for family, forced in asked["jobs"]:
        print(json.dumps(list(_reports(problem, family, forced, target))), flush=True)


def _reports(problem: Problem, family: str, forced: Forced, target: Target) -> Iterator[dict[str, Any]]:
    from triton.backends.compiler import GPUTarget
    from triton.errors import TritonError

    from lal_triton.kernels import compiling

    families = tuple(configs.FAMILIES) if family == "step" else family
    for name, launch in {launch.kernel.__name__: launch for launch in problem.record(forced)}.items():
        if name.startswith(families):
            try:
                yield compiling.report(launch, GPUTarget(target.backend, target.arch, target.warp_size))
            except (TritonError, RuntimeError) as error:  # MLIR's passes raise the latter
                yield {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
