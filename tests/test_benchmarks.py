"""The benchmark measures what it says, on the data that it says; nothing here asserts on a time."""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lal_triton import functional

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from PIL import Image

from lal_triton import plots
from lal_triton.benchmarks import (
    capacity,
    cases,
    environment,
    libraries,
    load,
    memory,
    peers,
    runner,
    scenes,
    table,
    timing,
    voc,
)
from lal_triton.benchmarks.expected import expected_seconds

CPU = torch.device("cpu")
CHECKOUT = Path(__file__).parents[1]


def blocky_example(num_classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 13, 17, dtype=dtype, generator=generator, requires_grad=True)
    blocks = torch.randint(num_classes, (2, 4, 5), generator=generator)
    target = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :13, :17].contiguous()
    target[0, 3] = scenes.VOID
    return logits, target


# ---- peers


@pytest.mark.parametrize("peer", [peers.unfold_lal, peers.shift_add_lal])
@pytest.mark.parametrize(("kernel_size", "p"), [(1, 1.0), (3, 3.0), (5, 3.0), (7, 2.0)])
def test_peers_compute_the_loss_and_its_gradient(peer, kernel_size, p):
    logits, target = blocky_example()
    expected = functional.locally_adaptive_loss(logits, target, kernel_size=kernel_size, p=p, backend="reference")
    found = peer(logits, target, kernel_size, p)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (found_gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_focal_peer_computes_the_loss_and_its_gradient():
    logits, target = blocky_example()
    expected = functional.focal_loss(logits, target, backend="reference")
    found = peers.focal_loss(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (found_gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def gradients_of(loss, expected, logits):
    return (torch.autograd.grad(value, logits)[0] for value in (loss, expected))


@pytest.mark.parametrize(("name", "module"), [("monai_focal", "monai"), ("kornia_focal", "kornia")])
def test_focal_losses_of_other_libraries_are_ours(name, module):
    pytest.importorskip(module)
    logits, target = blocky_example(dtype=torch.float32)  # which MONAI computes in
    expected = functional.focal_loss(logits.double(), target, backend="reference")
    loss = libraries.LOSSES[name](target)(logits)
    # a pixel's term, and their sum over 2 x 13 x 17 pixels in blocks, is some ten roundings of 2^-24 from exact
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    found, wanted = gradients_of(loss, expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())


def test_cross_entropy_on_a_row_per_pixel_is_cross_entropy():
    logits, target = blocky_example()
    expected = F.cross_entropy(logits, target, ignore_index=scenes.VOID)
    loss = libraries.flat_cross_entropy(target)(logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found, wanted = gradients_of(loss, expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-16)


def test_cross_entropy_of_liger_is_cross_entropy_and_leaves_the_logits(monkeypatch):
    pytest.importorskip("liger_kernel")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton's interpreter runs it
    logits, target = (tensor.detach().to(device) for tensor in blocky_example(dtype=torch.float32))
    before = logits.clone()
    logits.requires_grad_()
    expected = F.cross_entropy(logits, target, ignore_index=scenes.VOID)
    loss = libraries.liger_cross_entropy(target)(logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    found, wanted = gradients_of(loss, expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())
    assert torch.equal(logits, before)


def test_cross_entropy_of_smp_counts_void_pixels():
    pytest.importorskip("segmentation_models_pytorch")
    logits, target = blocky_example()
    expected = F.cross_entropy(logits, target, ignore_index=scenes.VOID, reduction="sum") / target.numel()
    loss = libraries.smp_cross_entropy(target)(logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found, wanted = gradients_of(loss, expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-16)


def test_focal_loss_of_smp_is_that_of_each_class_on_its_sigmoid():
    pytest.importorskip("segmentation_models_pytorch")
    logits, target = blocky_example()
    valid = target != scenes.VOID
    one_hot = F.one_hot(target[valid], scenes.VOID + 1)[:, : logits.shape[1]].to(logits)
    p = logits.movedim(1, -1)[valid].sigmoid()
    right, alpha = torch.where(one_hot == 1, p, 1 - p), torch.where(one_hot == 1, 0.25, 0.75)
    target_loss = -(alpha * (1 - right) ** 2 * right.log()).mean()
    torch.testing.assert_close(libraries.smp_focal(target)(logits), target_loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("peer", [peers.unfold_lal, peers.shift_add_lal])
def test_peers_accumulate_half_precision_in_float32(peer):
    logits, target = blocky_example(dtype=torch.bfloat16)
    loss = peer(logits, target)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, logits)[0].dtype == torch.bfloat16


# ---- scenes


def test_nuclei_are_folded_into_classes_with_void_borders():
    scene = scenes.read_nuclei(5)
    assert scene.image.shape == (512, 512, 3)
    assert scene.image.dtype == np.float32
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert set(np.unique(scene.labels)) == {0, 1, 2, 3, 4, scenes.VOID}
    assert 0.7 < (scene.labels == 0).mean() < 0.9


def test_outline_is_the_inner_border_of_each_instance():
    instances = np.zeros((6, 9), dtype=int)
    instances[1:5, 1:5] = 1
    instances[1:5, 5:8] = 2
    expected = np.zeros((6, 9), dtype=bool)
    expected[1:5, 1:8] = True
    expected[2:4, 2:4] = expected[2:4, 6] = False
    assert (scenes.outline(instances) == expected).all()


def test_network_is_right_at_most_pixels_and_deterministic():
    scene = scenes.read_nuclei(21)
    logits = scenes.predict(*scene, 21)
    assert logits.shape == (21, 512, 512)
    assert logits.dtype == np.float32
    valid = scene.labels != scenes.VOID
    assert (logits.argmax(0) == scene.labels)[valid].mean() > 0.9
    assert np.array_equal(logits, scenes.predict(*scene, 21))
    assert not np.array_equal(logits, scenes.predict(*scene, 21, seed=1))


@pytest.mark.parametrize("size", [7, 64, 130, 300])
def test_batches_hold_different_crops_with_their_own_labels(size):
    labels = np.arange(100)[:, None] * 120 + np.arange(120)
    logits = np.stack([labels, -labels]).astype(np.float32)
    crops, target = scenes.make_batch([(logits, labels)], 3, size)
    assert crops.shape == (3, 2, size, size)
    assert target.shape == (3, size, size)
    assert target.dtype == torch.int64
    assert torch.equal(crops[:, 0].long(), target)
    assert torch.equal(crops[:, 1].long(), -target)
    assert not torch.equal(target[0], target[1])
    again = scenes.make_batch([(logits, labels)], 3, size)
    assert torch.equal(again[0], crops)


@pytest.mark.parametrize(("size", "ratio"), [(16, 4), (96, 8), (240, 4), (9, 3)])
def test_small_logits_are_averages_over_the_squares_of_their_labels(size, ratio):
    labels = np.arange(101)[:, None] * 123 + np.arange(123)
    logits = np.stack([labels, -labels]).astype(np.float32)
    crops, target = scenes.make_batch([(logits, labels)], 3, size, ratio)
    assert crops.shape == (3, 2, size // ratio, size // ratio)
    assert target.shape == (3, size, size)
    expected = F.avg_pool2d(target.float(), ratio)
    torch.testing.assert_close(crops, torch.stack([expected, -expected], 1))


# ---- PASCAL VOC


@pytest.fixture
def voc_folder(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("2007_1", "2007_2"):
        Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        labels = Image.fromarray(np.repeat([[0], [20], [255], [7]], 10, axis=0).repeat(50, axis=1).astype(np.uint8))
        labels.putpalette([channel for label in range(256) for channel in voc.voc_colour(label)])
        assert labels.mode == "P"
        labels.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_1\n2007_2\n")
    return tmp_path


@pytest.mark.parametrize("below", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_read_from_any_of_its_folders(voc_folder, below):
    read = voc.read_voc(voc_folder / below, 5)
    assert len(read) == 2
    assert read[0].image.shape == (40, 50, 3)
    assert read[0].labels[[0, 10, 20, 30], 0].tolist() == [0, 20, 255, 7]


@pytest.mark.parametrize("missing", ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt"])
def test_voc_errors_name_what_is_missing(voc_folder, missing):
    path = voc_folder / "VOCdevkit/VOC2012" / missing
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=f"holds no {missing}"):
        voc.read_voc(voc_folder, 1)


def test_voc_errors_name_a_wrong_label_image(voc_folder):
    path = voc_folder / "VOCdevkit/VOC2012/SegmentationClass/2007_1.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"2007_1\.png has the mode RGB"):
        voc.read_voc(voc_folder, 1)


# ---- memory and time


@torch.library.custom_op("lal_triton_tests::three_halves", mutates_args=())
def three_halves(x: torch.Tensor) -> torch.Tensor:
    """Allocates its result and, while that lives, two temporaries, one after the other."""
    result = x.clone()
    for _ in range(2):
        result += torch.zeros(x.numel() // 2)
    return result


def test_memory_counts_the_peak_and_not_the_sum():
    x = torch.zeros(2**18)

    def run():
        for _ in range(3):
            torch.zeros(2**18).add(1)

    assert memory.peak_bytes(run, CPU) == pytest.approx(2 * x.nbytes, abs=64)  # and the number as a tensor


def test_memory_counts_what_a_custom_op_allocates():
    x = torch.zeros(2, 2**17)
    assert memory.peak_bytes(lambda: three_halves(x), CPU) == 1.5 * x.nbytes


def test_memory_of_cross_entropy_is_three_times_the_logits():
    logits = torch.randn(2, 21, 65, 65, requires_grad=True)
    target = torch.randint(21, (2, 65, 65))
    peak = memory.peak_bytes(lambda: torch.autograd.grad(F.cross_entropy(logits, target), logits), CPU)
    assert peak / logits.nbytes == pytest.approx(3, abs=0.001)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "shift_add", "unfold"])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("upsampling", [1, 4])
def test_what_peers_need_is_estimated_from_above(name, kernel_size, upsampling):
    assert_estimated_from_above(name, kernel_size, upsampling)


@pytest.mark.parametrize(
    "name", ["monai_focal", "kornia_focal", "smp_focal", "smp_cross_entropy", "flat_cross_entropy"]
)
@pytest.mark.parametrize("upsampling", [1, 4])
def test_what_other_libraries_need_is_estimated_from_above(name, upsampling):
    library = {"monai": "monai", "kornia": "kornia", "smp": "segmentation_models_pytorch"}.get(name.split("_")[0])
    if library:
        pytest.importorskip(library)
    assert_estimated_from_above(name, None, upsampling)


def assert_estimated_from_above(name, kernel_size, upsampling):
    case = cases.Case(name, None, False, kernel_size, 64, torch.float32, 1, 20, upsampling=upsampling)
    side = case.size // upsampling
    logits = torch.randn(1, 20, side, side, requires_grad=True)
    loss = runner.loss_function(case, torch.randint(20, (1, 64, 64)))
    peak = memory.peak_bytes(lambda: torch.autograd.grad(loss(logits), logits), CPU)
    assert peak <= capacity.bytes_needed(case) + 64 <= 1.25 * peak


def test_available_memory_is_that_of_the_machine():
    available = capacity.available_bytes(CPU)
    assert available is None or 2**20 < available < 2**50


def test_quartiles():
    assert timing.summarise([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0, 5)
    assert timing.summarise([7.0]) == (7.0, 7.0, 7.0, 1)


def test_commit_is_that_of_the_package_and_of_no_repository_around_it(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "site-packages").mkdir()
    assert environment.commit(tmp_path / "site-packages") is None


# ---- the whole benchmark


def tiny_settings(**changes):
    settings = cases.Settings(
        device=CPU,
        dtypes=(torch.float32,),
        backends=("cpu",),
        kernel_sizes=(1, 3),
        batch_size=2,
        num_classes=(4,),
        size=17,
        sweep=(9,),
        quick=True,
    )
    return settings._replace(**changes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A tiny run where torch.compile is that of a machine without a compiler."""

    def no_compiler(loss, **_):
        def fail(logits):
            raise RuntimeError("No working C++ compiler found\nand a long trace")

        return fail

    path = tmp_path_factory.mktemp("bench") / "results.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", no_compiler)
        shares = itertools.chain([0.9, 0.95, 0.5], itertools.repeat(0.95))  # busy after the second case
        patch.setattr(runner, "processor_share", lambda threads: next(shares))
        runner.run(tiny_settings(), {4: [scenes.read_nuclei(4)]}, path)
    return path


def test_a_run_records_every_case_and_phase(results):
    data = json.loads(results.read_text())
    assert {"device", "cpu", "cores", "torch", "triton", "numpy", "numba", "python", "commit", "date"} <= set(
        data["environment"]
    )
    keys = ("name", "backend", "compiled", "kernel_size", "height", "dtype", "phase", "beside", "one_thread")
    rows = {tuple(row[key] for key in keys): row for row in data["rows"]}
    assert len(rows) == len(data["rows"])
    planned = cases.plan(tiny_settings())
    assert len(rows) == sum(1 if case.name == "copy" else 3 for case in planned)
    for row in data["rows"]:
        if row["skipped"] is None:
            assert 0 < row["lower_ms"] <= row["median_ms"] <= row["upper_ms"]
            assert (row["peak_bytes"] is None) == (row["phase"] != "step")


def test_a_run_computes_the_same_loss_in_every_implementation(results):
    rows = [row for row in json.loads(results.read_text())["rows"] if row["kernel_size"] and row["loss"]]
    again = 1 + (torch.get_num_threads() > 1)  # ours beside busy processes, and on one thread where there are more
    assert len(rows) == (3 * 3 + again) * 3  # implementations and cases; phases
    for row in rows:
        alike = [r["loss"] for r in rows if (r["kernel_size"], r["height"]) == (row["kernel_size"], row["height"])]
        assert alike == pytest.approx([row["loss"]] * len(alike), rel=1e-5)


def test_what_cannot_be_compiled_is_recorded_as_skipped(results):
    rows = json.loads(results.read_text())["rows"]
    reasons = {(row["name"], row["height"]): row["skipped"] for row in rows if row["compiled"]}
    assert reasons == {
        ("cross_entropy", 17): "RuntimeError: No working C++ compiler found",
        ("cross_entropy", 9): "left out by --quick",
        ("shift_add", 17): "left out by --quick",
    }
    assert not any(row["skipped"] for row in rows if not row["compiled"])


def test_the_table_shows_every_loss_within_120_columns(results):
    data = json.loads(results.read_text())
    text = table.format_table(data)
    assert max(map(len, text.splitlines())) <= 120
    threads = torch.get_num_threads()
    assert text.count("lal_triton LAL (cpu)") == 4 + (threads > 1)
    for circumstance in [f"beside {threads} busy processes"] + ["on one thread"] * (threads > 1):
        again = text.split(circumstance)[1].split("\n\n")[0]
        assert all(
            again.count(name) == 1 for name in ("F.cross_entropy ", "lal_triton CE (cpu)", "lal_triton LAL (cpu)")
        )
    assert text.count("skipped: RuntimeError: No working C++ compiler found") == 1


@pytest.mark.long
def test_every_stage_of_the_cpu_is_timed(monkeypatch, capsys):
    from lal_triton.benchmarks import cpu_stages

    monkeypatch.setattr(sys, "argv", ["cpu_stages", "--num-classes", "4", "--width", "32"])
    cpu_stages.main()
    times = {
        line[:20].strip(): [float(number) for number in line[20:].split()]
        for line in capsys.readouterr().out.splitlines()
    }
    assert times.keys() == cpu_stages.STAGES.keys()
    assert all(0 < least <= median for least, median in times.values())


def test_busy_processes_run_until_the_block_ends():
    with load.busy_processes(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
        before = os.times().children_user
        time.sleep(0.5)
    assert all(process.poll() is not None for process in processes)
    assert os.times().children_user > before


def test_threads_beside_busy_processes_get_less_than_a_core():
    with load.busy_processes(3 * (os.cpu_count() or 1)):
        busy = [load.processor_share(2) for _ in range(3)]
    assert max(busy) < load.BUSY
    # as much as the other tests and processes leave, but at some time more than beside these
    assert any(load.processor_share(1) > 1.2 * max(busy) for _ in range(20))


def test_rows_tell_what_a_thread_got_beside_their_case(results):
    rows = json.loads(results.read_text())["rows"]
    copy, cross_entropy, *_ = cases.plan(tiny_settings())
    assert (copy.name, cross_entropy.name) == ("copy", "cross_entropy")
    found = [row["processor_share"] for row in rows]
    assert found[:1] == [0.9]  # the smaller one of before and after
    assert found[1:7] == [0.5] * 6  # the phases of the second and the third case
    assert set(found[7:]) == {0.95}


def test_the_table_marks_times_of_a_busy_machine(results):
    data = json.loads(results.read_text())
    lines = table.format_table(data).splitlines()
    marked = [line for line in lines if line.endswith(" busy")]
    assert [line.split()[0] for line in marked] == ["F.cross_entropy"]  # the third case has no compiler
    measured = sum(row["phase"] == "step" and not row["skipped"] for row in data["rows"])
    assert f"The machine was busy: 1 of {measured} times are too long" in lines[1]
    assert "0.50 of a core" in lines[1]
    for row in data["rows"]:
        del row["processor_share"]  # as in older files
    assert "busy:" not in table.format_table(data)


def test_a_gpu_is_not_measured_beside_busy_processes_nor_on_one_thread():
    planned = cases.plan(tiny_settings(device=torch.device("cuda")))
    assert {(case.beside, case.one_thread) for case in planned} == {(0, False)}


def test_a_loss_on_one_thread_leaves_torch_its_threads():
    before = torch.get_num_threads()
    with load.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("ratios", [(), (4,)])
def test_other_libraries_are_measured_once_at_each_setting_where_asked(ratios):
    settings = tiny_settings(ratios=ratios, size=16, sweep=(8,))
    assert not {case.name for case in cases.plan(settings)} & set(libraries.LOSSES)
    planned = cases.plan(settings._replace(peers=True))
    found = {case.name: case for case in planned if case.name in libraries.LOSSES}
    assert found.keys() == libraries.LOSSES.keys()
    assert sum(case.name in libraries.LOSSES for case in planned) == len(found)
    assert {(case.size, case.upsampling) for case in found.values()} == {(16, max(ratios, default=1))}
    assert {name for name, case in found.items() if case.skipped} == {"liger_cross_entropy", "flat_cross_entropy"}
    on_gpu = cases.plan(settings._replace(peers=True, device=torch.device("cuda")))
    assert not any(case.skipped for case in on_gpu if case.name in libraries.LOSSES)
    assert {"focal", "own_focal"} <= {case.name for case in planned if case.size == 16}


@pytest.mark.parametrize("missing", ["monai", "kornia", "segmentation_models_pytorch"])
def test_a_library_that_is_not_installed_is_named_in_the_table(tmp_path, monkeypatch, missing):
    for name in list(sys.modules):
        if name.startswith(missing):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(runner, "processor_share", lambda threads: 1.0)
    settings = tiny_settings(ratios=(4,), size=16, sweep=(), kernel_sizes=(1,), peers=True)
    names = ("cross_entropy", "monai_focal", "kornia_focal", "smp_focal")
    planned = [case for case in cases.plan(settings) if case.name in names and not case.compiled]
    runner.run(settings, {4: [scenes.read_nuclei(4)]}, tmp_path / "results.json", planned)
    text = table.format_table(json.loads((tmp_path / "results.json").read_text()))
    assert max(map(len, text.splitlines())) <= 120
    assert any("skipped: ModuleNotFoundError" in line and missing in line for line in text.splitlines())


def test_cases_that_take_long_to_compile_come_last():
    planned = cases.plan(tiny_settings(quick=False))
    compiled = [case.name == "shift_add" and case.compiled for case in planned]
    assert compiled == sorted(compiled)
    assert sum(compiled) == 2


# ---- plots


def test_expected_times_are_those_of_what_runs():
    def expect(case, **changes):
        settings = tiny_settings(**changes)
        return expected_seconds(case, settings, runner.effort_for(case, settings))

    case = cases.Case("unfold", None, False, 3, 321, torch.float32, 2, 21)
    assert expect(case._replace(skipped="left out by --quick")) == 0
    assert expect(case, memory_limit=0) == 0
    once, in_window = expect(case._replace(kernel_size=1)), expect(case)
    around = expect(case._replace(size=1, kernel_size=1))
    assert in_window - around == pytest.approx(9 * (once - around), rel=1e-3)  # but for the one pixel
    assert 0 < expect(case, device=torch.device("cuda")) < in_window
    compiled = case._replace(name="shift_add", compiled=True)
    assert expect(compiled) - expect(compiled._replace(compiled=False)) == pytest.approx(18)


def test_plots_are_drawn_from_a_results_file(results, tmp_path):
    written = plots.draw(results, tmp_path)
    assert [path.name for path in written] == [
        "time_vs_kernel_size.png",
        "memory_vs_kernel_size.png",
        "time_vs_image_size.png",
    ]
    for path in written:
        assert min(Image.open(path).size) > 500


def test_plots_leave_out_what_was_skipped(results):
    from lal_triton.plots import charts

    data = json.loads(results.read_text())
    figure = charts.make_figures(data["rows"], data["environment"])["time_vs_kernel_size"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines() if line.get_label() != "_busy"}
    own = ("lal_triton LAL (cpu)", "lal_triton cross-entropy (cpu)")
    assert set(lines) == {"LAL by F.unfold", "LAL by shift-and-add", *own, "F.cross_entropy"}
    assert list(lines["lal_triton LAL (cpu)"].get_xdata()) == [1, 3]
    (cross_entropy,) = {*lines["F.cross_entropy"].get_ydata()}
    assert cross_entropy > 0


def test_no_plot_is_drawn_of_an_empty_run(tmp_path):
    path = tmp_path / "results.json"
    runner.write_results(path, environment.describe(CPU), [])
    assert plots.draw(path, tmp_path) == []
    assert table.format_table(json.loads(path.read_text()))


# ---- upsampling


@pytest.fixture(scope="module")
def upsampled_results(tmp_path_factory):
    path = tmp_path_factory.mktemp("upsampled") / "results_upsampled.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda loss, **_: loss)
        patch.setattr(runner, "processor_share", lambda threads: 1.0)
        runner.run(upsampled_settings(), {c: [scenes.read_nuclei(c)] for c in (3, 5)}, path)
    return path


def upsampled_settings(**changes):
    settings = tiny_settings(
        backends=("reference",),
        num_classes=(3, 5),
        size=16,
        sweep=(8, 32),
        quick=False,
        ratios=(2, 4),
    )
    return settings._replace(**changes)


def test_small_logits_give_the_same_loss_in_every_implementation(upsampled_results):
    rows = [row for row in json.loads(upsampled_results.read_text())["rows"] if row["phase"] == "step"]
    keys = ("upsampling", "memory_sweep", "num_classes", "height", "kernel_size")
    groups = {}
    for row in rows:
        if row["loss"] and row["name"] != "own_focal":
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["loss"])
    assert len(groups) == 2 * 2 * 3 + 2 * 2  # cross-entropy and two kernel sizes; the sweep has one kernel size
    assert {len(losses) for losses in groups.values()} == {2, 3}
    for losses in groups.values():
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_rows_of_small_logits_tell_their_sizes(upsampled_results):
    for row in json.loads(upsampled_results.read_text())["rows"]:
        assert row["full_bytes"] == row["batch_size"] * row["num_classes"] * row["height"] ** 2 * 4
        assert row["logits_bytes"] * row["upsampling"] ** 2 == row["full_bytes"]
        assert row["batch_size"] == (1 if row["memory_sweep"] else 2)


def test_peers_that_do_not_fit_are_skipped_and_ours_are_not():
    settings = upsampled_settings(memory_limit=0, ratios=(4,), sweep=(), num_classes=(3,))
    batches = runner.make_batches({3: [scenes.read_nuclei(3)]})
    for case in cases.plan(settings):
        for row in runner.measure(case, settings, batches):
            refused = case.name in ("cross_entropy", "unfold")
            assert (row["needed_bytes"] is not None) == refused
            assert (row["skipped"] or "").startswith("does not fit: needs") == refused


def test_quick_leaves_out_the_slowest_peers():
    planned = cases.plan(upsampled_settings(quick=True, sweep=()))
    unfold = {(case.num_classes, case.kernel_size): case.skipped for case in planned if case.name == "unfold"}
    assert [key for key, skipped in unfold.items() if not skipped] == [(3, 1)]


def test_the_table_shows_small_logits(upsampled_results):
    text = table.format_table(json.loads(upsampled_results.read_text()))
    assert max(map(len, text.splitlines())) <= 120
    assert "16 x 16, N = 2, C = 5, float32, logits upsampled x 4" in text
    assert text.count("lal_triton focal (reference)") == 2 * 2 + 2


def test_plots_of_small_logits_show_what_does_not_fit(upsampled_results, tmp_path):
    from lal_triton.plots import upsampled

    names = ["upsampled_headline.png", "upsampled_time.png", "memory_vs_image_size_upsampled.png"]
    assert [path.name for path in plots.draw(upsampled_results, tmp_path)] == names
    data = json.loads(upsampled_results.read_text())
    steps = [row for row in data["rows"] if row["phase"] == "step"]
    for row in steps:
        if row["name"] == "unfold":
            row |= {"skipped": "does not fit", "needed_bytes": 5 * 2**30}
    time = upsampled.draw_time(steps, data["environment"])
    assert len(time.axes) == 4
    assert sum("does not fit (needs 5.0 GiB)" in text.get_text() for axes in time.axes for text in axes.texts) == 8
    lines = {line.get_label(): line for line in upsampled.draw_memory(steps, data["environment"]).axes[0].get_lines()}
    assert list(lines["F.interpolate + LAL by F.unfold, K = 1"].get_ydata()) == [5, 5]
    assert list(lines["lal_triton LAL (reference), K = 1"].get_xdata()) == [8, 32]
