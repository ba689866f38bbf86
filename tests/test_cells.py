"""The Triton kernels of losses without a window through an upsampling, by the usual criterion."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, in_layout, make_problem, step_of, value_and_gradient
from test_backends import assert_matches_reference

pytest.importorskip("triton")

from triton.runtime import interpreter

from lal_triton import CrossEntropyLoss, functional, steps
from lal_triton.bilinear import Axis, Cells, most_pixels
from lal_triton.kernels import configs
from lal_triton.kernels.compiling import record_step
from lal_triton.kernels.host.plan import Plan
from lal_triton.options import Pooling, make_options

pytestmark = pytest.mark.usefixtures("poison")
PLAIN = {"kernel_size": 1, "normalize": False, "window": "uniform"}
SMALL = {
    "cell_loss_fwd": {"lanes": 32, "columns": 2},
    "cell_loss_bwd": {"lanes": 32, "columns": 2, "rows": 2, "classes": 3},
}


def make_cells(low=(3, 5), ratio=4, classes=5, images=2, size=None, **problem):
    size = size or tuple(ratio * side for side in low)
    logits = make_problem((images, classes, *low), **problem)[0]
    target = make_problem((images, classes, *size), labels=max(2, classes - 2))[1]  # other classes take the fast way
    return logits, target


def check(logits, target, dtype=torch.float32, **options):
    assert_matches_reference(logits, target, "triton", dtype, **{**PLAIN, **options})


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Triton's interpreter rounds the product in an fma of float32 numbers, which no GPU does."""

    def create_fma(_self, x, y, z):
        with np.errstate(invalid="ignore"):
            value = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(value.astype(z.data.dtype), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)


@pytest.fixture
def small_patches():
    """Several patches to a cell along both axes, strips of two rows, and classes in groups."""
    with configs.forcing(SMALL):
        yield


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("low", "ratio"),
    [((5, 4), 2), ((3, 12), 4), ((2, 3), 8), ((1, 2), 16), pytest.param((1, 2), 32, marks=pytest.mark.long)],
    ids=str,
)
def test_whole_ratios(low, ratio, align_corners):
    check(*make_cells(low, ratio), align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("low", "size"),
    [((3, 4), (13, 11)), ((2, 6), (16, 12)), ((5, 7), (6, 7)), ((1, 1), (9, 8)), ((4, 1), (9, 1))],
    ids=str,
)
def test_other_ratios(low, size, align_corners):
    check(*make_cells(low, size=size), align_corners=align_corners)


@pytest.mark.parametrize("low", [1, 2, 3, 7])
@pytest.mark.parametrize("align_corners", [False, True])
def test_cells_have_each_pixel_where_it_is_interpolated(low, align_corners):
    for high in range(low, 40):
        cells = Cells.of(low, high, align_corners)
        assert cells.start[0] == 0
        assert cells.start[-1] == high
        axis = Axis.of(low, high, align_corners)
        pixel = torch.arange(high)
        cell = torch.searchsorted(cells.start, pixel, right=True) - 1
        place = cell - 1 + cells.fraction[cell] + (pixel - cells.start[cell]).double() * cells.step
        torch.testing.assert_close(place.clamp(0, low - 1), axis.lower + axis.fraction, rtol=0, atol=1e-12)
        assert cells.most == cells.start.diff().max() <= most_pixels(low, high, align_corners)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"p": 3.0, "reduction": "minkowski"},
        {"cost": "focal"},
        {"cost": "focal", "focal_gamma": 0.5, "reduction": "none"},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.1, "reduction": "sum", "weight": torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0])},
        {"weight": torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0]), "reduction": "mean"},
        {"stride": 3},
        {"window": [[1.5]]},
    ],
    ids=str,
)
def test_options(small_patches, options):
    if "weight" in options:
        options = {**options, "weight": options["weight"].to(DEVICE)}
    check(*make_cells((5, 4)), **options)


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_logits_close_and_far_apart_beside_each_other(ratio, options):
    """Pixels refer to the pivot of their cell or to their own highest logit, in both passes alike."""
    logits, target = make_cells((4, 9), ratio, classes=3, images=1)
    logits[:, :, 2:, 4:6] *= 200.0
    with configs.forcing({**SMALL, "cell_loss_fwd": {"lanes": 32, "columns": 4}}):
        check(logits, target, **options)


@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"cost": "focal"}], ids=str)
def test_large_logits(scale, options):
    check(*make_cells(images=1, scale=scale), **options)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_common_offset(small_patches, scale):
    check(*make_cells(scale=scale, offset=1e3), label_smoothing=0.1)


@pytest.mark.parametrize("scale", [7.0, 10.0, 100.0])
def test_neighbours_that_cancel(scale):
    logits, target = make_cells((4, 6))
    sign = torch.tensor([1.0, -1.0], device=DEVICE)
    base = logits[:, :, :1, :1] * scale * sign.repeat(3) * sign.repeat(2)[:, None]
    check(base + 1e-3 * logits, target)


def test_certain_pixels_keep_their_digits():
    """Of losses of 1e-6 each has its digits: the own class's term is not taken from a sum that it is most of."""
    logits, target = make_cells((3, 4), classes=4)
    target[:] = 2
    logits[:, 2] += 20.0
    options = {"reduction": "none", **PLAIN}
    oracle = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    expected, expected_gradient = (value.cpu() for value in oracle)
    found = value_and_gradient(logits, target, torch.float32, backend="triton", **options)
    loss, gradient = (value.cpu().double() for value in found)
    assert expected.max() < 1e-5
    torch.testing.assert_close(loss, expected, rtol=5e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-12)


def test_classes_that_share_a_bit():
    """Labels 3 and 35 have the same bit in the set of a program's labels."""
    logits = make_cells((2, 3), classes=40)[0]
    target = torch.full((2, 8, 12), 3, device=DEVICE)
    target[:, :, 6:] = 35
    check(logits, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [4, 8])
def test_half_precision(small_patches, dtype, ratio):
    check(*make_cells((3, 4), ratio, images=1), dtype=dtype, reduction="none")


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_layouts_and_wide_offsets(monkeypatch, layout):
    logits, target = make_cells()
    logits = in_layout(logits, layout)
    for most in (configs.MOST_OFFSET, 0):
        monkeypatch.setattr(configs, "MOST_OFFSET", most)
        steps.clear()
        check(logits, target, reduction="none")


def test_many_rows(small_patches):
    """More strips, and more lanes, than a program has."""
    check(*make_cells((7, 11), 2, classes=4, images=2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_stay_in_their_cells(bad):
    clean, target = make_cells((4, 6))
    logits = clean.clone()
    logits[0, 1, 1, 2] = bad
    near = torch.zeros(2, 1, 4, 6, device=DEVICE)
    near[0, 0, 1, 2] = 1
    touched = F.interpolate(near, target.shape[1:], mode="bilinear")[:, 0] > 0
    options = {"reduction": "none", "backend": "triton", **PLAIN}
    loss, gradient = value_and_gradient(logits, target, torch.float32, **options)
    expected, expected_gradient = value_and_gradient(clean, target, torch.float32, **options)
    if bad != -math.inf:  # a class that is excluded: as F.interpolate and F.cross_entropy have it
        assert not loss[touched & (target != 255)].isfinite().any()
        assert not gradient[0, :, 1, 2].isfinite().any()
    torch.testing.assert_close(loss[~touched], expected[~touched], rtol=1e-5, atol=1e-6)
    far = F.max_pool2d(near, 3, 1, 1)[:, 0] == 0
    torch.testing.assert_close(
        gradient.movedim(1, -1)[far], expected_gradient.movedim(1, -1)[far], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("excluded", [0, 1, 4])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_class_of_infinite_logits_is_left_out(excluded, align_corners):
    logits, target = make_cells((3, 3), images=1)
    target[target == excluded] = 255
    others = [c for c in range(5) if c != excluded]
    options = {"reduction": "none", "align_corners": align_corners, **PLAIN}
    numbers = torch.tensor([others.index(c) if c in others else 255 for c in range(256)], device=DEVICE)
    expected = value_and_gradient(logits[:, others], numbers[target], torch.float32, backend="triton", **options)
    logits[:, excluded] = -math.inf
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend="triton", **options)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient[:, others], expected[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(gradient[:, excluded], torch.zeros_like(gradient[:, excluded]))


def test_void_hides_what_is_not_finite():
    logits, target = make_cells((4, 6))
    expected = value_and_gradient(logits, target, torch.float32, backend="triton", **PLAIN)
    logits[0, :, 0, 0] = math.nan
    target[0, :8, :8] = 255
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend="triton", **PLAIN)
    assert expected[0].isfinite()
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0, :, 0, 0], torch.zeros_like(gradient[0, :, 0, 0]))


def test_labels_out_of_range():
    logits, target = make_cells()
    target[0, 3, 4] = 77
    plan = Plan(logits, target, None, None, make_options(), Pooling("none", 1.0, 255), False)
    losses, saved = plan.forward(logits, target, None, None)
    assert losses[0, 3, 4].isnan()
    assert losses.isnan().sum() == 1
    gradient = plan.backward(torch.ones_like(losses), logits, None, None, saved)
    target[0, 3, 4] = 255
    _, expected = step_of(CrossEntropyLoss(reduction="sum", backend="triton"), logits, target)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_all_void():
    logits, target = make_cells()
    loss, gradient = value_and_gradient(logits, torch.full_like(target, 255), torch.float32, backend="triton", **PLAIN)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_memory_is_maps_of_pixels_and_the_gradient(poison):
    logits, target = make_cells((4, 4), classes=40)
    value_and_gradient(logits, target, torch.float32, backend="triton", **PLAIN)
    assert sum(map(math.prod, poison)) <= logits.numel() + 8 * target.numel()


@pytest.mark.parametrize("options", [{}, {"cost": "focal"}, {"label_smoothing": 0.1}], ids=str)
def test_a_step_has_six_launches(options):
    logits = torch.empty(1, 21, 16, 16, device="meta")
    target = torch.empty(1, 64, 64, dtype=torch.int64, device="meta")
    found = record_step(logits, target, None, make_options(**options), Pooling("mean", 1.0, 255), "sm_90")
    kernels = [name for (_, name), launches in found.items() for _ in launches]
    assert kernels == ["prepare_fwd", "logit_range", "cell_loss_fwd", "pool_fwd", "pool_bwd", "cell_loss_bwd"]


def test_ratios_beyond_a_program_are_interpolated_first():
    logits, target = make_cells((1, 1), size=(2, 100))
    assert not configs.upsampling_is_served((1, 1), (2, 100), make_options())
    check(logits, target)


def test_functions_take_them():
    logits, target = make_cells()
    fine = F.interpolate(logits.double(), target.shape[1:], mode="bilinear")
    expected = F.cross_entropy(fine, target.long(), ignore_index=255)
    torch.testing.assert_close(
        functional.cross_entropy(logits, target, backend="triton").double(), expected, rtol=1e-6, atol=0
    )
