"""Search for the fastest launch configurations of the present device.

Per problem (window, dtype, bucket of classes, upsampling ratio) and one kernel family after the other: all candidates
are compiled; those that spill (more than SMALL_SPILL), or want more registers or shared memory than there are, are
dropped before anything is launched; the others are timed, each with a cold L2; and the fastest of them are timed
against the default in turns. The default stays unless another is faster by more than what the times scatter.

Of Triton's own machinery this uses the benchmark loop (`triton.testing.do_bench`: flushes the L2, warms up, repeats),
the compiler's cache, and the driver's limits of the device. `triton.autotune` itself does not serve, because a
`triton.Config` chooses the constants of one kernel's launch, while here a configuration also decides on the host which
kernels there are and what is kept between them ("step"), grids, and the number of warps from the device's warp size.
Its pruning hook sees a launch's arguments, not what the compiler made of them; it takes the fastest of one series of
times however close; it knows no default to gain over; and its cache is a file per kernel and hash, not one to read.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._guards import detect_fake_mode
from tqdm import tqdm

from lal_triton import steps, tuning_cache
from lal_triton.dispatch import choose_backend
from lal_triton.kernels import configs
from lal_triton.kernels.configs import Config, Setting
from lal_triton.tuning_space import (
    Forced,
    Problem,
    Target,
    candidates,
    compile_candidates,
    is_affordable,
    phase_of,
)

FINALISTS = 3
ROUNDS = 7
QUICK_MS, FINAL_MS = 20, 50  # of repeats, for each time taken
REHEARSED = 3  # candidates of a family where there is no GPU

CLASSES = {32: 21, 64: 64, 256: 150, 0: 512}  # by bucket, what LAL_TRITON_AUTOTUNE times
SIDE = 512
MOST_LOGITS = 2**25


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
        progress: whether to show a bar, where standard error is a terminal.
        cache_dir: the folder to write to. Only LAL_TRITON_CACHE_DIR in the environment and, without it, the platform's
            cache folder are read again.

    Returns:
        A result per family and combination. They are written to the JSON file of this device and these versions
        (`lal_triton.tuning_cache.file_for`) after each combination.

    Raises:
        ValueError: no GPU and no device "cpu"; bad sizes.
        TypeError, NotImplementedError: what the kernels do not serve, as in the losses with backend="triton".
    """
    if device is None and not torch.cuda.is_available():
        raise ValueError('device is None, expected a GPU, or "cpu" to rehearse in the interpreter: there is no GPU')
    device = torch.device("cuda" if device is None else device)
    problems = [
        Problem.of(size, shape, kind, ratio)
        for size in _several(kernel_size)
        for kind in _several(dtype)
        for ratio in _several(upsampling)
    ]
    for kind in _several(dtype):
        choose_backend("triton", device.type, kind)
    results = []
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with _busy, current, tqdm(desc="tuning", unit="step", total=0, disable=None if progress else True) as bar:
        for problem in problems:
            for result in _tune_problem(problem, device, bar):
                file = None
                if device.type == "cuda" or cache_dir is not None:  # at once: an interrupt loses no more than a family
                    file = tuning_cache.store([_entry(result)], device, None if cache_dir is None else Path(cache_dir))
                results.append(result._replace(file=file))
            steps.clear()
    return results


def tune_once(setting: Setting, device: torch.device) -> Config | None:
    """What LAL_TRITON_AUTOTUNE=1 does for a setting that nothing is known of: tune it, and all that goes with it.

    That is left for later while a CUDA graph is captured, `torch.compile` traces, or a backward pass runs, whose
    threads the search needs itself. "step" does not start it: its setting does not say how many classes there are. A
    search that fails is a warning.
    """
    problem = (device, setting[1:])
    if device.type != "cuda" or setting.family == "step" or problem in _settled or _busy.locked():
        return None
    if torch.compiler.is_compiling() or detect_fake_mode() is not None or torch._C._current_graph_task_id() != -1:
        return None
    if torch.cuda.is_current_stream_capturing():
        return None
    _settled.add(problem)
    # of its own: here autograd may be off, as it is inside of an op, and autocast on
    thread = threading.Thread(target=_tune_for, args=(setting, device), daemon=True)
    thread.start()
    thread.join()
    return tuning_cache.lookup(setting, device)


_busy = threading.Lock()
_settled: set[tuple[torch.device, tuple[object, ...]]] = set()


def _tune_for(setting: Setting, device: torch.device) -> None:
    ratio = setting.ratio
    classes, side = CLASSES[setting.classes], SIDE // ratio * ratio
    images = max(1, min(16, MOST_LOGITS * ratio**2 // (classes * side**2)))
    try:
        dtype = getattr(torch, setting.dtype)
        tune([setting.kernel_size], (images, classes, side, side), dtype, ratio, device)
    except Exception as error:
        message = f"LAL_TRITON_AUTOTUNE: the default stays for {setting}: {type(error).__name__}: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else (value,)


def _entry(result: Result) -> tuning_cache.Entry:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    times = round(result.milliseconds, 6), round(result.default_milliseconds, 6)
    return tuning_cache.Entry(result.setting, result.config, *times, date)


def _tune_problem(problem: Problem, device: torch.device, bar: tqdm) -> Iterator[Result]:
    """Greedy: a family is tuned with what was found for those before it, the backward's after the forward's."""
    target = Target.of(device)
    settings = problem.settings()
    chosen = {setting.family: configs.pinned(setting, configs.device_class(device)) for setting in settings}
    searched = {setting: _search(setting, chosen[setting.family], device) for setting in settings}
    jobs = [
        (setting.family, {**chosen, **forced, setting.family: config})
        for setting, forced in settings.items()
        for config in searched[setting]
    ]
    bar.total += 2 * len(jobs)  # each is compiled, and dropped or timed
    reports = iter(compile_candidates(problem, jobs, target, bar.update))
    race = Race(problem, device)
    for setting, forced in settings.items():
        default, *others = searched[setting]
        affordable = [all(is_affordable(report, target) for report in next(reports)) for _ in searched[setting]]
        kept = [config for config, fits in zip(others, affordable[1:], strict=True) if fits]
        bar.set_postfix_str(setting.family)
        config, milliseconds, default_milliseconds = race.run(setting.family, default, kept, {**chosen, **forced})
        chosen[setting.family] = config
        bar.update(len(searched[setting]))
        counts = len(searched[setting]), len(others) - len(kept)
        yield Result(setting, config, default, milliseconds, default_milliseconds, *counts)


def _search(setting: Setting, default: Config, device: torch.device) -> list[Config]:
    """The default and the other candidates, a few of them where there is no GPU."""
    others = [config for config in candidates(setting) if config != default]
    if device.type != "cuda":
        others = others[:: math.ceil(len(others) / (REHEARSED - 1))]
    return [default, *others]


@contextlib.contextmanager
def _configured(forced: Forced) -> Iterator[None]:
    with configs.forcing(forced):
        steps.clear()
        yield
    steps.clear()


class Race:
    """Times configurations of one family after the other, in a problem."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem, self.on_gpu = problem, device.type == "cuda"
        self.tensors = problem.make(device)

    def run(
        self, family: str, default: Config, others: Sequence[Config], forced: Forced
    ) -> tuple[Config, float, float]:
        """The winner, its milliseconds, and those of the default."""

        def measure(config: Config, repeat_ms: int) -> float:
            return self.measure(phase_of(family), {**forced, family: config}, repeat_ms)

        if len(others) > FINALISTS:
            times = [measure(config, QUICK_MS) for config in others]
            fastest = sorted(range(len(others)), key=times.__getitem__)[:FINALISTS]
            others = [others[index] for index in fastest]
        racing = [default, *others]
        rounds = range(ROUNDS if self.on_gpu else 1)
        rows = [[measure(config, FINAL_MS) for config in racing] for _ in rounds]
        columns = list(zip(*rows, strict=True))
        winner = choose(columns)
        return racing[winner], statistics.median(columns[winner]), statistics.median(columns[0])

    def measure(self, phase: str, forced: Forced, repeat_ms: int) -> float:
        """Milliseconds, infinite where the driver refuses to launch."""
        from triton.runtime.errors import OutOfResources

        with _configured(forced):
            try:
                work = self.problem.work(phase, *self.tensors)
                if self.on_gpu:
                    from triton.testing import do_bench

                    return do_bench(work, warmup=repeat_ms, rep=repeat_ms, return_mode="median")
                start = time.perf_counter()
                work()
                return (time.perf_counter() - start) * 1e3
            except OutOfResources:
                return math.inf


def format_table(results: Sequence[Result]) -> str:
    rows = [("family", "setting", "default ms", "tuned ms", "gain", "pruned", "configuration")]
    for result in results:
        setting = result.setting
        classes = f"C <= {setting.classes}" if setting.classes else f"C > {configs.CLASS_BUCKETS[-1]}"
        if setting.family == "step":  # it is chosen whatever the number of classes
            classes = "all C"
        config = " ".join(f"{name}={value}" for name, value in result.config.items())
        rows.append(
            (
                setting.family,
                f"{setting.kernel_size[0]} x {setting.kernel_size[1]}, {setting.dtype}, {classes}, x {setting.ratio}",
                f"{result.default_milliseconds:.3f}",
                f"{result.milliseconds:.3f}",
                f"{result.gain:.2f}",
                f"{result.pruned} of {result.tried}",
                config + (" (default)" if result.config == result.default else ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


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
