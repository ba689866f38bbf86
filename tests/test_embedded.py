"""The tasks that need neither VOC nor a GPU, and the experiment over losses and seeds on one of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")
pytest.importorskip("monai")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")

from lightning_fabric import Fabric
from PIL import Image

from lal_triton.benchmarks.scenes import NUCLEI, VOID, outline
from lal_triton.benchmarks.training import experiment, pictures, small_tasks
from lal_triton.benchmarks.training.losses import LOSSES
from lal_triton.benchmarks.training.task import Example, Output
from lal_triton.plots import training


@pytest.fixture(scope="module", params=["nuclei", "digits"])
def task(request):
    return small_tasks.make_nuclei() if request.param == "nuclei" else small_tasks.make_digits(20, 10)


def labels_in(examples):
    return set(torch.cat([example.target.flatten() for example in examples]).tolist())


# ---- tasks


def test_every_class_is_in_both_parts(task):
    expected = {*range(len(task.class_names)), VOID}
    assert labels_in(task.training) == labels_in(task.evaluation) == expected


def test_images_and_targets_are_as_the_contract_says(task):
    for example in [*task.training, *task.evaluation]:
        assert example.image.dtype == torch.float32
        assert example.target.dtype == torch.int64
        assert example.image.shape == (3, *example.target.shape)
        assert 0 <= example.image.min() <= example.image.max() <= 1
        assert min(example.target.shape) >= task.recipe.crop_size


def test_the_network_predicts_at_half_the_resolution(task):
    network = task.make_network()
    output = network(task.evaluation[0].image[None, :, :71, :65])
    assert output.logits.shape == (1, len(task.class_names), 36, 33)
    assert output.features.shape == (1, network.num_features, 36, 33)


def test_parts_of_the_nuclei_cover_the_image_once():
    task = small_tasks.make_nuclei()
    left, right = (torch.cat([example.image for example in part], dim=1) for part in (task.training, task.evaluation))
    assert left.shape == (3, 512, 320)
    assert right.shape == (3, 512, 192)
    joined = torch.cat([left, right], dim=2)
    whole = Image.open(NUCLEI / "image.png").convert("RGB")
    np.testing.assert_array_equal((255 * joined).round().to(torch.uint8).permute(1, 2, 0).numpy(), np.asarray(whole))


def test_boundaries_are_two_pixels_and_void_is_around_them():
    instances = np.zeros((12, 16), dtype=np.int64)
    instances[2:9, 2:9] = 1
    instances[2:9, 9:15] = 2
    labels = small_tasks.label_nuclei(instances)
    assert (labels[4:7, 4:7] == 1).all()
    assert (labels[5, :] == [0, VOID, 2, 2, 1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, VOID]).all()
    assert (labels[outline(instances)] == 2).all()
    assert (labels == VOID).sum() == 2 * 7 + 2 * 13


def test_held_out_digits_and_photographs_are_not_trained_on(monkeypatch):
    seen = []

    def remember(inks, labels, photographs, seed):
        seen.append((len(inks), photographs[0].data_ptr(), photographs[0].shape))
        return original(inks, labels, photographs, seed)

    original = small_tasks.make_scene
    monkeypatch.setattr(small_tasks, "make_scene", remember)
    small_tasks.make_digits(1, 1)
    (trained, left, left_shape), (held_out, right, right_shape) = seen
    assert (trained, held_out) == (1200, 597)
    assert left != right
    assert left_shape == right_shape == (3, 427, 320)


def test_a_scene_is_a_function_of_its_seed():
    first, again, other = (small_tasks.make_digits(count, 1).training[-1] for count in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.image, other.image)


# ---- what the figures show


class Constant(torch.nn.Module):
    """Predicts class 1 everywhere."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.0, 2.0, 0.5]))

    def forward(self, images):
        logits = self.bias[None, :, None, None].expand(len(images), 3, 40, 50)
        return Output(logits, logits)


def test_maps_are_taken_where_the_errors_are():
    target = torch.ones(80, 100, dtype=torch.int64)
    target[10:20, 60:90] = 2
    target[0] = VOID
    example = Example("made up", torch.rand(3, 80, 100), target)
    maps = pictures.zoom_in([example], Constant())
    assert maps["truth"].shape == (64, 64)
    assert (maps["truth"] == 2).sum() == 300
    log_softmax = torch.log_softmax(torch.tensor([0.0, 2.0, 0.5]), 0)
    np.testing.assert_allclose(maps["loss_ce"][maps["truth"] == 2], -log_softmax[2].item(), rtol=1e-5)
    np.testing.assert_array_equal(maps["gradient_ce"][maps["truth"] == VOID], 0)
    wrong, right = (maps[f"gradient_{name}"] for name in ("ce", "lal"))
    assert wrong[maps["truth"] == 2].mean() > wrong[maps["truth"] == 1].mean()
    assert right[maps["truth"] == 2].mean() > right[maps["truth"] == 1].mean()


class Threshold(torch.nn.Module):
    """Class 1 where the image is brighter than `level`."""

    def __init__(self, level):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, images):
        logits = torch.stack([torch.zeros_like(images[:, 0]), images[:, 0] - self.level], 1)
        return Output(logits, logits)


def test_shown_are_the_parts_where_the_networks_disagree():
    """Most of them in the second image, in none of the first."""
    images = torch.zeros(4, 3, 70, 90)
    images[1, :, 30:60, 5:35] = 0.5
    images[2, :, 2:5, 80:84] = 0.5
    images[3, :, 10:20, 10:20] = 0.5
    target = torch.zeros(70, 90, dtype=torch.int64)
    examples = [Example(str(index), image, target) for index, image in enumerate(images)]
    void = torch.full_like(target, VOID)
    examples.append(Example("void", images[1], void))
    arrays = pictures.collect(examples, {"focal": Threshold(0.4), "lal5": Threshold(0.6)})
    sizes = [int((arrays[f"focal_{row}"] != arrays[f"lal5_{row}"]).sum()) for row in range(pictures.ROWS)]
    assert sizes == [900, 100, 12]
    assert (arrays["image_0"].max(), arrays["focal_0"].shape) == (128, (pictures.MASK, pictures.MASK))


def test_examples_end_where_aligned_logits_do():
    example = Example("made up", torch.rand(3, 80, 97), torch.zeros(80, 97, dtype=torch.int64))
    network = Constant()
    assert pictures.up_to_last_logit(example, network) is example
    network.align_corners, network.output_stride = True, 8
    inner = pictures.up_to_last_logit(example, network)
    assert inner.image.shape == (3, 73, 97)
    assert inner.target.shape == (73, 97)


def test_gradients_are_multiples_of_their_mean():
    logits = torch.randn(1, 3, 8, 9)
    target = torch.randint(3, (1, 8, 9))
    target[0, 2] = VOID
    relative = pictures.relative_gradient(torch.nn.CrossEntropyLoss(ignore_index=VOID), logits, target)
    assert relative[target[0] != VOID].mean() == pytest.approx(1, abs=1e-5)
    assert (relative[2] == 0).all()


# ---- the experiment


def tiny_task(iterations=3):
    whole = small_tasks.make_nuclei()
    examples = [Example("part", whole.training[0].image[:, :96, :96], whole.training[0].target[:96, :96])]
    recipe = dataclasses.replace(whole.recipe, iterations=iterations, crop_size=32, evaluate_every=2)
    return dataclasses.replace(whole, training=examples, evaluation=examples, recipe=recipe)


@pytest.fixture(scope="module")
def experimented(tmp_path_factory):
    output = tmp_path_factory.mktemp("experiment")
    return experiment.run(tiny_task(), ["ce", "lal5"], [0, 1], output, Fabric(accelerator="cpu", devices=1))


def test_an_experiment_writes_tables_masks_and_figures(experimented):
    results = json.loads(experimented.read_text())
    assert [(run["loss"], run["seed"]) for run in results["runs"]] == [("ce", 0), ("lal5", 0), ("ce", 1), ("lal5", 1)]
    assert all(len(run["iou"]) == 3 and run["curve"][-1]["iteration"] == 3 for run in results["runs"])
    assert results["environment"]["torch"] == torch.__version__
    output = experimented.parent
    assert f"| {LOSSES['lal5'].title} | " in (output / "tables.md").read_text()
    with np.load(output / "results.npz") as arrays:
        assert {"image_0", "truth_0", "ce_0", "lal5_0", "zoom_gradient_lal"} <= set(arrays)
        assert arrays["ce_0"].shape == (pictures.MASK, pictures.MASK)
        assert json.loads(str(arrays["provenance"])) == {"environment": results["environment"], "shown_seed": 0}
    figures = {path.name for path in (output / "figures").iterdir()}
    assert figures == {f"training_nuclei_{name}.png" for name in ("curves", "classes", "masks", "gradients")}


def test_finished_runs_are_not_repeated(experimented, monkeypatch):
    before = json.loads(experimented.read_text())["runs"]
    monkeypatch.setattr(small_tasks.SmallNetwork, "forward", None)
    monkeypatch.setattr(pictures, "collect", lambda *_: {})
    monkeypatch.setattr(training, "draw", lambda *_: [])
    experiment.run(tiny_task(), ["ce", "lal5"], [0, 1], experimented.parent, Fabric(accelerator="cpu", devices=1))
    assert json.loads(experimented.read_text())["runs"] == before


def test_results_of_another_recipe_are_refused(experimented):
    with pytest.raises(ValueError, match=r"a run with recipe .* choose another output folder"):
        experiment.run(tiny_task(4), ["ce"], [0], experimented.parent, Fabric(accelerator="cpu", devices=1))
