"""What all charts share."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullLocator


def plain_ticks(*axes: Axis) -> None:
    """Numbers as they are in place of powers of ten, and no minor ticks."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def tidy(axes: Axes, **grid: Any) -> None:
    """A pale grid behind the data, and no frame above and to the right."""
    axes.grid(color="#dddddd", linewidth=0.6, **grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def caption_of(fixed: str, environment: dict[str, Any]) -> str:
    threads = f", threads: {environment['torch_threads']}" if environment["device_type"] == "cpu" else ""
    return f"{fixed} - {environment['device']}{threads} - torch {environment['torch']} - {environment['date']}"
