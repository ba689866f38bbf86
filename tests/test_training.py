"""The training loop: a run that is interrupted comes to the bits of one that is not."""

import json
import signal

import pytest
import torch

pytest.importorskip("lightning_fabric")
pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from tiny_task import ITERATIONS, make_task

from lal_triton.benchmarks.training import loop
from lal_triton.benchmarks.training.evaluation import evaluate, predict, scores_of
from lal_triton.benchmarks.training.losses import LOSSES, Criterion, take_nearest
from lal_triton.benchmarks.training.samples import Stream, make_loader
from lal_triton.benchmarks.training.task import Example, Output, Recipe
from lal_triton.progress import start_bar


@pytest.fixture(autouse=True)
def one_thread():
    """Of tensors this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder, loss="ce", task=None, seed=0, precision="32-true"):
    plugin = MixedPrecision(precision, device="cpu") if precision == "16-mixed" else None  # Fabric would not on a CPU
    fabric = Fabric(accelerator="cpu", devices=1, precision=None if plugin else precision, plugins=plugin)
    return loop.train(task or make_task(), loss, seed, folder, fabric, start_bar(0, shown=False))


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_equal(one, other):
    """Bit by bit, through dictionaries and lists."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key != "seconds":
                assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("loss", "precision", "changes"),
    [
        ("ce", "32-true", {}),
        ("center", "32-true", {}),
        ("lal3", "32-true", {}),
        ("max-pooling", "32-true", {"optimizer": "adam"}),
        ("center", "bf16-mixed", {"checkpoint_every": 1}),
        ("ce", "16-mixed", {}),
    ],
)
def test_resumed_run_equals_uninterrupted(tmp_path, monkeypatch, loss, precision, changes):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    task = make_task(**changes)
    whole = train(tmp_path / "whole", loss, task, precision=precision)
    with monkeypatch.context() as patched:
        stop_in(5, patched)
        with pytest.raises(KeyboardInterrupt, match="stopped after iteration 5"):
            train(tmp_path / "parts", loss, task, precision=precision)
    assert checkpoint(tmp_path / "parts")["progress"]["iteration"] == 5
    torch.manual_seed(99)
    parts = train(tmp_path / "parts", loss, task, precision=precision)

    saved = checkpoint(tmp_path / "parts")
    assert ("_growth_tracker" in saved["precision"]) == (precision == "16-mixed")
    assert_equal(saved, checkpoint(tmp_path / "whole"))
    assert [row["iteration"] for row in saved["progress"]["rows"]] == [2, 4, 6, 8]
    assert [point["iteration"] for point in parts["curve"]] == [3, 6, 8]
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    assert (tmp_path / "parts/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def stop_in(iteration, monkeypatch):
    """The process gets a SIGTERM while it draws a sample of the iteration, which is counted from 1."""
    draw = Stream.__getitem__

    def interrupting(self, index):
        if index == iteration * make_task().recipe.batch_size - 1:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, index)

    monkeypatch.setattr(Stream, "__getitem__", interrupting)


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    task = make_task(checkpoint_every=2)
    train(tmp_path / "whole", "center", task)
    draw = Stream.__getitem__

    def failing(self, index):
        if index == 5 * task.recipe.batch_size:
            raise RuntimeError("killed")
        return draw(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "__getitem__", failing)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "parts", "center", task)
    assert checkpoint(tmp_path / "parts")["progress"]["iteration"] == 4
    train(tmp_path / "parts", "center", task)
    assert_equal(checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole"))


def test_workers_change_nothing(tmp_path):
    task = make_task()
    train(tmp_path / "none", task=task)
    fabric = Fabric(accelerator="cpu", devices=1)
    loop.train(task, "ce", 0, tmp_path / "two", fabric, start_bar(0, shown=False), workers=2)
    assert_equal(checkpoint(tmp_path / "two"), checkpoint(tmp_path / "none"))


def test_training_learns_and_keeps_what_is_frozen(tmp_path):
    task = make_task(iterations=60)
    result = train(tmp_path, "center", task)
    assert result["miou"] > 0.8  # colours tell the classes: chance is below 1/3
    assert result == {**json.loads((tmp_path / "result.json").read_text()), "recipe": result["recipe"]}
    saved = checkpoint(tmp_path)
    assert saved["criterion"]["center.centers"].abs().sum() > 0
    assert torch.equal(saved["network"]["norm.running_mean"], torch.zeros(6))
    restored = loop.restore(task, tmp_path)
    scores = evaluate(restored, task.evaluation, 3, Fabric(accelerator="cpu", devices=1))
    assert scores["iou"] == result["iou"]


def test_mixed_precision(tmp_path):
    result = train(tmp_path, "center", make_task(iterations=60), precision="bf16-mixed")
    assert result["miou"] > 0.8
    saved = checkpoint(tmp_path)
    assert saved["network"]["classifier.weight"].dtype == torch.float32
    assert saved["criterion"]["center.centers"].dtype == torch.float32
    with pytest.raises(ValueError, match="precision bf16-mixed, expected 32-true"):
        train(tmp_path, "center", make_task(iterations=60))


def test_another_run_is_not_taken_up(tmp_path):
    train(tmp_path, "ce")
    with pytest.raises(ValueError, match="loss ce, expected focal"):
        train(tmp_path, "focal")
    with pytest.raises(ValueError, match="seed 0, expected 1"):
        train(tmp_path, "ce", seed=1)
    with pytest.raises(ValueError, match=r"recipe .*'iterations': 8.*, expected .*'iterations': 9"):
        train(tmp_path, "ce", make_task(iterations=9))


def test_finished_run_is_reported_again(tmp_path):
    first = train(tmp_path)
    assert train(tmp_path) == first


def test_poly_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    task = make_task()
    train(tmp_path, task=task)
    rates = [row["learning_rate"] for row in checkpoint(tmp_path)["progress"]["rows"]]
    expected = [task.recipe.learning_rate * (1 - t / ITERATIONS) ** 0.9 for t in range(ITERATIONS)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_learning_rates_of_the_head():
    network = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    network["body"].bias.requires_grad_(False)
    optimizer = loop.make_optimizer(network, Recipe(learning_rate=0.5, momentum=0.8, weight_decay=0.1))
    found = {
        parameter: (group["lr"], group["momentum"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        network["body"].weight: (0.5, 0.8, 0.1),
        network["head"].weight: (5, 0.8, 0.1),
        network["head"].bias: (10, 0.8, 0.0),
    }


def test_samples_depend_on_seed_and_number_only():
    task = make_task()
    one, other = (Stream(task.training, task.recipe, seed=3) for _ in range(2))
    later = other[7]
    assert_equal([one[number] for number in range(8)][7], later)
    different = Stream(task.training, task.recipe, seed=4)
    assert any(not torch.equal(one[number].image, different[number].image) for number in range(4))


def test_every_epoch_draws_each_example_once():
    flat = [Example(str(i), torch.full((3, 8, 8), i / 10), torch.full((8, 8), i)) for i in range(5)]
    recipe = Recipe(crop_size=8, scales=(1.0, 1.0), flip=True)
    samples = Stream(flat, recipe, seed=0)
    drawn = [int(samples[number].target.unique()) for number in range(15)]
    for epoch in range(3):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert drawn[:5] != drawn[5:10]


def test_augmentation_moves_image_and_target_alike():
    """The image shows the label: wherever both are sharp they still agree, and what was padded is void."""
    target = torch.zeros(20, 30, dtype=torch.int64)
    target[5:15, 8:20] = 1
    example = Example("box", target[None].expand(3, -1, -1).float(), target)
    samples = Stream([example], Recipe(crop_size=24, scales=(0.5, 1.5)), seed=0)
    sizes = set()
    for number in range(40):
        _, image, labels = samples[number]
        assert image.shape == (3, 24, 24)
        assert image.dtype == torch.float32
        assert labels.shape == (24, 24)
        assert labels.dtype == torch.int64
        assert set(labels.unique().tolist()) <= {0, 1, 255}
        clear = (labels != 255) & ((image[0] < 0.1) | (image[0] > 0.9))
        assert clear.sum() > 0.5 * (labels != 255).sum()
        agree = (image[0] > 0.5).long()[clear] == labels[clear]
        assert agree.float().mean() > 0.95  # nearest and bilinear interpolation differ by up to a pixel at the border
        sizes.add(int((labels == 1).sum()))
    assert len(sizes) > 10


def test_ranks_share_the_samples_of_an_iteration():
    task = make_task()
    stream = Stream(task.training, task.recipe, 0)
    shares = [make_loader(stream, task.recipe, 2, rank, 3, 0).batch_sampler for rank in range(3)]
    size = task.recipe.batch_size
    for step, parts in enumerate(zip(*shares, strict=True)):
        assert [len(part) for part in parts] == [2, 1, 1]
        assert sorted(index for part in parts for index in part) == list(range((2 + step) * size, (3 + step) * size))
    assert step == ITERATIONS - 3
    with pytest.raises(ValueError, match="batch_size = 4 for 5 processes"):
        make_loader(stream, task.recipe, 0, 0, 5, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_criteria_have_gradients(name):
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    features = torch.randn(2, 7, 5, 6, requires_grad=True)
    target = torch.randint(0, 4, (2, 10, 12))
    Criterion(name, 4, 7)(Output(logits, features), target).backward()
    assert logits.grad.abs().sum() > 0
    assert (features.grad is not None) == (name == "center")


def test_unknown_loss():
    with pytest.raises(ValueError, match="loss = 'dice', expected one of ce, center"):
        Criterion("dice", 2, 2)


@pytest.mark.parametrize(
    ("length", "count", "align_corners", "expected"),
    [(9, 3, True, [0, 4, 8]), (321, 41, True, list(range(0, 321, 8))), (12, 3, False, [2, 6, 10]), (5, 1, True, [0])],
)
def test_labels_are_taken_where_the_features_lie(length, count, align_corners, expected):
    target = torch.arange(length).expand(1, 2, length)
    taken = take_nearest(target, (2, count), align_corners)
    assert taken.tolist() == [[expected] * 2]
    assert torch.equal(take_nearest(target.mT, (count, 2), align_corners).mT, taken)


def test_scores_of_counts_by_hand():
    scores = scores_of(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert scores["iou"] == [3 / 6, 4 / 7, None]
    assert scores["miou"] == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(7 / 10)


class Oracle(torch.nn.Module):
    """Logits at half the size that are right but for one corner; the red channel holds the label."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        labels = images[:, 0, ::2, ::2].round().long().clone()
        labels[:, :2, :2] = 1
        return Output(10 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float(), images)


def test_evaluation_leaves_void_out():
    target = torch.zeros(8, 12, dtype=torch.int64)
    image = target[None].expand(3, -1, -1).float()
    fabric = Fabric(accelerator="cpu", devices=1)
    assert predict(Oracle(), image)[:3, :3].tolist() == [[1] * 3] * 3
    target[:5, :5] = 255
    scores = evaluate(Oracle(), [Example("x", image, target)], 2, fabric)
    assert scores["iou"] == [1.0, None]
    target[:5, :5] = 0
    assert evaluate(Oracle(), [Example("x", image, target)], 2, fabric)["pixel_accuracy"] < 1


def test_evaluation_puts_the_network_back():
    for mode in (True, False):
        oracle = Oracle().train(mode)
        target = torch.zeros(8, 8, dtype=torch.int64)
        evaluate(oracle, [Example("x", torch.zeros(3, 8, 8), target)], 2, Fabric(accelerator="cpu", devices=1))
        assert oracle.training == mode


class Corners(torch.nn.Module):
    """Class 1 to the right of the middle of an image, whose logits lie at every fourth pixel from the first."""

    align_corners, output_stride = True, 4

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        self.size = images.shape[2:]
        right = images[:, 0, ::4, ::4]
        return Output(torch.stack([0.5 - right, right - 0.5], 1), images)


def test_prediction_with_aligned_corners():
    """A linear ramp stays one when its logits are interpolated where they lie, also beyond the last of them."""
    ramp = (torch.arange(15) / 16).expand(3, 11, 15)
    network = Corners()
    labels = predict(network, ramp)
    assert network.size == (13, 17)
    assert torch.equal(labels[:, :13], (ramp[0] > 0.5).long()[:, :13])  # the padding repeats the last column
    assert labels.shape == (11, 15)
