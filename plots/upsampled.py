"""What upsampling costs: time and memory of the losses on logits smaller than the labels."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator

from lal_triton.plots.style import (
    GREY,
    Row,
    add_legend,
    colour_of,
    face_of,
    faster,
    name_of,
    new_figure,
    plain_number,
    plain_ticks,
    span,
    tidy,
)

GIB = 2**30
ROOM = 8  # times the longest time, for its number
PEER = "F.interpolate + F.cross_entropy"
BEYOND = Line2D([], [], color=GREY, marker="x", markersize=9, linestyle=(0, (1, 3)))  # the legend's of any loss


def shown(row: Row) -> bool:
    return not row["skipped"] or bool(row["needed_bytes"])


def pairs(steps: list[Row]) -> list[tuple[Row, Row]]:
    """Our cross-entropy and eager F.cross_entropy of the same sizes."""
    keys = ("dtype", "upsampling", "num_classes", "height", "memory_sweep")
    found: dict[str, dict[tuple[object, ...], Row]] = {"own_cross_entropy": {}, "cross_entropy": {}}
    for row in steps:
        if row["name"] in found and not (row["compiled"] or row["skipped"]):
            found[row["name"]][tuple(row[key] for key in keys)] = row
    own, other = found.values()
    return [(own[key], other[key]) for key in own if key in other]


def draw_time(steps: list[Row], environment: Row) -> Figure | None:
    """The step's time as points on one logarithmic axis: a column of panels per number of classes, a row per ratio."""
    rows = [row for row in steps if not row["memory_sweep"]]
    if all(row["skipped"] for row in rows):
        return None
    columns = sorted({row["num_classes"] for row in rows})
    lines = list(dict.fromkeys((row["dtype"], row["upsampling"]) for row in rows))
    names = list(dict.fromkeys(name_of(row) for row in rows if shown(row)))
    title = "Time of a training step of the loss on upsampled logits"
    compared = pairs(rows)
    if compared:
        ours, theirs = ([row["median_ms"] for row in side] for side in zip(*compared, strict=True))
        title = f"Cross-entropy through an upsampling: {faster(ours, theirs, PEER)}"
    size = f"labels {rows[0]['batch_size']} x {rows[0]['height']} x {rows[0]['width']}"
    footer = f"Forward + backward, {size}. Points: medians, lines: quartiles"
    height = 1.1 + len(lines) * (0.4 + 0.2 * len(names))
    figure = new_figure(height, title, footer, environment, rows)
    panels = figure.subplots(len(lines), len(columns), sharex=True, sharey=True, squeeze=False)
    measured = [row for row in rows if not row["skipped"]]
    limits = min(row["lower_ms"] for row in measured) / 2, ROOM * max(row["upper_ms"] for row in measured)
    for axes_line, (dtype, ratio) in zip(panels, lines, strict=True):
        for axes, num_classes in zip(axes_line, columns, strict=True):
            at = (dtype, ratio, num_classes)
            own = [row for row in rows if (row["dtype"], row["upsampling"], row["num_classes"]) == at]
            draw_points(axes, names, [row for row in own if shown(row)], limits)
            axes.set_title(f"C = {num_classes}, by {ratio}, {dtype}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("ms (log scale)", fontsize=8.5)
    return figure


def draw_points(axes: Axes, names: list[str], rows: list[Row], limits: tuple[float, float]) -> None:
    for row in rows:
        y = names.index(name_of(row))
        if row["skipped"]:
            text = f" does not fit (needs {row['needed_bytes'] / GIB:,.1f} GiB)"
            axes.text(limits[0], y, text, va="center", fontsize=7.5, color=colour_of(row))
            continue
        axes.plot([row["lower_ms"], row["upper_ms"]], [y, y], color=colour_of(row), linewidth=2)
        axes.plot(row["median_ms"], y, "o", color=colour_of(row), markerfacecolor=face_of(row), markersize=4.5)
        at = (max(row["median_ms"], row["upper_ms"]), y)
        number = plain_number(row["median_ms"])
        axes.annotate(number, at, (5, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlim(limits)
    steps = (1,) if limits[1] / limits[0] > 1000 else (1, 2, 5)
    marks = [step * 10.0**power for power in range(-6, 9) for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([mark for mark in marks if mark < limits[1] / 2]))
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    plain_ticks(axes.xaxis)
    tidy(axes)


def draw_memory(steps: list[Row], environment: Row) -> Figure | None:
    """The step's peak memory against the size; what does not fit stands where it is estimated to be."""
    rows = [row for row in steps if row["memory_sweep"] and shown(row)]
    if all(row["skipped"] for row in rows):
        return None
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    title = "Peak memory of a training step of the loss on upsampled logits"
    compared = pairs(rows)
    if compared:
        saved = span([other["peak_bytes"] / own["peak_bytes"] for own, other in compared])
        by = f"an upsampling by {rows[0]['upsampling']}"
        title = f"Cross-entropy through {by}: {saved} times less memory than {PEER}"
    footer = f"Peak of what one forward + backward allocates, N = {rows[0]['batch_size']}, C = {rows[0]['num_classes']}"
    figure = new_figure(4.2, title, footer, environment)
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        draw_sizes(axes, [row for row in rows if row["dtype"] == dtype], environment.get("memory_limit_bytes"))
        axes.set_title(f"{dtype} logits", fontsize=9)
        axes.set_xlabel("side of the square labels, pixels", fontsize=9)
    panels[0].set_ylabel("GiB (log scale)", fontsize=9)
    add_legend(figure, **({"does not fit, estimate": BEYOND} if any(row["skipped"] for row in rows) else {}))
    return figure


def draw_sizes(axes: Axes, rows: list[Row], limit: int | None) -> None:
    for name in dict.fromkeys(name_of(row) for row in rows):
        own = sorted((row for row in rows if name_of(row) == name), key=lambda row: row["height"])
        colour = colour_of(own[0])
        fits = [(row["height"], row["peak_bytes"] / GIB) for row in own if not row["skipped"]]
        beyond = [(row["height"], row["needed_bytes"] / GIB) for row in own if row["skipped"]]
        if fits:
            size = 9 if own[0]["name"] == "own_cross_entropy" else 5  # seen around that of the focal loss
            line = ":" if own[0]["compiled"] else "-"
            axes.plot(*zip(*fits, strict=True), label=name, color=colour, marker="o", markersize=size, linestyle=line)
        if beyond:
            label = "_" if fits else name
            points = [*fits[-1:], *beyond]
            crosses = [len(points) - len(beyond) + index for index in range(len(beyond))]
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                color=colour,
                marker="x",
                markersize=9,
                markevery=crosses,
                linestyle=(0, (1, 3)),
            )
    if limit:
        axes.axhline(limit / GIB, color=GREY, linewidth=1)
        axes.annotate("memory limit", (0.01, limit / GIB), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    sizes = sorted({row["height"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.yaxis.set_major_locator(LogLocator())
    plain_ticks(axes.xaxis, axes.yaxis)
    tidy(axes)
