"""The results as text: one line per loss, next to eager cross-entropy and to F.unfold on the same input."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lal_triton.benchmarks.cases import loss_label
from lal_triton.benchmarks.load import busy_remark, was_busy

Row = dict[str, Any]
HEADER = (
    f"{'':30} {'K':>2} {'forward':>9} {'backward':>9} {'step':>9} {'quartiles':>17} "
    f"{'x CE':>7} {'x unfold':>8} {'GB/s':>6} {'memory':>7}"
)
LEGEND = (
    "Times in ms (medians). x CE, x unfold: step time over that of eager F.cross_entropy, of LAL by F.unfold.\n"
    "GB/s: three passes over the logits in the step time. memory: peak extra memory of the step, in logits;\n"
    "where they are upsampled, in logits of full resolution, which the peers get from F.interpolate."
)
PASSES = 3  # the forward pass must read the logits; the backward pass must read them and write their gradient


def format_table(results: dict[str, Any]) -> str:
    where = results["environment"]
    lines = [f"{where['device']}, threads: {where['torch_threads']}, torch {where['torch']}, {where['date']}"]
    remark = busy_remark([row for row in results["rows"] if row["phase"] == "step"], 'marked "busy"')
    if remark:
        lines.append(remark)
    ordered = sorted(results["rows"], key=_setting)
    for _, group in groupby(ordered, key=_setting):
        lines += ["", *_format_setting(list(group))]
    return "\n".join([*lines, "", LEGEND])


def _setting(row: Row) -> tuple[Any, ...]:
    sizes = row["batch_size"], row["num_classes"], row["height"], row["width"]
    return row["dtype"], upsampling(row), row.get("memory_sweep", False), *_circumstances(row), *sizes


def _circumstances(row: Row) -> tuple[bool, int]:
    return row.get("one_thread", False), row.get("beside", 0)


def upsampling(row: Row) -> int:
    return int(row.get("upsampling", 1))  # older files have no such column


def _format_setting(rows: list[Row]) -> Iterator[str]:
    first = rows[0]
    title = (
        f"{first['height']} x {first['width']}, N = {first['batch_size']}, C = {first['num_classes']}, {first['dtype']}"
    )
    if upsampling(first) > 1:
        title += f", logits upsampled x {upsampling(first)}"
    if first.get("one_thread"):
        title += ", on one thread"
    if first.get("beside"):
        title += f", beside {first['beside']} busy processes"
    copies = [row for row in rows if row["phase"] == "copy" and row["median_ms"]]
    if copies:
        title += f"; a copy of the logits runs at {_rate(copies[0], passes=2):.1f} GB/s"
    yield title
    yield HEADER

    losses = [list(group) for _, group in groupby((row for row in rows if row["phase"] != "copy"), key=_loss)]
    steps = [phases[-1] for phases in losses]
    cross_entropy = _step_ms(steps, "cross_entropy", None)
    for phases in sorted(losses, key=lambda phases: (phases[-1]["kernel_size"] or 0, phases[-1]["median_ms"] or 1e9)):
        step = phases[-1]
        name = f"{loss_label(step['name'], step['backend'], step['compiled']):30} {step['kernel_size'] or '-':>2}"
        if step["skipped"]:
            yield f"{name}   skipped: {step['skipped']}"[:118]
            continue
        unfold = _step_ms(steps, "unfold", step["kernel_size"])
        times = " ".join(f"{row['median_ms']:9.3f}" for row in phases)
        spread = f"{step['lower_ms']:.3f}-{step['upper_ms']:.3f}"
        yield (
            f"{name} {times} {spread:>17} {_ratio(step['median_ms'], cross_entropy):>7} "
            f"{_ratio(step['median_ms'], unfold):>8} {_rate(step, PASSES):6.1f} "
            f"{step['peak_bytes'] / step.get('full_bytes', step['logits_bytes']):6.2f}x{' busy' * was_busy(step)}"
        )


def _loss(row: Row) -> tuple[Any, ...]:
    return row["name"], row["backend"], row["compiled"], row["kernel_size"]


def _step_ms(steps: Iterable[Row], name: str, kernel_size: int | None) -> float | None:
    eager = (row for row in steps if (row["name"], row["kernel_size"], row["compiled"]) == (name, kernel_size, False))
    return next((row["median_ms"] for row in eager), None)


def _ratio(milliseconds: float, other: float | None) -> str:
    return f"{milliseconds / other:.2f}" if other else "-"


def _rate(row: Row, passes: int) -> float:
    return float(passes * row["logits_bytes"] / row["median_ms"] / 1e6)
