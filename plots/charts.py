"""Time and memory of the losses, as PNG."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from lal_triton.benchmarks.load import was_busy
from lal_triton.plots import headline, upsampled
from lal_triton.plots.style import DPI, Row, add_legend, colour_of, faster, name_of, new_figure, plain_ticks, span, tidy

MARKERS = {"unfold": "s", "shift_add": "^", "lal": "o", "own_cross_entropy": "D", "cross_entropy": "."}
PEERS = {"unfold": "F.unfold", "cross_entropy": "F.cross_entropy"}  # of the titles


class Chart(NamedTuple):
    name: str
    x: str  # the column on the horizontal axis
    x_label: str
    y: Callable[[Row], float]
    y_label: str
    footer: str


def milliseconds(row: Row) -> float:
    return float(row["median_ms"])


def memory_in_logits(row: Row) -> float:
    return float(row["peak_bytes"] / row["logits_bytes"])


TIMES = "Forward + backward; points: medians, bars and bands: quartiles"
PEAKS = "Peak of what one forward + backward allocates"
CHARTS = (
    Chart("time_vs_kernel_size", "kernel_size", "kernel size K (window K x K)", milliseconds, "ms (log scale)", TIMES),
    Chart(
        "memory_vs_kernel_size",
        "kernel_size",
        "kernel size K (window K x K)",
        memory_in_logits,
        "multiple of the logits (log scale)",
        PEAKS,
    ),
    Chart("time_vs_image_size", "height", "side of the square image, pixels", milliseconds, "ms (log scale)", TIMES),
)


def draw(results: Path, output: Path) -> list[Path]:
    """Writes the plots that the results suffice for, and returns their paths."""
    try:
        data = json.loads(Path(results).read_text())
        figures = make_figures(data["rows"], data["environment"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{results} is not a results file of `lal-triton bench`") from None
    written = []
    for name, figure in figures.items():
        written.append(Path(output) / f"{name}.png")
        figure.savefig(written[-1], dpi=DPI)
    return written


def make_figures(rows: list[Row], environment: Row) -> dict[str, Figure]:
    every_step = [row for row in rows if row["phase"] == "step"]
    full = [row for row in every_step if row.get("upsampling", 1) == 1]
    steps = [row for row in full if not (row["skipped"] or row.get("beside") or row.get("one_thread"))]
    small = [row for row in every_step if row.get("upsampling", 1) > 1]
    figures = {chart.name: draw_chart(chart, steps, environment) for chart in CHARTS}
    figures["upsampled_headline"] = headline.draw_headline(small, environment)
    figures["upsampled_time"] = upsampled.draw_time(small, environment)
    figures["memory_vs_image_size_upsampled"] = upsampled.draw_memory(small, environment)
    return {name: figure for name, figure in figures.items() if figure}


def comparable(steps: list[Row], x: str) -> list[Row]:
    """The rows of the chart's losses that differ in `x` alone: where it varies most in the other column, if it does."""
    other = "height" if x == "kernel_size" else "kernel_size"
    drawn = [row for row in steps if row["name"] in MARKERS]
    windowed = [row for row in drawn if row["kernel_size"]]
    variety = {
        value: len({row[x] for row in windowed if row[other] == value}) for value in {r[other] for r in windowed}
    }
    chosen = max(variety, key=lambda value: variety[value], default=None)
    if chosen is None or variety[chosen] < 2:
        return []
    return [row for row in drawn if row[other] == chosen or (other == "kernel_size" and not row[other])]


def draw_chart(chart: Chart, steps: list[Row], environment: Row) -> Figure | None:
    """A panel per dtype, on one scale; None where the rows do not vary."""
    rows = comparable(steps, chart.x)
    if not rows:
        return None
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    windowed = next(row for row in rows if row["kernel_size"])
    size = f"{windowed['height']} x {windowed['width']}"
    fixed = size if chart.x == "kernel_size" else f"K = {windowed['kernel_size']}"
    footer = f"{chart.footer}; {fixed}, N = {windowed['batch_size']}, C = {windowed['num_classes']}"
    timed = chart.y is milliseconds
    figure = new_figure(4.2, title_of(chart, rows), footer, environment, rows if timed else ())
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        draw_panel(axes, chart, [row for row in rows if row["dtype"] == dtype])
        axes.set_title(f"{dtype} logits", fontsize=9)
        axes.set_xlabel(chart.x_label, fontsize=9)
    panels[0].set_ylabel(chart.y_label, fontsize=9)
    add_legend(figure)
    return figure


def title_of(chart: Chart, rows: list[Row]) -> str:
    """LAL beside its peers, wherever both were measured."""
    eager = [row for row in rows if not row["compiled"]]
    own = [row for row in eager if row["name"] == "lal"]
    said = []
    for name, title in PEERS.items():
        found = {(row["dtype"], row["height"], row["kernel_size"]): row for row in eager if row["name"] == name}
        keys = [(row["dtype"], row["height"], row["kernel_size"] if name == "unfold" else None) for row in own]
        pairs = [(chart.y(row), chart.y(found[key])) for row, key in zip(own, keys, strict=True) if key in found]
        if pairs:
            ours, theirs = zip(*pairs, strict=True)
            said.append(faster(ours, theirs, title) if chart.y is milliseconds else f"{title} {span(theirs)}")
    if chart.y is milliseconds:
        return f"LAL with lal_triton: {', '.join(said)}" if said else "Time of a training step of LAL"
    if not own:
        return "Peak memory of a training step of LAL"
    return ", ".join([f"LAL with lal_triton needs {span(list(map(chart.y, own)))} times the logits' memory", *said])


def draw_panel(axes: Axes, chart: Chart, rows: list[Row]) -> None:
    values = sorted({row[chart.x] for row in rows if row[chart.x]})
    for name in dict.fromkeys(name_of(row, with_window=False) for row in rows):
        own = [row for row in rows if name_of(row, with_window=False) == name]
        if all(row[chart.x] for row in own):
            own.sort(key=lambda row: row[chart.x])
            draw_line(axes, chart, name, [row[chart.x] for row in own], own, MARKERS[own[0]["name"]])
        else:  # cross-entropy has no window: the same at every kernel size
            draw_line(axes, chart, name, values, own * len(values), "")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if chart.x == "height":
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    plain_ticks(axes.xaxis, axes.yaxis)
    tidy(axes)


def draw_line(axes: Axes, chart: Chart, name: str, x: list[int], rows: list[Row], marker: str) -> None:
    """With its quartiles, where it is of times, and hollow points where the machine was busy."""
    colour = colour_of(rows[0])
    width = 2.5 if rows[0]["name"] == "lal" else 1.5
    line = ":" if rows[0]["compiled"] else "-"
    y = [chart.y(row) for row in rows]
    axes.plot(x, y, label=name, color=colour, marker=marker, markersize=5, linestyle=line, linewidth=width)
    if chart.y is not milliseconds:
        return
    lower, upper = ([row[f"{side}_ms"] for row in rows] for side in ("lower", "upper"))
    if marker:
        axes.vlines(x, lower, upper, color=colour, linewidth=4, alpha=0.5)
    else:
        axes.fill_between(x, lower, upper, color=colour, alpha=0.2, linewidth=0)
    busy = [index for index, row in enumerate(rows) if was_busy(row)]
    if busy:
        points = [x[index] for index in busy], [y[index] for index in busy]
        axes.plot(*points, "o", label="_busy", color=colour, markerfacecolor="white", markersize=6)
