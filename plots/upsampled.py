"""What upsampling costs: time and memory of the losses on logits smaller than the labels."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator

from lal_triton.plots.style import caption_of, plain_ticks, tidy

GIB = 2**30
LEAST_BAR = 0.6  # of the fastest loss: where the bars of a logarithmic axis begin

Row = dict[str, Any]


def loss_name(row: Row) -> str:
    own = f"lal_triton ({row['backend']}), "
    return {
        "cross_entropy": "F.interpolate + F.cross_entropy" + (", compiled" if row["compiled"] else ""),
        "unfold": f"F.interpolate + LAL by F.unfold, K = {row['kernel_size']}",
        "own_cross_entropy": f"{own}cross-entropy",
        "own_focal": f"{own}focal loss",
        "lal": f"{own}LAL, K = {row['kernel_size']}",
    }[row["name"]]


def style(row: Row) -> dict[str, Any]:
    """Colours of the palette of Okabe and Ito, which colour-blind readers can tell apart."""
    if row["name"] == "cross_entropy":
        return {"color": "#000000", "marker": ".", "linestyle": ":" if row["compiled"] else "-"}
    if row["name"] == "unfold":
        return {"color": "#D55E00", "marker": "s", "linestyle": "-"}
    colours = {"own_cross_entropy": "#56B4E9", "own_focal": "#CC79A7"}
    line = "--" if row["backend"] == "cpu" else "-"
    size = 9 if row["name"] == "own_cross_entropy" else 5  # seen around that of the focal loss, which needs as much
    return {"color": colours.get(row["name"], "#009E73"), "marker": "o", "markersize": size, "linestyle": line}


def shown(row: Row) -> bool:
    return not row["skipped"] or bool(row["needed_bytes"])


def draw_time(steps: list[Row], environment: dict[str, Any]) -> Figure | None:
    """The step's time: a column of panels per number of classes, a row per dtype and ratio."""
    rows = [row for row in steps if not row["memory_sweep"]]
    if all(row["skipped"] for row in rows):
        return None
    columns = sorted({row["num_classes"] for row in rows})
    lines = list(dict.fromkeys((row["dtype"], row["upsampling"]) for row in rows))
    names = list(dict.fromkeys(loss_name(row) for row in rows))
    height = 1.2 + len(lines) * (0.6 + 0.26 * len(names))
    figure = Figure(figsize=(4.4 + 3.6 * len(columns), height), layout="constrained")
    panels = figure.subplots(len(lines), len(columns), sharey=True, squeeze=False)
    for axes_line, (dtype, ratio) in zip(panels, lines, strict=True):
        for axes, num_classes in zip(axes_line, columns, strict=True):
            at = (dtype, ratio, num_classes)
            draw_bars(axes, names, [r for r in rows if (r["dtype"], r["upsampling"], r["num_classes"]) == at])
            axes.set_title(f"C = {num_classes}, upsampled x {ratio}, {dtype}", fontsize=10)
    figure.suptitle("Time of a training step (forward + backward) of the loss", fontweight="bold", fontsize=11)
    fixed = f"labels {rows[0]['height']} x {rows[0]['width']}, N = {rows[0]['batch_size']}"
    figure.supxlabel("ms, median (log scale)\n" + caption_of(fixed, environment), fontsize=8, color="#555555")
    return figure


def draw_bars(axes: Axes, names: list[str], rows: list[Row]) -> None:
    measured = [row["median_ms"] for row in rows if not row["skipped"]]
    start = LEAST_BAR * min(measured, default=1)
    for row in rows:
        y = names.index(loss_name(row))
        if row["skipped"]:
            text = " not measured"
            if row["needed_bytes"]:
                text = f" \N{MULTIPLICATION SIGN} does not fit (needs {row['needed_bytes'] / GIB:,.1f} GiB)"
            axes.text(start, y, text, va="center", fontsize=8, color=style(row)["color"])
            continue
        axes.barh(y, row["median_ms"] - start, left=start, color=style(row)["color"], height=0.7)
        axes.text(row["median_ms"], y, f" {plain_number(row['median_ms'])}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(start, 4 * max(measured, default=1))  # room for the numbers
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    plain_ticks(axes.xaxis)
    tidy(axes, axis="x")


def plain_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw_memory(steps: list[Row], environment: dict[str, Any]) -> Figure | None:
    """The step's peak memory against the size; what does not fit stands where it is estimated to be."""
    rows = [row for row in steps if row["memory_sweep"] and shown(row)]
    if all(row["skipped"] for row in rows):
        return None
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(4.8 + 4.2 * len(dtypes), 4.8), layout="constrained")
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        draw_sizes(axes, [row for row in rows if row["dtype"] == dtype], environment.get("memory_limit_bytes"))
        axes.set_title(f"{dtype} logits", fontsize=10)
        axes.set_xlabel("side of the square labels, pixels")
    panels[0].set_ylabel("GiB (log scale)")
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label()[0] != "_"}
    highest_first = sorted(handles.values(), key=lambda line: -list(line.get_ydata())[-1] / list(line.get_xdata())[-1])
    if any(row["skipped"] for row in rows):
        cross = Line2D([], [], color="#555555", marker="x", markersize=9, linestyle=(0, (1, 3)))
        cross.set_label("does not fit, estimate")
        highest_first.append(cross)
    figure.legend(handles=highest_first, loc="outside right center", frameon=False, fontsize=9, handlelength=3)
    figure.suptitle("Peak extra memory of a training step of the loss", fontweight="bold", fontsize=11)
    fixed = f"N = {rows[0]['batch_size']}, C = {rows[0]['num_classes']}, logits upsampled x {rows[0]['upsampling']}"
    figure.supxlabel(caption_of(fixed, environment), fontsize=7.5, color="#555555")
    return figure


def draw_sizes(axes: Axes, rows: list[Row], limit: int | None) -> None:
    for name in dict.fromkeys(loss_name(row) for row in rows):
        own = sorted((row for row in rows if loss_name(row) == name), key=lambda row: row["height"])
        look = style(own[0])
        fits = [(row["height"], row["peak_bytes"] / GIB) for row in own if not row["skipped"]]
        beyond = [(row["height"], row["needed_bytes"] / GIB) for row in own if row["skipped"]]
        if fits:
            axes.plot(*zip(*fits, strict=True), label=name, **look)
        if beyond:
            label = "_" if fits else name
            line = [*fits[-1:], *beyond]
            crosses = [len(line) - len(beyond) + index for index in range(len(beyond))]
            axes.plot(
                *zip(*line, strict=True),
                label=label,
                color=look["color"],
                marker="x",
                markersize=9,
                markevery=crosses,
                linestyle=(0, (1, 3)),
            )
    if limit:
        axes.axhline(limit / GIB, color="#555555", linewidth=1)
        axes.annotate("memory limit", (0.01, limit / GIB), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    sizes = sorted({row["height"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.yaxis.set_major_locator(LogLocator())
    plain_ticks(axes.xaxis, axes.yaxis)
    tidy(axes)
