"""Runs the cases and writes what was measured, one row per case and phase."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton.benchmarks import environment, libraries, peers
from lal_triton.benchmarks.capacity import bytes_needed, reason_to_skip
from lal_triton.benchmarks.cases import Case, Settings, plan
from lal_triton.benchmarks.expected import expected_seconds
from lal_triton.benchmarks.load import busy_processes, processor_share, torch_threads
from lal_triton.benchmarks.memory import peak_bytes
from lal_triton.benchmarks.scenes import VOID, Scene, make_batch, predict
from lal_triton.benchmarks.timing import Effort, Timing, time_copy, time_step
from lal_triton.functional import cross_entropy, focal_loss, locally_adaptive_loss
from lal_triton.progress import about, announce, start_bar

P = 3.0  # the Minkowski exponent that the paper found best
PHASES = ("forward", "backward", "step")
ONCE = Effort(seconds=0, fewest=1, most=1)
EFFORTS = {  # by device and --quick
    ("cpu", False): Effort(seconds=1.5, fewest=3, most=50),
    ("cpu", True): Effort(seconds=0.3, fewest=2, most=5),
    ("cuda", False): Effort(seconds=0.5, fewest=20, most=100),
    ("cuda", True): Effort(seconds=0.1, fewest=5, most=20),
}

Row = dict[str, Any]
Scenes = dict[int, list[Scene]]  # by the number of classes
Batches = Callable[[int, int, int, int], tuple[Tensor, Tensor]]  # of classes, images, side, upsampling


def run(settings: Settings, scenes: Scenes, path: Path, planned: Sequence[Case] | None = None) -> None:
    """Writes the results after each case, so that an interrupted run leaves what it has.

    `processor_share` of a row is the smaller one of those before and after its case.
    """
    described = environment.describe(settings.device) | {"memory_limit_bytes": settings.memory_limit}
    batches = make_batches(scenes)
    rows: list[Row] = []
    write_results(path, described, rows)
    cases = planned or plan(settings)
    seconds = [expected_seconds(case, settings, effort_for(case, settings)) for case in cases]
    count = sum(map(bool, seconds))
    on_a_cpu = f", {about(sum(seconds))} on two busy cores"
    announce(f"{count} cases{on_a_cpu if settings.device.type == 'cpu' else ''}")
    number = 0
    threads = torch.get_num_threads() if settings.device.type == "cpu" else 1
    before = processor_share(threads)
    with start_bar(sum(seconds)) as bar:
        for case, expected in zip(cases, seconds, strict=True):
            if expected:
                number += 1
                bar.set_description_str(f"{number} of {count}, {case.label}, {case.size} x {case.size}")
            found = measure(case, settings, batches)
            after = processor_share(threads)
            rows += [row | {"processor_share": min(before, after)} for row in found]
            before = after
            write_results(path, described, rows)
            bar.n += expected


def make_batches(scenes: Scenes) -> Batches:
    """Makes the logits and labels of a case, and keeps those of the last one, which mostly serve the next."""
    examples = {
        num_classes: [(predict(*scene, num_classes), scene.labels) for scene in given]
        for num_classes, given in scenes.items()
    }

    @functools.lru_cache(maxsize=1)
    def make(num_classes: int, batch_size: int, size: int, upsampling: int) -> tuple[Tensor, Tensor]:
        return make_batch(examples[num_classes], batch_size, size, upsampling)

    return make


def write_results(path: Path, described: dict[str, object], rows: list[Row]) -> None:
    path.write_text(json.dumps({"environment": described, "rows": rows}, indent=1) + "\n")


def measure(case: Case, settings: Settings, batches: Batches) -> list[Row]:
    """The rows of a case; a case that cannot run gives rows that say why."""
    shared = {
        "name": case.name,
        "backend": case.backend,
        "compiled": case.compiled,
        "kernel_size": case.kernel_size,
        "batch_size": case.batch_size,
        "num_classes": case.num_classes,
        "height": case.size,
        "width": case.size,
        "upsampling": case.upsampling,
        "memory_sweep": case.memory_sweep,
        "beside": case.beside,
        "one_thread": case.one_thread,
        "dtype": str(case.dtype).removeprefix("torch."),
        "logits_bytes": case.full_bytes // case.upsampling**2,
        "full_bytes": case.full_bytes,
        "needed_bytes": None,
    }
    skipped = reason_to_skip(case, settings.memory_limit)
    if skipped != case.skipped:
        shared["needed_bytes"] = bytes_needed(case)
    if skipped is None:
        try:
            return [shared | row for row in _measure(case, settings, batches)]
        except Exception as error:  # whatever stops one case, the others can still be measured
            skipped = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    phases = ("copy",) if case.name == "copy" else PHASES
    return [shared | _row(phase, None, skipped=skipped) for phase in phases]


def effort_for(case: Case, settings: Settings) -> Effort:
    return ONCE if case.memory_sweep else EFFORTS[settings.device.type, settings.quick]


def _measure(case: Case, settings: Settings, batches: Batches) -> list[Row]:
    logits, target = batches(case.num_classes, case.batch_size, case.size, case.upsampling)
    logits = logits.to(settings.device, case.dtype).detach().requires_grad_()
    target = target.to(settings.device)
    effort = effort_for(case, settings)
    if case.name == "copy":
        return [_row("copy", time_copy(logits, effort))]

    loss = loss_function(case, target)

    def step() -> Tensor:
        return torch.autograd.grad(loss(logits), logits)[0]

    value = loss(logits).item()
    step()  # compiles, where there is something to compile
    peak = peak_bytes(step, settings.device)
    with busy_processes(case.beside), torch_threads(1 if case.one_thread else torch.get_num_threads()):
        timings = time_step(loss, logits, effort)
    return [_row(phase, timings[phase], loss=value, peak_bytes=peak if phase == "step" else None) for phase in PHASES]


def _row(
    phase: str,
    timing: Timing | None,
    loss: float | None = None,
    peak_bytes: int | None = None,
    skipped: str | None = None,
) -> Row:
    return {
        "phase": phase,
        "lower_ms": timing and timing.lower,
        "median_ms": timing and timing.median,
        "upper_ms": timing and timing.upper,
        "repeats": timing.repeats if timing else 0,
        "peak_bytes": peak_bytes,
        "loss": loss,
        "skipped": skipped,
    }


def loss_function(case: Case, target: Tensor) -> Callable[[Tensor], Tensor]:
    loss: Callable[[Tensor], Tensor]
    if case.name == "lal":
        return functools.partial(
            locally_adaptive_loss, target=target, kernel_size=case.kernel_size, p=P, backend=case.backend
        )
    if case.backend:
        if case.name == "own_focal":
            return functools.partial(focal_loss, target=target, backend=case.backend)
        return functools.partial(cross_entropy, target=target, backend=case.backend)
    if case.name == "cross_entropy":
        loss = functools.partial(F.cross_entropy, target=target, ignore_index=VOID)
    elif case.name == "focal":
        loss = functools.partial(peers.focal_loss, target=target, ignore_index=VOID)
    elif case.name in libraries.LOSSES:
        loss = libraries.LOSSES[case.name](target)
    else:
        peer = {"unfold": peers.unfold_lal, "shift_add": peers.shift_add_lal}[case.name]
        loss = functools.partial(peer, target=target, kernel_size=case.kernel_size, p=P, ignore_index=VOID)
    if case.upsampling > 1:
        loss = peers.upsampled(loss, target.shape[1:])
    if not case.compiled:
        return loss
    torch.compiler.reset()  # each case is compiled for its own shape, and earlier ones must not exhaust the limit
    return torch.compile(loss, dynamic=False, fullgraph=True)
