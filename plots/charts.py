"""Time and memory of the losses, as PNG."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from lal_triton.plots import upsampled
from lal_triton.plots.style import caption_of, plain_ticks, tidy

Row = dict[str, Any]


class Style(NamedTuple):
    label: str
    colour: str  # of the palette of Okabe and Ito, which colour-blind readers can tell apart
    marker: str
    line: str


STYLES = {  # by name, backend and whether compiled
    ("unfold", None, False): Style("LAL by F.unfold", "#D55E00", "s", "-"),
    ("shift_add", None, False): Style("LAL by shift-and-add", "#CC79A7", "^", "-"),
    ("shift_add", None, True): Style("LAL by shift-and-add, compiled", "#CC79A7", "v", "--"),
    ("lal", "cpu", False): Style("lal_triton (cpu)", "#0072B2", "o", "-"),
    ("lal", "triton", False): Style("lal_triton (triton)", "#009E73", "D", "-"),
    ("cross_entropy", None, False): Style("F.cross_entropy", "#000000", ".", "-"),
    ("cross_entropy", None, True): Style("F.cross_entropy, compiled", "#000000", "x", ":"),
}


class Chart(NamedTuple):
    name: str
    title: str
    x: str  # the column on the horizontal axis
    x_label: str
    y: Callable[[Row], float]
    y_label: str


def milliseconds(row: Row) -> float:
    return float(row["median_ms"])


def memory_in_logits(row: Row) -> float:
    return float(row["peak_bytes"] / row["logits_bytes"])


CHARTS = (
    Chart(
        "time_vs_kernel_size",
        "Time of a training step (forward + backward) of the loss",
        "kernel_size",
        "kernel size K (window K x K)",
        milliseconds,
        "ms, median (log scale)",
    ),
    Chart(
        "memory_vs_kernel_size",
        "Peak extra memory of a training step of the loss",
        "kernel_size",
        "kernel size K (window K x K)",
        memory_in_logits,
        "multiple of the logits' size (log scale)",
    ),
    Chart(
        "time_vs_image_size",
        "Time of a training step (forward + backward) of the loss",
        "height",
        "side of the square image, pixels",
        milliseconds,
        "ms, median (log scale)",
    ),
)


def draw(results: Path, output: Path) -> list[Path]:
    """Writes the plots that the results suffice for, and returns their paths."""
    try:
        data = json.loads(Path(results).read_text())
        environment, rows = data["environment"], data["rows"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{results} is not a results file of `lal-triton bench`") from None
    every_step = [row for row in rows if row["phase"] == "step"]
    full = [row for row in every_step if row.get("upsampling", 1) == 1]
    steps = [row for row in full if not (row["skipped"] or row.get("beside") or row.get("one_thread"))]
    small = [row for row in every_step if row.get("upsampling", 1) > 1]
    written = []
    for chart in CHARTS:
        shown = comparable(steps, chart.x)
        if shown:
            path = Path(output) / f"{chart.name}.png"
            draw_chart(chart, shown, environment).savefig(path, dpi=150)
            written.append(path)
    for name, figure in (
        ("upsampled_time", upsampled.draw_time(small, environment)),
        ("memory_vs_image_size_upsampled", upsampled.draw_memory(small, environment)),
    ):
        if figure:
            path = Path(output) / f"{name}.png"
            figure.savefig(path, dpi=150)
            written.append(path)
    return written


def comparable(steps: list[Row], x: str) -> list[Row]:
    """The rows that differ in `x` alone: at the value of the other column where `x` varies most, if it does."""
    other = "height" if x == "kernel_size" else "kernel_size"
    windowed = [row for row in steps if row["kernel_size"]]
    variety = {
        value: len({row[x] for row in windowed if row[other] == value}) for value in {r[other] for r in windowed}
    }
    chosen = max(variety, key=lambda value: variety[value], default=None)
    if chosen is None or variety[chosen] < 2:
        return []
    return [row for row in steps if row[other] == chosen or (other == "kernel_size" and not row[other])]


def draw_chart(chart: Chart, rows: list[Row], environment: dict[str, Any]) -> Figure:
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(3.6 + 4.2 * len(dtypes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        draw_panel(axes, chart, [row for row in rows if row["dtype"] == dtype])
        axes.set_title(f"{dtype} logits", fontsize=10)
        axes.set_xlabel(chart.x_label)
    panels[0].set_ylabel(chart.y_label)
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    highest_first = sorted(handles.values(), key=lambda line: -list(line.get_ydata())[-1])
    figure.legend(handles=highest_first, loc="outside right center", frameon=False, fontsize=9, handlelength=3)
    windowed = next(row for row in rows if row["kernel_size"])
    figure.suptitle(chart.title, fontweight="bold", fontsize=11)
    figure.supxlabel(caption(chart, windowed, environment), fontsize=7.5, color="#555555")
    return figure


def draw_panel(axes: Axes, chart: Chart, rows: list[Row]) -> None:
    values = sorted({row[chart.x] for row in rows if row[chart.x]})
    for key, style in STYLES.items():
        own = [row for row in rows if (row["name"], row["backend"], row["compiled"]) == key]
        has_window = all(row[chart.x] for row in own)  # cross-entropy has none: the same at every kernel size
        points = sorted((x, chart.y(row)) for row in own for x in ([row[chart.x]] if has_window else values))
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=style.label,
                color=style.colour,
                marker=style.marker if has_window else "",
                linestyle=style.line,
                linewidth=2.5 if key[0] == "lal" else 1.5,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if chart.x == "height":
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    plain_ticks(axes.xaxis, axes.yaxis)
    tidy(axes)


def caption(chart: Chart, row: Row, environment: dict[str, Any]) -> str:
    fixed = f"{row['height']} x {row['width']}" if chart.x == "kernel_size" else f"K = {row['kernel_size']}"
    return caption_of(f"{fixed}, N = {row['batch_size']}, C = {row['num_classes']}", environment)
