"""What is searched: the problems that are timed, their candidates, and what the compiler says of these."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lal_triton import validation
from lal_triton.kernels import configs
from lal_triton.kernels.configs import Config, Setting
from lal_triton.options import LocalLoss, Pooling, usual_loss

Forced = Mapping[str, Config]
Report = Mapping[str, Any]
BLOCK = 32  # side of the label map's patches of one label
# Bytes of a thread that the compiler may spill: it gives up two registers where that lets another program run beside.
# On an H200 the forward at K = 7 took 1.03 ms so, and 1.47 or more without (benchmarks/NOTES.md).
SMALL_SPILL = 8


class Problem(NamedTuple):
    """What is timed: a step of a loss on synthetic logits and labels."""

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
        logits, target = problem.make(torch.device("meta"))
        validation.check_tensors(logits, target, None, None)
        if ratio > 1 and not configs.upsampling_is_served(logits.shape[2:], target.shape[1:], problem.loss[0]):
            raise NotImplementedError(
                f"kernel_size is {kernel_size} and upsampling {ratio}, expected a smaller window or another ratio: the "
                "logits are interpolated before the loss there, with the configurations of upsampling 1"
            )
        return problem

    @property
    def loss(self) -> tuple[LocalLoss, Pooling]:
        return usual_loss(self.kernel_size)

    def make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits `[N, C, H / ratio, W / ratio]` and labels `[N, H, W]`."""
        images, classes, height, width = self.shape
        size = (images, classes, height // self.ratio, width // self.ratio)
        values = torch.arange(images * classes * size[2] * size[3], device=device, dtype=torch.float32).sin_()
        rows, columns = (torch.arange(side, device=device) // BLOCK for side in (height, width))
        labels = (7 * rows[:, None] + columns) % classes
        return values.view(size).to(getattr(torch, self.dtype)), labels.expand(images, height, width).contiguous()

    def work(self, phase: str, logits: Tensor, target: Tensor) -> Callable[[], object]:
        """The forward, the backward, or the step of both, as a function to be timed; it needs no autograd."""
        from lal_triton.kernels.host.plan import Plan

        plan = Plan(logits, target, None, None, *self.loss, saves_exp=None)
        gradient = torch.ones((), device=logits.device)
        forward = functools.partial(plan.forward, logits, target, None, None)
        backward = functools.partial(plan.backward, gradient, logits, None, None)
        if phase == "forward":
            return forward
        if phase == "step":
            return lambda: backward(forward()[1])
        return functools.partial(backward, forward()[1])

    def record(self, forced: Forced) -> list[Any]:
        """The launches of a step, which are not made."""
        from lal_triton.kernels.host import launch

        with configs.forcing(forced), launch.recording() as launches:
            self.work("step", *self.make(torch.device("meta")))()
        return launches

    def settings(self) -> list[Setting]:
        """What a step asks for, whether it saves exp or not; in the order of `configs.FAMILIES`."""
        with configs.asking() as asked:
            self.record({"step": {"saves_exp": 1}})
            self.record({"step": {"saves_exp": 0}})
        families = list(configs.FAMILIES)
        if not configs.may_save_exp(self.loss[0], self.shape[1], self.ratio > 1):
            families.remove("step")
        return sorted((each for each in asked if each.family in families), key=lambda each: families.index(each.family))


def candidates(setting: Setting) -> list[Config]:
    """The search space: 64 to 256 threads, few rows for each, since many leave registers for few threads."""
    taps = setting.kernel_size[0] * setting.kernel_size[1]
    space: dict[str, Sequence[int]] = {
        "rows": [count for count in (1, 2, 4) if count * taps < configs.WEIGHTS_IN_REGISTERS] or [1],
        "columns": (32, 64, 128),
        "strips": (1, 2, 4),
        "groups": (1,) if 0 < setting.classes <= 64 else (1, 2, 4),
        "saves_exp": (1, 0),
        "lanes": (64, 128, 256),
    }
    if setting.family.startswith("cell_loss"):
        space |= {"lanes": (32,), "columns": (5, 8), "rows": (4, 8, 16), "classes": (8, 16, 32)}
    names = configs.FAMILIES[setting.family]
    values = itertools.product(*(space[name] for name in names))
    return [config for each in values if _is_small(config := dict(zip(names, each, strict=True)))]


def _is_small(config: Config) -> bool:
    if "strips" not in config:
        return True
    threads = config["columns"] * config["strips"] * config.get("groups", 1)
    return 64 <= threads <= 256 and config["rows"] * config["strips"] <= configs.BAND_ROWS


class Target(NamedTuple):
    """What is compiled for, and what a program may take of it."""

    gpu: Any  # a GPUTarget of Triton's
    registers: int  # of all threads
    shared_bytes: int

    @classmethod
    def of(cls, device_type: str) -> Target:
        """The current GPU; an H100 where the device is none."""
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        if device_type != "cuda":
            return cls(GPUTarget("cuda", 90, 32), registers=65536, shared_bytes=232448)
        limits = driver.active.utils.get_device_properties(torch.cuda.current_device())
        return cls(driver.active.get_current_target(), limits["max_num_regs"], limits["max_shared_mem"])


def is_affordable(report: Report, target: Target) -> bool:
    """No more than SMALL_SPILL is spilled, and a program gets the registers and the shared memory that it asks for."""
    return (
        "error" not in report
        and report["spill_bytes"] <= SMALL_SPILL
        and report["registers"] * report["threads"] <= target.registers
        and report["shared_bytes"] <= target.shared_bytes
    )


def compile_candidates(
    compilers: Executor, problem: Problem, target: Target, family: str, each: Sequence[Forced]
) -> Iterator[list[Report]]:
    """The reports on the kernels of a family, for each of the configurations to force."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # or processes run the caller's script, guarded or not
    try:
        return compilers.map(functools.partial(compile_candidate, problem, target, family), each)
    finally:
        sys.modules["__main__"] = main


def compile_candidate(problem: Problem, target: Target, family: str, forced: Forced) -> list[Report]:
    """What `compiling.report` gives of each kernel of the family; of "step" all kernels are."""
    from triton.errors import TritonError

    from lal_triton.kernels import compiling

    families = tuple(configs.FAMILIES) if family == "step" else family
    launches = {launch.kernel.__name__: launch for launch in problem.record(forced)}
    try:
        return [compiling.report(launches[name], target.gpu) for name in launches if name.startswith(families)]
    except (TritonError, RuntimeError) as error:  # MLIR's passes raise the latter
        return [{"error": f"{type(error).__name__}: {error}"}]
