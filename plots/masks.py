"""Pictures of held-out pixels: what the losses' networks predict, and what CE and LAL see in the same logits."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.lib.stride_tricks import sliding_window_view

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.voc import voc_colour
from lal_triton.plots.style import SKY_BLUE, new_figure, plain_ticks

Results = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

VOID_COLOUR = "#e0e0c0"  # as VOC shows it
ERROR_COLOUR = "#F0E442"
BOX = 14  # side of the hardest part of the maps, in pixels
COLUMNS = ("ce", "center", "focal", "lal5")  # of the paper's Figure 3, to the right of image and truth

MAPS = {  # and the titles of their panels
    "loss_ce": "cross-entropy\nof each pixel",
    "loss_lal": "LAL of each pixel,\nmerged 5 x 5",
    "gradient_ce": "gradient of the\nmean cross-entropy",
    "gradient_lal_p1": "gradient of LAL,\np = 1",
    "gradient_lal": "gradient of LAL,\np = 3",
}


def palette(num_classes: int) -> np.ndarray:
    """VOC's colours `[C, 3]`, uint8."""
    return np.array([voc_colour(label) for label in range(num_classes)], dtype=np.uint8)


def colour(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """`[H, W]` labels as `[H, W, 3]`, uint8."""
    table = np.tile(np.uint8(to_rgba_array(VOID_COLOUR)[:, :3] * 255), (VOID + 1, 1))
    table[:num_classes] = palette(num_classes)
    return table[labels]


def draw_masks(results: Results, arrays: Arrays) -> Figure:
    """The six columns of the paper's Figure 3: image, truth, and the predictions of four losses."""
    rows = sum(name.startswith("image_") for name in arrays)
    names = [loss for loss in COLUMNS if f"{loss}_0" in arrays]
    num_classes = len(results["class_names"])
    wrong = {loss: [share_wrong(arrays, loss, [row]) for row in range(rows)] for loss in names}
    overall = [
        f"{results['titles'][loss]} mislabels {share_wrong(arrays, loss, range(rows)):.1f} % of the pixels"
        for loss in ("ce", "lal5")
        if loss in names
    ]
    title = ": ".join([f"Where the losses disagree most, task {results['task']}", *filter(None, [", ".join(overall)])])
    height = sum(arrays[f"image_{row}"].shape[0] / arrays[f"image_{row}"].shape[1] for row in range(rows))
    footer = f"Parts of held-out images on which these networks differ most, seed {results['shown_seed']}"
    figure = new_figure(1.15 * height + 1.0, title, footer, results["environment"])
    panels = figure.subplots(rows, 2 + len(names), squeeze=False)
    for row, line in enumerate(panels):
        line[0].imshow(brighten(arrays[f"image_{row}"]))
        for axes, name in zip(line[1:], ("truth", *names), strict=True):
            axes.imshow(colour(arrays[f"{name}_{row}"], num_classes), interpolation="nearest")
        truth = arrays[f"truth_{row}"]
        for axes, loss in zip(line[2:], names, strict=True):
            outline_errors(axes, (arrays[f"{loss}_{row}"] != truth) & (truth != VOID))
            axes.set_xlabel(f"{wrong[loss][row]:.1f} % wrong", fontsize=7.5)
    for axes, title in zip(panels[0], ("image", "truth", *(results["titles"][loss] for loss in names)), strict=True):
        axes.set_title(title, fontsize=8)
    hide_ticks(panels)
    add_legend(figure, results["class_names"], [Line2D([], [], color=ERROR_COLOUR, label="mislabelled")])
    return figure


def outline_errors(axes: Axes, wrong: np.ndarray) -> None:
    """A line around the pixels, along their edges."""
    fine = np.pad(wrong, 1).repeat(8, axis=0).repeat(8, axis=1)
    rows, columns = (np.arange(side) / 8 - 1.5 + 1 / 16 for side in fine.shape)
    axes.autoscale(False)
    if wrong.any():
        axes.contour(columns, rows, fine, levels=[0.5], colors=ERROR_COLOUR, linewidths=0.7)


def share_wrong(arrays: Arrays, loss: str, rows: Iterable[int]) -> float:
    """In per cent of the pixels that are not void."""
    truth, labels = (np.concatenate([arrays[f"{name}_{row}"].ravel() for row in rows]) for name in ("truth", loss))
    return 100 * float((labels != truth)[truth != VOID].mean()) if (truth != VOID).any() else 0.0


def add_legend(figure: Figure, class_names: list[str], more: Sequence[Artist] = ()) -> None:
    handles = [*legend(class_names), *more]
    figure.legend(handles=handles, loc="outside right center", fontsize=7.5, frameon=False, handlelength=1.2)


def legend(class_names: list[str]) -> list[Patch]:
    colours = [*palette(len(class_names)) / 255, VOID_COLOUR]
    names = [*class_names, "void"]
    return [Patch(facecolor=c, edgecolor="#555555", label=name) for c, name in zip(colours, names, strict=True)]


def brighten(image: np.ndarray) -> np.ndarray:
    """A dim image in the range that a screen shows well, up to the 99.5th percentile."""
    return np.clip(image / max(1.0, float(np.percentile(image, 99.5))), 0, 1)


def hide_ticks(panels: np.ndarray) -> None:
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])


def draw_gradients(results: Results, arrays: Arrays) -> Figure:
    """Loss and gradient of every pixel for CE and LAL, of the same logits; a box stands around the hardest part."""
    num_classes = len(results["class_names"])
    void = arrays["zoom_truth"] == VOID
    box = hardest(np.where(void, 0, arrays["zoom_loss_ce"]))
    inside = {name: float(arrays[f"zoom_{name}"][box][~void[box]].mean()) for name in MAPS}
    title = (
        "In the hardest part (box) the gradient of LAL, p = 3, is "
        f"{inside['gradient_lal']:.1f} times the image's mean, that of cross-entropy {inside['gradient_ce']:.1f}"
    )
    height, width = arrays["zoom_truth"].shape
    footer = (
        f"{height} x {width} held-out pixels and their logits from the network trained with cross-entropy, "
        f"seed {results['shown_seed']}"
    )
    figure = new_figure(4.7, title, footer, results["environment"])
    panels = figure.subplots(2, 4)
    pictures = {"image": brighten(arrays["zoom_image"])}
    pictures |= {name: colour(arrays[f"zoom_{name}"], num_classes) for name in ("truth", "prediction")}
    for axes, (name, picture) in zip((panels[0, 0], panels[0, 1], panels[1, 0]), pictures.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=8)
    for axes, name in zip((*panels[0, 2:], *panels[1, 1:]), MAPS, strict=True):
        unit = "nats" if name.startswith("loss") else "x mean"
        axes.set_xlabel(f"box: {inside[name]:.1f} {unit}", fontsize=7.5)
    maps = {name: np.ma.array(arrays[f"zoom_{name}"], mask=void) for name in MAPS}
    losses, gradients = ({name: maps[name] for name in MAPS if name.startswith(kind)} for kind in ("loss", "gradient"))
    highest = max(float(np.percentile(values.data, 99.5)) for values in losses.values())
    draw_maps(figure, list(panels[0, 2:]), losses, Normalize(0, highest), "viridis", "loss, nats")
    unit = "gradient's norm, multiple\nof the image's mean (log)"
    draw_maps(figure, list(panels[1, 1:]), gradients, LogNorm(0.01, 100), "magma", unit)
    for axes in panels.flat:
        top, left = (part.start for part in box)
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), BOX, BOX, fill=False, edgecolor="white", linewidth=2.5))
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), BOX, BOX, fill=False, edgecolor=SKY_BLUE, linewidth=1.2))
    hide_ticks(panels)
    add_legend(figure, results["class_names"])
    return figure


def hardest(losses: np.ndarray) -> tuple[slice, slice]:
    """The square of side `BOX` (or of the map) with the greatest sum."""
    window = tuple(min(BOX, side) for side in losses.shape)
    sums = sliding_window_view(losses, window).sum((2, 3))
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(top), int(top) + window[0]), slice(int(left), int(left) + window[1])


def draw_maps(
    figure: Figure, panels: list[Axes], maps: Mapping[str, np.ndarray], norm: Normalize, colours: str, unit: str
) -> None:
    """Maps on one colour scale, whose bar stands to the right of them."""
    scale = colormaps[colours].with_extremes(bad=VOID_COLOUR)
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        axes.imshow(np.clip(values, norm.vmin, norm.vmax), norm=norm, cmap=scale, interpolation="nearest")
        axes.set_title(MAPS[name], fontsize=8)
    extend = "both" if norm.vmin else "max"
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=panels, shrink=0.9, extend=extend)
    bar.set_label(unit, fontsize=7.5)
    bar.ax.tick_params(labelsize=7.5)
    plain_ticks(bar.ax.yaxis)
