"""The gain at a glance: cross-entropy and LAL on logits smaller than the labels, beside what everyone has."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lal_triton.plots.style import Row, colour_of, face_of, faster, new_figure, plain_number, plain_ticks, tidy


def choose(steps: list[Row]) -> dict[str, Row]:
    """The bars by label: at the least ratio and the most classes, of the first dtype and backend, LAL at K = 5."""
    timed = [row for row in steps if not (row["memory_sweep"] or row["skipped"] or row["compiled"])]
    if not timed:
        return {}
    best = min(timed, key=lambda row: (row["upsampling"], -row["num_classes"]))
    keys = ("upsampling", "num_classes", "dtype")
    rows = [row for row in timed if all(row[key] == best[key] for key in keys)]
    windows = sorted((row for row in rows if row["name"] == "lal"), key=lambda row: abs(row["kernel_size"] - 5))
    found = {row["name"]: row for row in reversed([*windows, *(row for row in rows if row["name"] != "lal")])}
    labels = {
        "cross_entropy": "F.interpolate +\nF.cross_entropy",
        "own_cross_entropy": "lal_triton\ncross-entropy",
        "lal": "lal_triton\nLAL {kernel_size} x {kernel_size}",
    }
    return {text.format(**found[name]): found[name] for name, text in labels.items() if name in found}


def draw_headline(steps: list[Row], environment: Row) -> Figure | None:
    """Linear bars of time and of memory, the quartiles of the time as a line."""
    bars = choose(steps)
    found = {row["name"]: row for row in bars.values()}
    if not {"cross_entropy", "own_cross_entropy"} <= set(found):
        return None
    own, other = found["own_cross_entropy"], found["cross_entropy"]
    title = (
        f"Cross-entropy through an upsampling by {own['upsampling']}: "
        f"{faster([own['median_ms']], [other['median_ms']], 'in PyTorch')}, "
        f"in {memory(own):.2f} of the logits' memory instead of {memory(other):.2f}"
    )
    size = f"labels {own['batch_size']} x {own['height']} x {own['width']}, C = {own['num_classes']}, {own['dtype']}"
    footer = f"Forward + backward, {size}. Bars: medians, lines: quartiles"
    figure = new_figure(2.9, title, footer, environment, list(bars.values()))
    time, peak = figure.subplots(1, 2, sharey=True)
    rows = list(bars.values())
    for y, row in enumerate(rows):
        time.plot([row["lower_ms"], row["upper_ms"]], [y, y], color="#888888", lw=2, zorder=3, solid_capstyle="butt")
        for axes, end, number in (
            (time, max(row["median_ms"], row["upper_ms"]), plain_number(row["median_ms"])),
            (peak, memory(row), f"{memory(row):.2f}"),
        ):
            axes.annotate(number, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=10)
    times = [row["median_ms"] for row in rows]
    draw_bars(time, bars, times, list(map(face_of, rows)), "time of a step, ms")
    unit = "peak memory, multiple of\nthe full-resolution logits"
    draw_bars(peak, bars, list(map(memory, rows)), list(map(colour_of, rows)), unit)
    return figure


def memory(row: Row) -> float:
    return float(row["peak_bytes"] / row["full_bytes"])


def draw_bars(axes: Axes, bars: dict[str, Row], values: list[float], faces: list[str], label: str) -> None:
    edges = list(map(colour_of, bars.values()))
    axes.barh(range(len(bars)), values, height=0.66, color=faces, edgecolor=edges)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=9.5)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.35 * max(values))
    axes.set_xlabel(label, fontsize=9.5)
    plain_ticks(axes.xaxis)
    tidy(axes, axis="x")
