"""What training with the losses came to: learning curves, and IoU by class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lal_triton.benchmarks.training.report import TABLE_1, TABLE_2, Score, difference, score, score_of
from lal_triton.plots import masks, style
from lal_triton.plots.style import DPI, new_figure, tidy

Results = dict[str, Any]

COLOURS = {
    "ce": style.BLACK,
    "center": style.PALE_GREY,
    "focal": style.PURPLE,
    "lal3": style.SKY_BLUE,
    "lal5": style.BLUE,
    "lal7": style.GREEN,
    "max-pooling": style.VERMILION,
    "lal5-p1": style.ORANGE,
    "lal5-p2": style.VERMILION,
    "lal5-p5": style.GREEN,
}
LINES = {"center": "--", "focal": ":", "max-pooling": "-.", "lal5-p1": "--", "lal5-p2": ":", "lal5-p5": "-."}


def draw(results: Path, output: Path) -> list[Path]:
    """Writes the plots of a results file of `lal-triton train`, and of the arrays beside it if there are any."""
    try:
        data = json.loads(Path(results).read_text())
        figures = {"curves": draw_curves(data), "classes": draw_classes(data)}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{results} is not a results file of `lal-triton train`") from None
    arrays = Path(results).with_suffix(".npz")
    if arrays.exists():
        with np.load(arrays) as loaded:
            shown = data | json.loads(str(loaded["provenance"]))
            figures["masks"] = masks.draw_masks(shown, loaded)
            if "zoom_image" in loaded:
                figures["gradients"] = masks.draw_gradients(shown, loaded)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        written.append(output / f"training_{data['task']}_{name}.png")
        figure.savefig(written[-1], dpi=DPI)
    return written


def draw_curves(results: Results) -> Figure:
    """Held-out mIoU against the iteration, for the losses of both tables."""
    reached = [f"{results['titles'][loss]} {found}" for loss in ("ce", "lal5") if (found := score_of(results, loss))]
    title = f"Held-out mIoU after {results['recipe']['iterations']:,} iterations, task {results['task']}"
    footer = f"Lines: mean over seeds {seeds(results)}, bands: ± standard deviation"
    figure = new_figure(3.9, ": ".join([title, *filter(None, [", ".join(reached)])]), footer, results["environment"])
    panels = figure.subplots(1, 2, sharey=True)
    for axes, table, name in zip(
        panels, (TABLE_2, TABLE_1), ("losses", "exponent p of LAL's pooling (else 3)"), strict=True
    ):
        for loss in table.paper:
            draw_curve(axes, results, loss)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("iteration", fontsize=9)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=7.5, loc="lower right", handlelength=2.5)
        tidy(axes)
    panels[0].set_ylabel("mIoU on what is held out, per cent", fontsize=9)
    return figure


def draw_curve(axes: Axes, results: Results, loss: str) -> None:
    curves = [run["curve"] for run in results["runs"] if run["loss"] == loss]
    if not curves:
        return
    scores = [score([point["miou"] for point in points]) for points in zip(*curves, strict=True)]
    iterations = [point["iteration"] for point in curves[0]]
    middle = np.array([found.mean for found in scores])
    spread = np.array([found.spread or 0 for found in scores])
    colour = COLOURS[loss]
    axes.plot(iterations, middle, label=results["titles"][loss], color=colour, linestyle=LINES.get(loss, "-"))
    axes.fill_between(iterations, middle - spread, middle + spread, color=colour, alpha=0.12, linewidth=0)


def draw_classes(results: Results) -> Figure:
    """IoU of every class and their mean, a bar per loss."""
    losses = [loss for loss in TABLE_2.paper if score_of(results, loss)]
    groups = ["mean", *results["class_names"]]
    title = f"IoU, task {results['task']}"
    base, other = score_of(results, "ce"), score_of(results, "lal5")
    if base and other:
        title = (
            f"{results['titles']['lal5']} next to {results['titles']['ce']} in mean {title}: {difference(other, base)}"
        )
    footer = f"Bars: mean over seeds {seeds(results)}, lines: ± standard deviation"
    figure = new_figure(3.9, title, footer, results["environment"])
    axes = figure.subplots()
    width = 0.84 / max(1, len(losses))
    for place, loss in enumerate(losses):
        found = [score_of(results, loss, index) for index in (None, *range(len(results["class_names"])))]
        draw_bars(axes, found, place * width - 0.42 + width / 2, width, COLOURS[loss], results["titles"][loss])
    axes.axvline(0.5, color=style.PALE_GREY, linewidth=0.8)
    slant = 30 if len(groups) > 6 else 0
    axes.set_xticks(range(len(groups)), groups, rotation=slant, ha="right" if slant else "center", fontsize=8.5)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel("IoU on what is held out, per cent", fontsize=9)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    tidy(axes, axis="y")
    return figure


def draw_bars(axes: Axes, scores: list[Score | None], offset: float, width: float, colour: str, title: str) -> None:
    places = [place + offset for place, found in enumerate(scores) if found]
    found = [found for found in scores if found]
    whiskers = [one.spread or 0 for one in found]
    heights = [one.mean for one in found]
    axes.bar(places, heights, 0.9 * width, yerr=whiskers, color=colour, label=title, ecolor="#888888", capsize=1.5)


def seeds(results: Results) -> str:
    return ", ".join(str(seed) for seed in sorted({run["seed"] for run in results["runs"]}))
