"""What all charts share."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from lal_triton.benchmarks.cases import loss_label
from lal_triton.benchmarks.load import busy_remark, was_busy

WIDTH = 7.2  # inches; wider figures are hard to read on a phone
DPI = 200
TITLE_WIDTH = 74  # characters
FOOTER_WIDTH = 135
LEGEND_WIDTH = 24
SPACE = "\N{NO-BREAK SPACE}"
GREY = "#555555"

Row = dict[str, Any]

# The palette of Okabe and Ito, which colour-blind readers can tell apart, and a grey beside it.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, PALE_GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
COLOURS = {
    "cross_entropy": BLACK,
    "focal": BLACK,
    "unfold": VERMILION,
    "shift_add": ORANGE,
    "own_cross_entropy": SKY_BLUE,
    "own_focal": PURPLE,
    "lal": BLUE,
}


def colour_of(row: Row) -> str:
    return COLOURS.get(row["name"], PALE_GREY)


def new_figure(height: float, title: str, footer: str, environment: Row, rows: Sequence[Row] = ()) -> Figure:
    """With a sentence above, and below it what was measured where; `rows` are those whose times are shown."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(wrap(title, TITLE_WIDTH), fontweight="bold", fontsize=10.5)
    texts = [wrap(caption_of(footer, environment), FOOTER_WIDTH), wrap(busy_remark(rows, "hollow"), FOOTER_WIDTH)]
    figure.supxlabel("\n".join(filter(None, texts)), fontsize=7, color=GREY)
    return figure


def wrap(text: str, width: int) -> str:
    """In lines of about the same length, none of which breaks at an equals sign or before a per cent sign."""
    text = text.replace(" = ", f"{SPACE}={SPACE}").replace(" %", f"{SPACE}%")
    lines = max(1, -(-len(text) // width))
    return textwrap.fill(text, min(width, len(text) // lines + 10), break_on_hyphens=False)


def face_of(row: Row) -> str:
    """Of a marker: hollow where the machine was busy."""
    return "white" if was_busy(row) else colour_of(row)


def plain_ticks(*axes: Axis) -> None:
    """Numbers as they are in place of powers of ten, and no minor ticks."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        axis.set_minor_locator(NullLocator())


def plain_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tidy(axes: Axes, **grid: Any) -> None:
    """A pale grid behind the data, and no frame above and to the right."""
    axes.grid(color="#dddddd", linewidth=0.6, **grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def caption_of(fixed: str, environment: dict[str, Any]) -> str:
    threads = f", threads: {environment['torch_threads']}" if environment["device_type"] == "cpu" else ""
    return f"{fixed} - {environment['device']}{threads} - torch {environment['torch']} - {environment['date']}"


def span(values: Sequence[float]) -> str:
    """The least and the greatest of them."""
    least, greatest = f"{min(values):.1f}", f"{max(values):.1f}"
    return least if least == greatest else f"{least} to {greatest}"


def faster(ours: Sequence[float], theirs: Sequence[float], peer: str) -> str:
    """In words, how times compare, pair by pair."""
    gains = [their / our for our, their in zip(ours, theirs, strict=True)]
    if min(gains) >= 1:
        return f"{span(gains)} times faster than {peer}"
    return f"{span([1 / gain for gain in gains])} times as long as {peer}"


def name_of(row: Row, with_window: bool = True) -> str:
    """A loss as charts call it, with its upsampling and its window."""
    own = {"own_cross_entropy": "cross-entropy", "own_focal": "focal loss", "lal": "LAL"}.get(row["name"])
    if own:
        name = f"lal_triton {own} ({row['backend']})"
    else:
        name = "F.interpolate + " * (row.get("upsampling", 1) > 1) + loss_label(row["name"], None, row["compiled"])
    return f"{name}, K = {row['kernel_size']}" if with_window and row["kernel_size"] else name


def add_legend(figure: Figure, **more: Line2D) -> None:
    """To the right, in the order of the lines' ends."""
    lines = [line for axes in figure.axes for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    last = {line.get_label(): line for line in lines}
    highest_first = sorted(last.values(), key=lambda line: -np.asarray(line.get_ydata(), float)[-1])
    handles = [*highest_first, *more.values()]
    labels = [*(str(line.get_label()) for line in highest_first), *more]
    wrapped = [wrap(label, LEGEND_WIDTH) for label in labels]
    figure.legend(handles, wrapped, loc="outside right center", frameon=False, fontsize=8, handlelength=2.5)
