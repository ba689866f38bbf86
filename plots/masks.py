"""Pictures of held-out pixels: what the losses' networks predict, and what CE and LAL see in the same logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.voc import voc_colour
from lal_triton.plots.style import caption_of, plain_ticks

Results = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

VOID_COLOUR = "#e0e0c0"  # as VOC shows it
COLUMNS = ("ce", "center", "focal", "lal5")  # of the paper's Figure 3, to the right of image and truth


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
    height = sum(arrays[f"image_{row}"].shape[0] / arrays[f"image_{row}"].shape[1] for row in range(rows))
    figure = Figure(figsize=(2 * (2 + len(names)) + 1.2, 1.97 * height + 0.8), layout="constrained")
    panels = figure.subplots(rows, 2 + len(names), squeeze=False)
    for row, line in enumerate(panels):
        line[0].imshow(brighten(arrays[f"image_{row}"]))
        for axes, name in zip(line[1:], ("truth", *names), strict=True):
            axes.imshow(colour(arrays[f"{name}_{row}"], num_classes), interpolation="nearest")
    for axes, title in zip(panels[0], ("image", "truth", *(results["titles"][loss] for loss in names)), strict=True):
        axes.set_title(title, fontsize=10)
    hide_ticks(panels)
    figure.legend(handles=legend(results["class_names"]), loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(f"Held-out masks, task {results['task']}", fontweight="bold", fontsize=11)
    text = f"networks of seed {results['shown_seed']}"
    figure.supxlabel(caption_of(text, results["environment"]), fontsize=7.5, color="#555555")
    return figure


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
    """Loss and gradient of every pixel for CE and LAL, of the same logits."""
    num_classes = len(results["class_names"])
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    panels = figure.subplots(2, 4)
    pictures = {"image": brighten(arrays["zoom_image"])}
    pictures |= {name: colour(arrays[f"zoom_{name}"], num_classes) for name in ("truth", "prediction")}
    for axes, (title, picture) in zip((panels[0, 0], panels[0, 1], panels[1, 0]), pictures.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=10)
    void = arrays["zoom_truth"] == VOID
    losses = {
        "cross-entropy of each pixel": arrays["zoom_loss_ce"],
        "LAL of each pixel, 5 x 5:\nlogits merged within the label": arrays["zoom_loss_lal"],
    }
    highest = max(float(np.percentile(values, 99.5)) for values in losses.values())
    draw_maps(figure, list(panels[0, 2:]), losses, void, Normalize(0, highest), "viridis", "loss, nats")
    gradients = {
        "gradient of the mean\ncross-entropy": arrays["zoom_gradient_ce"],
        "gradient of LAL, p = 1:\npixels alike in weight": arrays["zoom_gradient_lal_p1"],
        "gradient of LAL, p = 3:\nhard regions weigh more": arrays["zoom_gradient_lal"],
    }
    unit = "gradient's norm, multiple of\nits mean over the image (log scale)"
    draw_maps(figure, list(panels[1, 1:]), gradients, void, LogNorm(0.01, 100), "magma", unit)
    hide_ticks(panels)
    figure.legend(handles=legend(results["class_names"]), loc="outside right center", fontsize=9, frameon=False)
    title = "What CE and LAL see in the same logits (of the network trained with cross-entropy)"
    figure.suptitle(title, fontweight="bold", fontsize=11)
    height, width = arrays["zoom_truth"].shape
    text = f"{height} x {width} held-out pixels, seed {results['shown_seed']}"
    figure.supxlabel(caption_of(text, results["environment"]), fontsize=7.5, color="#555555")
    return figure


def draw_maps(
    figure: Figure,
    panels: list[Axes],
    maps: Mapping[str, np.ndarray],
    void: np.ndarray,
    norm: Normalize,
    colours: str,
    unit: str,
) -> None:
    """Maps on one colour scale, whose bar stands to the right of them."""
    scale = colormaps[colours].with_extremes(bad=VOID_COLOUR)
    for axes, (title, values) in zip(panels, maps.items(), strict=True):
        shown = np.ma.array(np.clip(values, norm.vmin, norm.vmax), mask=void)
        axes.imshow(shown, norm=norm, cmap=scale, interpolation="nearest")
        axes.set_title(title, fontsize=10)
    extend = "both" if norm.vmin else "max"
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=panels, label=unit, shrink=0.9, extend=extend)
    plain_ticks(bar.ax.yaxis)
