"""Runs the cases and writes what was measured, one row per case and phase."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lal_triton.benchmarks import environment, peers
from lal_triton.benchmarks.cases import Case, Settings, plan
from lal_triton.benchmarks.memory import peak_bytes
from lal_triton.benchmarks.network import predict
from lal_triton.benchmarks.scenes import VOID, Scene, make_batch
from lal_triton.benchmarks.timing import Effort, Timing, time_copy, time_step
from lal_triton.functional import locally_adaptive_loss

P = 3.0  # the Minkowski exponent that the paper found best
PHASES = ("forward", "backward", "step")
EFFORTS = {  # by device and --quick
    ("cpu", False): Effort(seconds=1.5, fewest=3, most=50),
    ("cpu", True): Effort(seconds=0.3, fewest=2, most=5),
    ("cuda", False): Effort(seconds=0.5, fewest=20, most=100),
    ("cuda", True): Effort(seconds=0.1, fewest=5, most=20),
}

Row = dict[str, Any]
Examples = list[tuple[np.ndarray, np.ndarray]]  # logits and labels of whole images


def run(settings: Settings, scenes: list[Scene], path: Path) -> None:
    """Writes the results after each case, so that an interrupted run leaves what it has."""
    described = environment.describe(settings.device)
    examples = [(predict(*scene, settings.num_classes), scene.labels) for scene in scenes]
    rows: list[Row] = []
    write_results(path, described, rows)
    with tqdm(plan(settings), unit="case", dynamic_ncols=True, disable=None) as progress:
        for case in progress:
            progress.set_description(f"{case.label}, {case.size} x {case.size}")
            rows += measure(case, settings, examples)
            write_results(path, described, rows)


def write_results(path: Path, described: dict[str, object], rows: list[Row]) -> None:
    path.write_text(json.dumps({"environment": described, "rows": rows}, indent=1) + "\n")


def measure(case: Case, settings: Settings, examples: Examples) -> list[Row]:
    """The rows of a case; a case that cannot run gives rows that say why."""
    shared = {
        "name": case.name,
        "backend": case.backend,
        "compiled": case.compiled,
        "kernel_size": case.kernel_size,
        "batch_size": settings.batch_size,
        "num_classes": settings.num_classes,
        "height": case.size,
        "width": case.size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "logits_bytes": settings.batch_size * settings.num_classes * case.size**2 * case.dtype.itemsize,
    }
    skipped = case.skipped
    if skipped is None:
        try:
            return [shared | row for row in _measure(case, settings, examples)]
        except Exception as error:  # whatever stops one case, the others can still be measured
            skipped = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    phases = ("copy",) if case.name == "copy" else PHASES
    return [shared | _row(phase, None, skipped=skipped) for phase in phases]


def _measure(case: Case, settings: Settings, examples: Examples) -> list[Row]:
    logits, target = make_batch(examples, settings.batch_size, case.size)
    logits = logits.to(settings.device, case.dtype).requires_grad_()
    target = target.to(settings.device)
    effort = EFFORTS[settings.device.type, settings.quick]
    if case.name == "copy":
        return [_row("copy", time_copy(logits, effort))]

    loss = loss_function(case, target)

    def step() -> Tensor:
        return torch.autograd.grad(loss(logits), logits)[0]

    value = loss(logits).item()
    step()  # compiles, where there is something to compile
    peak = peak_bytes(step, settings.device)
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
    if case.name == "lal":
        return functools.partial(
            locally_adaptive_loss, target=target, kernel_size=case.kernel_size, p=P, backend=case.backend
        )
    if case.name == "cross_entropy":
        loss = functools.partial(F.cross_entropy, target=target, ignore_index=VOID)
    else:
        peer = {"unfold": peers.unfold_lal, "shift_add": peers.shift_add_lal}[case.name]
        loss = functools.partial(peer, target=target, kernel_size=case.kernel_size, p=P, ignore_index=VOID)
    if not case.compiled:
        return loss
    torch.compiler.reset()  # each case is compiled for its own shape, and earlier ones must not exhaust the limit
    return torch.compile(loss, dynamic=False, fullgraph=True)
