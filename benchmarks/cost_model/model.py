"""What the kernels of a step cost on an NVIDIA GPU, told from their machine code: no GPU is needed, but Triton is.

A row says of a kernel how often it moves the logits, which registers and shared memory it takes, and what it executes
per label pixel and class (see `cost_model.paths`). Beside it stands a budget: while an H100 moves an element of float32
to or from its memory, its cores have the time for so many loads and instructions. If a step needs more of them for each
of its passes, they and not the memory decide how long it takes.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lal_triton.kernels import configs
from lal_triton.kernels.compilers import start_compilers
from lal_triton.options import LocalLoss, Pooling, usual_loss
from lal_triton.progress import about, announce, start_bar

if TYPE_CHECKING:
    from lal_triton.kernels.host.launch import Launch

TARGET = "sm_90"
IMAGES, SIDE = 2, 512  # of the labels, whole tiles of all kernels
KERNEL_SIZES = (1, 3, 5, 7)
CLASSES = (21, 150)
DTYPES = ("float32", "bfloat16")
RATIOS = (1, 4, 8)

# Of a kernel: 19 of kernel size 3 took 82 s on two cores of an AMD EPYC with a load of 5, and none of them was in
# Triton's cache (2026-11-28).
SECONDS = 4.3

# The budget of a pass over the logits, per pixel and class in float32; half in half precision.
LOADS_PER_PASS, INSTRUCTIONS_PER_PASS = 9.6, 38.0

Row = dict[str, Any]


class Case(NamedTuple):
    """A step whose launches can be recorded."""

    dtype: str
    kernel_size: int
    ratio: int  # of the labels' size to that of the logits
    classes: int
    default: bool = True  # of the two ways of `configs.FAMILIES["step"]`, the one that ships

    def check(self) -> None:
        low = (SIDE // self.ratio,) * 2
        if SIDE % self.ratio or (self.ratio > 1 and not configs.upsampling_is_served(low, (SIDE, SIDE), self.loss[0])):
            raise ValueError(f"no kernels for logits upsampled x {self.ratio} with kernel size {self.kernel_size}")

    @property
    def loss(self) -> tuple[LocalLoss, Pooling]:
        return usual_loss(self.kernel_size)

    @property
    def logits(self) -> torch.Tensor:
        side = SIDE // self.ratio
        return torch.empty(IMAGES, self.classes, side, side, dtype=getattr(torch, self.dtype), device="meta")


class Part(NamedTuple):
    """The launches of one kernel in a phase of a step, and by what to know that others are compiled to the same."""

    case: Case
    phase: str
    kernel: str
    identity: str


def measure(
    kernel_sizes: Sequence[int] = KERNEL_SIZES,
    classes: Sequence[int] = CLASSES,
    dtypes: Sequence[str] = DTYPES,
    ratios: Sequence[int] = RATIOS,
    defaults: Sequence[bool] = (True, False),
) -> list[Row]:
    """A row for each kernel that a step launches, be it the default or not, compiled in processes of their own."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("Triton is not installed, expected it to compile the kernels (it exists for Linux)")
    cases = [Case(*values) for values in itertools.product(dtypes, kernel_sizes, ratios, classes, defaults)]
    for case in cases:
        case.check()
    announce(f"listing the kernels of {len(cases)} steps")
    with start_compilers(os.cpu_count() or 1) as pool:
        parts = _without_repetitions(part for found in pool.map(list_parts, cases) for part in found)
        same: dict[str, list[Part]] = {}
        for part in sorted(parts, key=lambda part: -part.case.kernel_size):  # what takes longest begins first
            same.setdefault(part.identity, []).append(part)
        futures = [pool.submit(make_rows, group) for group in same.values()]
        announce(f"{len(futures)} kernels to compile, {about(SECONDS * len(futures))} on two busy cores")
        found: dict[Part, Row] = {}
        with start_bar(len(futures)) as bar:
            for future in as_completed(futures):
                found.update(future.result())
                bar.set_description_str(f"{bar.n + 1:.0f} of {len(futures)} kernels", refresh=False)
                bar.update()
    return [found[part] for part in parts]


def _without_repetitions(parts: Iterable[Part]) -> list[Part]:
    """Of a way that is not the default only what the default does not do."""
    found: dict[tuple[Any, ...], Part] = {}
    for part in parts:
        found.setdefault((part.case._replace(default=True), *part[1:]), part)
    return list(found.values())


def list_parts(case: Case) -> list[Part]:
    from lal_triton.benchmarks.cost_model import recorded

    return [
        Part(case, phase, kernel, " ".join(sorted({recorded.identity(launch) for launch in launches})))
        for (phase, kernel), launches in record(case).items()
    ]


@functools.lru_cache(maxsize=4)
def record(case: Case) -> dict[tuple[str, str], list[Launch]]:
    """The launches of a step with the shipped configurations, by phase and kernel."""
    from lal_triton.kernels import compiling

    target = torch.empty(IMAGES, SIDE, SIDE, dtype=torch.int64, device="meta")
    return compiling.record_step(case.logits, target, None, *case.loss, TARGET, case.default)


def make_rows(parts: Sequence[Part]) -> list[tuple[Part, Row]]:
    """Of parts that are compiled to the same, so that each kernel is compiled once."""
    from lal_triton.benchmarks.cost_model import recorded
    from lal_triton.kernels import compiling

    @functools.cache
    def compiled(identity: str) -> tuple[Any, Row, str]:
        launch, target = launches[identity], compiling.TARGETS[TARGET]
        kernel = launch.compile(launch.given, target)
        return kernel, compiling.describe(kernel, target), compiling.disassemble(kernel)

    rows = []
    for part in parts:
        case = part.case
        group = record(case)[part.phase, part.kernel]
        launches = {recorded.identity(launch): launch for launch in group}
        reports, paths, moved = [], [], 0.0
        for launch in group:
            kernel, report, disassembly = compiled(recorded.identity(launch))
            reports.append(report)
            paths.append(recorded.executed(launch, disassembly))
            moved += sum(_bytes_with_classes(launch, recorded.tensors_used(launch, kernel), case.classes))
        elements = IMAGES * SIDE * SIDE * case.classes
        row = {
            "kernel": part.kernel,
            "phase": part.phase,
            "default": case.default,
            "target": TARGET,
            "dtype": case.dtype,
            "kernel_size": case.kernel_size,
            "upsampling": case.ratio,
            "classes": case.classes,
            "passes": round(moved / (case.logits.numel() * case.logits.element_size()), 3),
            **{name: max(report[name] for report in reports) for name in ("registers", "spill_bytes", "shared_bytes")},
            "loads_per_pixel_class": round(sum(path.loads for path in paths) / elements, 4),
            "instructions_per_pixel_class": round(sum(path.instructions for path in paths) / elements, 4),
            "exps_per_pixel_class": round(sum(path.exps for path in paths) / elements, 4),
        }
        rows.append((part, row))
    return rows


def _bytes_with_classes(launch: Launch, tensors: dict[str, torch.Tensor], classes: int) -> Iterator[float]:
    """Of the tensors that grow with the classes; of an image, and of the scratch for tiles, what the launch takes."""
    from lal_triton.benchmarks.cost_model import recorded

    given = recorded.arguments_of(launch)
    for name, tensor in tensors.items():
        if name == "parts_ptr":
            if "axis_x" in given:
                down, across, span = given["axis_y"], given["axis_x"], given["axis_y"].span * given["axis_x"].span
                tiles, channels = len(tensors["out_ptr"]) * down.tiles * across.tiles, given["channels"]
            else:
                tiles, span = given["band"].tiles, given["SY"] * given["SX"]
                channels = classes + 4 * given["NORMALIZE"]
            yield tiles * span * channels * tensor.element_size()
        elif classes in tensor.shape[1::2]:
            share = _share_of_rows(given) if given.get("HAS_MOMENTS", True) else 1 / classes  # the label's own logit
            yield share * tensor.numel() * tensor.element_size()


def _share_of_rows(given: dict[str, Any]) -> float:
    """Of an image, which upsampled gradients take in bands of rows, or of rows of tiles."""
    if "rows" in given:
        return given["rows"] / given["h"]
    return given["tiles_y"] * given["TY"] / given["H"] if "tiles_y" in given else 1.0


def format_json(rows: Sequence[Row]) -> str:
    """A list, with a line per row."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
