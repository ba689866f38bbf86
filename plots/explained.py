"""The pictures that explain LAL, drawn from the package itself: `python -m lal_triton.plots.explained FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lal_triton.benchmarks import scenes
from lal_triton.functional import cross_entropy, locally_adaptive_loss, merge
from lal_triton.options import window_weights
from lal_triton.plots.masks import colour, hide_ticks
from lal_triton.plots.style import plain_ticks

NUM_CLASSES = 4
TOP, LEFT, SIDE = 299, 329, 32  # of the crop: two nuclei that touch
KERNEL_SIZE = 5
CENTRE = 17, 22  # row and column of the window that is drawn, on the border of the nuclei
NOISE = 0.6  # standard deviation
PIXEL = 9, 19  # a single pixel that is predicted wrongly, and a square of such pixels, each inside a nucleus
SQUARE = slice(20, 25), slice(10, 15)


class Crop(NamedTuple):
    labels: Tensor  # [1, H, W]
    logits: Tensor  # [1, C, H, W]


def make_crop() -> Crop:
    """A part of the shipped image with nuclei of different classes, and logits for them."""
    image, instances = scenes.read_instances()
    labels = np.where(instances == 0, 0, 1 + instances % (NUM_CLASSES - 1))
    logits = torch.from_numpy(scenes.predict(image, labels, NUM_CLASSES))
    rows, columns = slice(TOP, TOP + SIDE), slice(LEFT, LEFT + SIDE)
    return Crop(torch.from_numpy(labels[None, rows, columns]), logits[None, :, rows, columns])


def draw(output: Path) -> list[Path]:
    crop = make_crop()
    figures = {"window": draw_window(), "merge": draw_merge(crop), "gradient": draw_gradient(crop)}
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        written.append(output / f"explained_{name}.png")
        figure.savefig(written[-1], dpi=100)
    return written


def draw_window() -> Figure:
    """The default weights of three windows."""
    sizes = (3, 5, 7)
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        weights = np.reshape(window_weights("chessboard", (size, size)), (size, size))
        axes.imshow(np.log2(weights), cmap="Blues", vmin=-4, vmax=3)
        for row, column in np.ndindex(size, size):
            numerator, denominator = float(weights[row, column]).as_integer_ratio()
            text = f"{numerator}" if denominator == 1 else f"{numerator}/{denominator}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9)
        axes.set_title(f"K = {size}", fontsize=10)
    hide_ticks(panels)
    figure.suptitle("Weights of a window: they halve from ring to ring", fontweight="bold", fontsize=11)
    return figure


def draw_merge(crop: Crop) -> Figure:
    """A window at a border of labels, and what the merge does to noisy scores there."""
    labels = crop.labels[0].numpy()
    right = F.one_hot(crop.labels, NUM_CLASSES).permute(0, 3, 1, 2).float()
    logits = right + NOISE * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    scores = {
        "standard score of noisy logits": merge(logits, crop.labels, kernel_size=1),
        "averaged over the whole window": merge(logits, torch.zeros_like(crop.labels), average="weight"),
        "merged: averaged within the label": merge(logits, crop.labels, average="weight"),
    }
    scores["standard score of noisy logits"] /= 2  # the weight of a window's centre
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    panels[0, 0].imshow(colour(labels, NUM_CLASSES), interpolation="nearest")
    panels[0, 0].set_title("labels, and one window", fontsize=10)
    draw_taps(panels[0, 0], labels)
    norm = Normalize(-1.5, 1.5)
    for axes, (title, values) in zip(panels.flat[1:], scores.items(), strict=True):
        axes.imshow(values[0, labels[CENTRE]].numpy(), norm=norm, cmap="PuOr_r", interpolation="nearest")
        axes.set_title(title, fontsize=10)
    hide_ticks(panels)
    unit = "score of the label\nof the window's centre"
    figure.colorbar(ScalarMappable(norm, "PuOr_r"), ax=panels, label=unit, extend="both")
    figure.suptitle("The merge averages within a label and keeps its border", fontweight="bold", fontsize=11)
    return figure


def draw_taps(axes: Axes, labels: np.ndarray) -> None:
    """The window's outline, a dot at each pixel that is merged and a cross at the others."""
    half = KERNEL_SIZE // 2
    row, column = CENTRE
    corner = column - half - 0.5, row - half - 0.5
    axes.add_patch(Rectangle(corner, KERNEL_SIZE, KERNEL_SIZE, fill=False, edgecolor="white", linewidth=1.5))
    for i, j in np.ndindex(KERNEL_SIZE, KERNEL_SIZE):
        at = row - half + i, column - half + j
        marker = "." if labels[at] == labels[CENTRE] else "x"
        axes.plot(at[1], at[0], marker=marker, color="white", markersize=4, markeredgewidth=1)
    axes.plot(column, row, marker="o", color="white", markersize=5)


def draw_gradient(crop: Crop) -> Figure:
    """The gradients of cross-entropy and LAL where a pixel and a square of pixels are predicted wrongly."""
    logits = with_errors(crop)
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    panels = figure.subplots(2, 2)
    pictures = {"labels": crop.labels[0], "prediction: a pixel, a square wrong": logits[0].argmax(0)}
    for axes, (title, picture) in zip(panels[0], pictures.items(), strict=True):
        axes.imshow(colour(picture.numpy(), NUM_CLASSES), interpolation="nearest")
        axes.set_title(title, fontsize=10)
    losses: dict[str, Callable[..., Tensor]] = {
        "gradient of cross-entropy": cross_entropy,
        "gradient of LAL, K = 5": locally_adaptive_loss,
    }
    norm = LogNorm(0.01, 100)
    for axes, (title, loss_fn) in zip(panels[1], losses.items(), strict=True):
        length = gradient_norm(loss_fn, logits, crop.labels)
        axes.imshow((length / length.mean()).numpy(), norm=norm, cmap="magma", interpolation="nearest")
        axes.set_title(title, fontsize=10)
    hide_ticks(panels)
    unit = "norm of a pixel's gradient,\nmultiple of the mean (log scale)"
    bar = figure.colorbar(ScalarMappable(norm, "magma"), ax=panels[1], label=unit, extend="both")
    plain_ticks(bar.ax.yaxis)
    title = "At a single wrong pixel cross-entropy's gradient is large, LAL's is small"
    figure.suptitle(title, fontweight="bold", fontsize=11)
    return figure


def with_errors(crop: Crop) -> Tensor:
    """The logits, exchanged at a pixel and in a square."""
    logits = crop.logits.clone()
    for place in (PIXEL, SQUARE):
        logits[0][:, *place] = logits[0][:, *place].roll(1, dims=0)
    return logits


def gradient_norm(loss_fn: Callable[..., Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """`[H, W]`, of the first image."""
    logits = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_fn(logits, target), logits)
    return gradient[0].norm(dim=0)


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1])):
        print(path)
