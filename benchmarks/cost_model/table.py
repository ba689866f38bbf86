"""The costs of `cost_model.model` as text, each step beside its budget."""

import itertools
from collections.abc import Sequence

from lal_triton.benchmarks.cost_model.model import INSTRUCTIONS_PER_PASS, LOADS_PER_PASS, Row

HEAD = (
    f"{'kernel':20} {'phase':9} {'passes':>7} {'registers':>9} {'spill':>6} {'shared':>7} {'exps':>6} {'loads':>7} "
    f"{'instructions':>12}"
)


def format_table(rows: Sequence[Row]) -> str:
    steps = itertools.groupby(
        rows, key=lambda row: (row["dtype"], row["kernel_size"], row["upsampling"], row["classes"])
    )
    return "\n\n".join("\n".join(_step(list(group))) for _, group in steps)


def budget(step: Sequence[Row]) -> tuple[float, float]:
    """The loads and instructions per label pixel and class that take as long as the passes of the step's kernels."""
    first = step[0]
    width = {"float32": 1.0}.get(first["dtype"], 0.5)
    passes = sum(row["passes"] for row in step) * width / first["upsampling"] ** 2
    return LOADS_PER_PASS * passes, INSTRUCTIONS_PER_PASS * passes


def _step(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    upsampled = f", logits upsampled x {first['upsampling']}" if first["upsampling"] > 1 else ""
    title = f"{first['target']}, {first['dtype']}, kernel size {first['kernel_size']}, {first['classes']} classes"
    lines = [title + upsampled, HEAD, *(_line(row) for row in rows if row["default"])]
    lines += _total([row for row in rows if row["default"]])
    others = [row for row in rows if not row["default"]]
    return [*lines, "  not by default:", *map(_line, others)] if others else lines


def _line(row: Row) -> str:
    return (
        f"{row['kernel']:20} {row['phase']:9} {row['passes']:7.2f} {row['registers']:9} {row['spill_bytes']:6} "
        f"{row['shared_bytes']:7} {row['exps_per_pixel_class']:6.2f} {row['loads_per_pixel_class']:7.2f} "
        f"{row['instructions_per_pixel_class']:12.2f}"
    )


def _total(step: Sequence[Row]) -> list[str]:
    names = "passes", "exps_per_pixel_class", "loads_per_pixel_class", "instructions_per_pixel_class"
    passes, exps, loads, instructions = (sum(row[name] for row in step) for name in names)
    most_loads, most_instructions = budget(step)
    blank = f"{'':9} {'':6} {'':7}"
    return [
        f"{'step':20} {'':9} {passes:7.2f} {blank} {exps:6.2f} {loads:7.2f} {instructions:12.2f}",
        f"{'budget':20} {'':9} {'':7} {blank} {'':6} {most_loads:7.2f} {most_instructions:12.2f}",
        f"{'ratio':20} {'':9} {'':7} {blank} {'':6} {loads / most_loads:7.2f} {instructions / most_instructions:12.2f}",
    ]
