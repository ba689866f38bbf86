"""Tables and figures of the training benchmark, from results that are made up."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from PIL import Image

from lal_triton.benchmarks.training import report
from lal_triton.benchmarks.training.losses import LOSSES as LOSSES_BY_NAME
from lal_triton.benchmarks.training.task import OURS, PAPER, Recipe
from lal_triton.plots import masks, training

CHECKOUT = Path(__file__).parents[1]
DOCUMENT = CHECKOUT / "benchmarks" / "REPRODUCTION.md"
CLASS_NAMES = ["background", "cell", "rim"]
LOSSES = list(LOSSES_BY_NAME)


def make_run(loss, seed, miou):
    curve = [{"iteration": iteration, "miou": miou * iteration / 30} for iteration in (10, 20, 30)]
    iou = [miou + 0.1, miou, None if loss == "focal" else miou - 0.1]
    return {"task": "cells", "loss": loss, "seed": seed, "miou": miou, "iou": iou, "curve": curve}


def make_results(losses=LOSSES, seeds=(0, 1, 2), task="cells"):
    environment = {"device": "a CPU", "device_type": "cpu", "torch_threads": 2, "torch": "2.8", "date": "today"}
    runs = [make_run(loss, s, 0.5 + 0.02 * s + 0.01 * place) for place, loss in enumerate(losses) for s in seeds]
    return {
        "environment": environment,
        "task": task,
        "class_names": CLASS_NAMES,
        "recipe": {"iterations": 30},
        "titles": {loss: f"the loss {loss}" for loss in LOSSES},
        "shown_seed": seeds[0] if seeds else None,
        "runs": runs,
    }


def make_arrays(rows=2, height=20, width=30):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=(height, width), dtype=np.uint8)
    labels[3] = 255
    arrays = {f"{name}_{row}": labels for name in ("truth", "ce", "center", "focal", "lal5") for row in range(rows)}
    image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
    arrays |= {f"image_{row}": image for row in range(rows)} | {"zoom_image": image}
    arrays |= {"zoom_truth": labels, "zoom_prediction": labels}
    arrays |= {f"zoom_{name}": rng.random((height, width)) for name in masks.MAPS}
    provenance = {"environment": make_results()["environment"] | {"date": "yesterday"}, "shown_seed": 7}
    return arrays | {"provenance": np.array(json.dumps(provenance))}


# ---- tables


def test_scores_are_means_and_standard_deviations_over_seeds():
    found = report.score([0.50, 0.52, 0.54])
    assert found.mean == pytest.approx(52)
    assert found.spread == pytest.approx(2)  # of n - 1
    assert str(found) == "52.0 ± 2.0"
    assert str(report.score([0.5])) == "50.0"


def test_a_row_per_loss_with_the_iou_of_every_class():
    lines = report.format_table(report.TABLE_2, make_results()).splitlines()
    assert lines[2] == "| loss | mIoU | seeds | background | cell | rim |"
    assert lines[4] == "| the loss ce | 52.0 ± 2.0 | 3 | 62.0 ± 2.0 | 52.0 ± 2.0 | 42.0 ± 2.0 |"
    assert lines[6] == "| the loss focal | 54.0 ± 2.0 | 3 | 64.0 ± 2.0 | 54.0 ± 2.0 |  |"
    assert len(lines) == 4 + len(report.TABLE_2.paper)


def test_the_papers_numbers_stand_beside_those_of_voc_alone():
    assert "76.1" not in report.format_tables(make_results())
    text = report.format_table(report.TABLE_2, make_results(losses=["ce"], task="voc"))
    assert "| the loss ce | 74.6 | 52.0 ± 2.0 | 3 |" in text
    assert "| the loss lal5 | 76.1 | not measured | 0 |" in text
    assert "20,000 iterations" in text


def test_differences_are_told_as_they_are():
    close = report.difference(report.Score(50.5, 1.0, 3), report.Score(50.0, 1.0, 3))
    assert close == "0.5 points above, not more than twice the standard error of the difference (0.8)"
    worse = report.difference(report.Score(40.0, 1.0, 3), report.Score(50.0, 1.0, 3))
    assert worse == "10.0 points below, more than twice the standard error of the difference (0.8)"
    assert "of one seed" in report.difference(report.Score(51.0, None, 1), report.Score(50.0, 1.0, 3))


def test_no_comparison_without_cross_entropy():
    assert report.comparisons(make_results(losses=["lal5", "focal"])) == []
    assert len(report.comparisons(make_results())) == 2 + len(LOSSES) - 1


# ---- figures


def test_the_colours_are_those_of_voc():
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    palette = masks.palette(21)
    np.testing.assert_array_equal(palette[:7], expected)
    np.testing.assert_array_equal(palette[[8, 15, 20]], [(64, 0, 0), (192, 128, 128), (0, 64, 128)])
    np.testing.assert_array_equal(masks.colour(np.array([[1, 255]]), 21), [[(128, 0, 0), (224, 224, 192)]])


@pytest.mark.parametrize("losses", [LOSSES, ["ce", "lal5"]])
def test_every_figure_is_written_and_shows_something(tmp_path, losses):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results(losses)))
    np.savez_compressed(tmp_path / "results.npz", **make_arrays())
    written = training.draw(path, tmp_path / "figures")
    names = {"curves", "classes", "masks", "gradients"}
    assert {file.name for file in written} == {f"training_cells_{name}.png" for name in names}
    for file in written:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.std() > 10


def test_figures_without_masks_and_with_one_seed(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results(seeds=(4,))))
    assert [file.name for file in training.draw(path, tmp_path)] == [
        "training_cells_curves.png",
        "training_cells_classes.png",
    ]


def test_without_a_network_of_cross_entropy_there_are_no_maps_of_its_logits(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results(["focal", "lal7"])))
    shown = {
        name: array
        for name, array in make_arrays().items()
        if name.split("_")[0] in ("image", "truth", "focal", "provenance")
    }
    np.savez_compressed(tmp_path / "results.npz", **shown)
    names = [file.name for file in training.draw(path, tmp_path)]
    assert names == [f"training_cells_{name}.png" for name in ("curves", "classes", "masks")]


def test_rows_of_different_sizes_are_drawn():
    arrays = make_arrays(rows=1) | {
        name.replace("_0", "_1"): array for name, array in make_arrays(rows=1, height=40).items() if "_0" in name
    }
    figure = masks.draw_masks(make_results(), arrays)
    assert len(figure.axes) == 12


def test_maps_that_are_compared_share_their_scale():
    figure = masks.draw_gradients(make_results(), make_arrays())
    limits = {axes.get_title(): axes.images[0].get_clim() for axes in figure.axes if axes.get_title()}
    losses = [limit for title, limit in limits.items() if "of each pixel" in title.replace("\n", " ")]
    gradients = [limit for title, limit in limits.items() if title.startswith("gradient")]
    assert len(set(losses)) == len(set(gradients)) == 1
    assert (len(losses), len(gradients)) == (2, 3)


def test_the_gradients_figure_says_what_is_in_the_box():
    arrays = make_arrays(height=40, width=50)
    arrays["zoom_truth"] = np.zeros((40, 50), np.uint8)
    arrays["zoom_truth"][12] = 255  # void does not count
    arrays["zoom_loss_ce"][10:24, 30:44] += 5
    arrays["zoom_gradient_lal"][10:24, 30:44] = 7
    arrays["zoom_gradient_lal"][12] = 1000
    arrays["zoom_gradient_ce"][10:24, 30:44] = 3
    figure = masks.draw_gradients(make_results(), arrays)
    title = figure.get_suptitle().replace("\n", " ")
    assert "is 7.0 times the image's mean, that of cross-entropy 3.0" in title
    numbers = {axes.get_title(): axes.get_xlabel() for axes in figure.axes}
    assert numbers["gradient of LAL,\np = 3"] == "box: 7.0 x mean"
    boxes = [patch for axes in figure.axes if axes.images for patch in axes.patches]
    assert {(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in boxes} == {(29.5, 9.5, 14, 14)}


def test_masks_say_how_many_pixels_are_wrong():
    arrays = make_arrays(rows=2)
    truth = arrays["truth_0"].copy()
    truth[3] = 255
    wrong = truth.copy()
    wrong[5, :6] = (truth[5, :6] + 1) % 3
    wrong[3] = 0  # void does not count
    arrays |= {"truth_0": truth, "truth_1": truth, "ce_0": truth, "ce_1": wrong, "lal5_0": wrong, "lal5_1": wrong}
    figure = masks.draw_masks(make_results(), arrays)
    share = 100 * 6 / (19 * 30)
    title = figure.get_suptitle().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
    assert f"the loss ce mislabels {share / 2:.1f} % of the pixels, the loss lal5 mislabels {share:.1f} %" in title
    shown = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert shown[0] == "0.0 % wrong"
    assert shown.count(f"{share:.1f} % wrong") == 3


def test_pictures_tell_their_own_provenance(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results()))
    np.savez_compressed(tmp_path / "results.npz", **make_arrays())
    seen = {}
    monkeypatch.setattr(masks, "draw_masks", lambda results, arrays: seen.update(results) or Figure())
    training.draw(path, tmp_path)
    assert (seen["environment"]["date"], seen["shown_seed"], seen["task"]) == ("yesterday", 7, "cells")


@pytest.mark.parametrize("text", ["{}", "not json", "[]"])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a results file of `lal-triton train`"):
        training.draw(path, tmp_path)


# ---- documentation

OF_THE_NETWORK = (
    ("network", "DeepLabV2, ResNet-101", PAPER, ""),
    ("output stride", "8", PAPER, "the last two stages have dilations 2 and 4 instead of strides"),
    ("ASPP rates", "6, 12, 18, 24", PAPER, ""),
    ("batch norm", "frozen", OURS, "statistics and affine parameters; a batch of 2 estimates neither"),
    ("upsampling of the logits", "bilinear, inside the loss", OURS, "the paper's baseline learns it: `--head deconv`"),
    ("corners of that upsampling", "aligned", OURS, "DeepLab's; the logits of a crop of 8k + 1 lie at every 8th pixel"),
    ("feature that center loss sees", "last stage, 2048 channels", OURS, ""),
    ("stride of a bottleneck", "in its 3 x 3 convolution", OURS, "that of the pretrained weights (“v1.5”)"),
    ("CRF, multi-scale input", "none", OURS, "neither is part of what is compared"),
)


def recipe_table():
    """The defaults in markdown, one value a line."""
    values = [
        (value.name, format_value(value.default), value.metadata["source"], value.metadata["remark"])
        for value in dataclasses.fields(Recipe)
    ]
    lines = [("value", "default", "source", "remark"), ("---",) * 4, *values, *OF_THE_NETWORK]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def format_value(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(map(format_value, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def test_recipe_names_a_source_for_every_value():
    table = recipe_table()
    for entry in dataclasses.fields(Recipe):
        assert entry.metadata["source"] in ("paper", "our reading")
        assert f"| {entry.name} |" in table
    assert "| learning_rate | 0.00025 | paper |" in table
    assert "| scales | 0.5 to 1.5 | paper |" in table
    assert "| weight_decay | 0.0005 | our reading |" in table
    with pytest.raises(ValueError, match="optimizer = 'lion'"):
        Recipe(optimizer="lion")
    with pytest.raises(ValueError, match="batch_size = 0, expected at least 1"):
        Recipe(batch_size=0)


def test_the_documentation_holds_the_recipe_and_tables_that_wait_for_voc():
    text = DOCUMENT.read_text()
    assert recipe_table() in text
    titles = {name: loss.title for name, loss in LOSSES_BY_NAME.items()}
    unmeasured = {"task": "voc", "class_names": [], "titles": titles, "runs": []}
    for table in (report.TABLE_1, report.TABLE_2):
        assert report.format_table(table, unmeasured) in text


@pytest.mark.parametrize("task", ["nuclei", "digits"])
def test_the_documentation_holds_what_was_measured(task):
    results = json.loads((CHECKOUT / "benchmarks" / "results" / f"training-{task}.json").read_text())
    assert {run["loss"] for run in results["runs"]} == set(LOSSES_BY_NAME)
    text = DOCUMENT.read_text()
    assert report.format_tables(results) in text
    for name in ("curves", "classes", "masks", "gradients"):
        figure = CHECKOUT / "plots" / "figures" / f"training_{task}_{name}.png"
        assert f"../plots/figures/{figure.name}" in text
        assert figure.exists()
