"""Search for the fastest launch configurations of the present device.

Per problem (window, dtype, bucket of classes, upsampling ratio) and one kernel family after the other: all candidates
are compiled; those that spill (more than SMALL_SPILL), or want more registers or shared memory than there are, are
dropped before anything is launched; the others are timed, each with a cold L2; and the fastest of them are timed
against the default in turns. The default stays unless another is faster by more than what the times scatter.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lal_triton import steps
from lal_triton.dispatch import choose_backend
from lal_triton.kernels import configs
from lal_triton.kernels.compilers import start_compilers
from lal_triton.kernels.configs import Config, Setting
from lal_triton.progress import announce, start_bar
from lal_triton.tuning import cache
from lal_triton.tuning.candidates import (
    Forced,
    Problem,
    Target,
    candidates,
    compile_candidates,
    is_affordable,
)

FINALISTS = 3
ROUNDS = 7
QUICK_MS, FINAL_MS = 20, 50  # of repeats, for each time taken
REHEARSED = 3  # candidates of a family where there is no GPU


class Result(NamedTuple):
    setting: Setting
    config: Config  # the default where nothing is faster
    default: Config
    milliseconds: float  # of the forward, the backward or the step, whichever the family is timed by
    default_milliseconds: float
    tried: int
    pruned: int  # of the tried ones, by the resource report
    file: Path | None = None  # that holds it

    @property
    def gain(self) -> float:
        return self.default_milliseconds / self.milliseconds


def tune(
    kernel_size: int | Sequence[int | tuple[int, int]] = (3, 5, 7),
    shape: Sequence[int] = (16, 21, 512, 512),
    dtype: torch.dtype | Sequence[torch.dtype] = torch.float32,
    upsampling: int | Sequence[int] = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
    cache_dir: Path | str | None = None,
) -> list[Result]:
    """Find the fastest configurations on this device; from then on they are used, by other processes too.

    Minutes per combination of kernel size, dtype and ratio, most of them spent compiling; needs the memory of a
    training step of this loss, and 256 MB to flush the L2. With LAL_TRITON_AUTOTUNE=1 in the environment the first use
    of what was not tuned yet does this by itself.

    Args:
        kernel_size: one or several. A tuple of two integers is two sizes; for one window that is no square pass
            `[(3, 5)]`.
        shape: images, classes, and the labels' height and width. Tuned is for all sizes with as many classes, by
            buckets of up to 32, 64, 256 and more.
        dtype: one or several of float32, float16, bfloat16.
        upsampling: one or several ratios of the labels' size to that of the logits; they divide height and width.
        device: the current GPU by default. "cpu" rehearses the search in Triton's interpreter (TRITON_INTERPRET=1):
            few candidates, compiled for an H100, one run each, and written nowhere without `cache_dir`.
        progress: whether to say on standard error how far it is: a bar on a terminal, elsewhere a line per family.
        cache_dir: the folder to write to. Only LAL_TRITON_CACHE_DIR in the environment and, without it, the platform's
            cache folder are read again.

    Returns:
        A result per family and combination. Each is written, as it is found, to the JSON file of this device and these
        versions (`lal_triton.tuning.cache.file_for`).

    Raises:
        ValueError: no GPU and no device "cpu"; bad sizes.
        TypeError, NotImplementedError: what the kernels do not serve, as in the losses with backend="triton".
        KeyboardInterrupt: it names the file that keeps what was found until then.
    """
    if device is None and not torch.cuda.is_available():
        raise ValueError('device is None, expected a GPU, or "cpu" to rehearse in the interpreter: there is no GPU')
    device = torch.device("cuda" if device is None else device)
    folder = None if cache_dir is None else Path(cache_dir)
    combinations = itertools.product(*map(_several, (kernel_size, dtype, upsampling)))
    problems = [Problem.of(size, shape, kind, ratio) for size, kind, ratio in combinations]
    for kind in _several(dtype):
        choose_backend("triton", device.type, kind)
    results: list[Result] = []
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device, start_compilers(torch.get_num_threads()) as compilers:
        settings = [(problem, problem.settings()) for problem in problems]
        families = sum(len(asked) for _, asked in settings)
        configurations = sum(len(_others(setting, device)) for _, asked in settings for setting in asked)
        if progress:
            announce(f"{families} kernel families to tune, with {configurations} configurations to compile and to time")
        try:
            with start_bar(2 * configurations, shown=progress) as bar:
                for problem, asked in settings:
                    for result in _tune_problem(problem, asked, device, compilers, bar):
                        if device.type == "cuda" or folder:  # at once: an interrupt loses no more than a family
                            result = result._replace(file=cache.store(_entry(result), device, folder))
                        results.append(result)
                        steps.clear()
        except KeyboardInterrupt:
            kept = f", which {results[-1].file} keeps" if results and results[-1].file else ""
            message = f"interrupted after {len(results)} of {families} kernel families{kept}"
            raise KeyboardInterrupt(message) from None
    return results


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else (value,)


def _entry(result: Result) -> cache.Entry:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    times = round(result.milliseconds, 6), round(result.default_milliseconds, 6)
    return cache.Entry(result.setting, result.config, *times, date)


def _others(setting: Setting, device: torch.device) -> list[Config]:
    """The candidates without the default, which a rehearsal takes few of."""
    default = configs.pinned(setting, configs.device_class(device))
    others = [config for config in candidates(setting) if config != default]
    return others if device.type == "cuda" else others[:: math.ceil(len(others) / (REHEARSED - 1))]


def _tune_problem(
    problem: Problem, settings: Sequence[Setting], device: torch.device, compilers: Executor, bar: tqdm
) -> Iterator[Result]:
    """Greedy: a family is tuned with what was found for those before it, the backward's after the forward's."""
    target, tensors = Target.of(device.type), problem.make(device)
    chosen = {setting.family: configs.pinned(setting, configs.device_class(device)) for setting in settings}
    for setting in settings:
        family, default = setting.family, chosen[setting.family]
        forced = {**chosen}
        if family == "local_cost_bwd":  # it runs where the forward does not save exp
            forced["step"] = {"saves_exp": 0}
        others = _others(setting, device)
        bar.set_description_str(f"{family}, {_format_setting(setting)}")
        reports = compile_candidates(compilers, problem, target, family, [{**forced, family: each} for each in others])
        kept = []
        for config, of_candidate in zip(others, reports, strict=True):
            if all(is_affordable(report, target) for report in of_candidate):
                kept.append(config)
            bar.update()
        config, milliseconds, default_milliseconds = Race(problem, tensors, family, forced).run(default, kept)
        bar.n += len(others)
        chosen[family] = config
        counts = 1 + len(others), len(others) - len(kept)
        yield Result(setting, config, default, milliseconds, default_milliseconds, *counts)


class Race(NamedTuple):
    """Of configurations of one family; the others' are forced."""

    problem: Problem
    tensors: tuple[Tensor, Tensor]
    family: str
    forced: Forced

    def run(self, default: Config, others: Sequence[Config]) -> tuple[Config, float, float]:
        """The winner, its milliseconds, and those of the default."""
        if len(others) > FINALISTS:
            others = sorted(others, key=lambda config: self.measure(config, QUICK_MS))[:FINALISTS]
        racing = [default, *others]
        rounds = range(ROUNDS if self.tensors[0].is_cuda else 1)
        rows = [[self.measure(config, FINAL_MS) for config in racing] for _ in rounds]
        columns = list(zip(*rows, strict=True))
        winner = choose(columns)
        return racing[winner], statistics.median(columns[winner]), statistics.median(columns[0])

    def measure(self, config: Config, repeat_ms: int) -> float:
        """Milliseconds of the phase that the family is timed by, infinite where the driver refuses to launch."""
        from triton.runtime.errors import OutOfResources
        from triton.testing import do_bench

        phase = "step" if self.family == "step" else "backward" if self.family.endswith("_bwd") else "forward"
        try:
            with configs.forcing({**self.forced, self.family: config}):
                work = self.problem.work(phase, *self.tensors)
            if self.tensors[0].is_cuda:
                return do_bench(work, warmup=repeat_ms, rep=repeat_ms, return_mode="median")
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        except OutOfResources:
            return math.inf


def choose(times: Sequence[Sequence[float]]) -> int:
    """The index of the lowest median among those that are below the default's, the first, by more than the scatter."""
    medians = [statistics.median(series) for series in times]
    scatters = [_scatter(series) for series in times]
    faster = [i for i in range(1, len(times)) if medians[0] - medians[i] > max(scatters[0], scatters[i])]
    return min(faster, key=medians.__getitem__, default=0)


def _scatter(series: Sequence[float]) -> float:
    """The distance of the quartiles."""
    if len(series) < 2 or math.inf in series:
        return 0.0
    lower, _, upper = statistics.quantiles(series, n=4, method="inclusive")
    return upper - lower


def format_table(results: Sequence[Result]) -> str:
    rows = [("family", "setting", "default ms", "tuned ms", "gain", "pruned", "configuration")]
    for result in results:
        times = f"{result.default_milliseconds:.3f}", f"{result.milliseconds:.3f}", f"{result.gain:.2f}"
        config = " ".join(f"{name}={value}" for name, value in result.config.items())
        config += " (default)" if result.config == result.default else ""
        named = result.setting.family, _format_setting(result.setting)
        rows.append((*named, *times, f"{result.pruned} of {result.tried}", config))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _format_setting(setting: Setting) -> str:
    family, (height, width), dtype, bucket, ratio = setting
    classes = f"C <= {bucket}" if bucket else f"C > {configs.CLASS_BUCKETS[-1]}"
    if family == "step":  # it is chosen whatever the number of classes
        classes = "all C"
    return f"{height} x {width}, {dtype}, {classes}, x {ratio}"
