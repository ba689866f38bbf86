"""The Triton kernels of the loss through an upsampling, by the usual criterion: interpreted, or native on a GPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, OPTIONS, in_layout, make_problem, thinned, value_and_gradient
from test_backends import assert_matches_reference
from test_upsampling import make_upsampled

pytest.importorskip("triton")

from lal_triton import LocallyAdaptiveLoss, functional, steps
from lal_triton.kernels import configs
from lal_triton.kernels.configs import upsampling_is_served
from lal_triton.kernels.host.plan import Plan
from lal_triton.options import Pooling, make_options

pytestmark = pytest.mark.usefixtures("poison")
LOW, SIZE = (2, 5), (8, 20)  # two tiles and a half
MAP = Pooling("none", 1.0, ignore_index=255)
LAL = make_options(kernel_size=5, window="chessboard", normalize=True)


def make_small(options, size=SIZE, low=LOW, images=2, **problem):
    return make_upsampled(options, size, low, images=images, **problem)


def check(options, size=SIZE, low=LOW, dtype=torch.float32, **problem):
    logits, target, options = make_small(options, size, low, **problem)
    assert_matches_reference(logits, target, "triton", dtype, **options)


@pytest.mark.parametrize("name", thinned(OPTIONS, 4))
def test_every_option(name):
    """With either align_corners in turn."""
    check({**OPTIONS[name], "align_corners": list(OPTIONS).index(name) % 2 == 1})


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("low", "size"),
    thinned(
        [
            ((4, 4), (8, 8)),
            ((2, 2), (16, 16)),
            ((1, 1), (16, 16)),
            ((1, 2), (5, 32)),
            ((2, 4), (16, 8)),
            ((3, 4), (13, 11)),
            ((3, 5), (7, 13)),
            ((1, 1), (1, 2)),
            ((2, 3), (1, 12)),
        ],
        3,
    ),
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"kernel_size": 1, "normalize": False}], ids=["lal", "cross_entropy"])
def test_every_ratio(low, size, align_corners, options):
    # an interpolation of few pixels has few independent rows; with a small eps their gradient is rounding noise
    check({**options, "align_corners": align_corners, "eps": 0.1}, size, low)


@pytest.mark.parametrize("kernel_size", [7, (9, 3)])
def test_windows_with_larger_footprints(kernel_size):
    check({"kernel_size": kernel_size}, (12, 8), (3, 2))


@pytest.mark.parametrize(("kernel_size", "low", "ratio"), [(7, (5, 5), 4), (5, (6, 6), 2)])
def test_windows_that_need_a_smaller_tile(kernel_size, low, ratio):
    check({"kernel_size": kernel_size}, tuple(ratio * size for size in low), low, images=1)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"cost": "focal"}], ids=str)
def test_large_logits(options):
    check({"normalize": False, "kernel_size": 3, **options}, scale=1e3)


@pytest.mark.parametrize("normalize", [True, False])
def test_common_offset(normalize):
    check({"normalize": normalize}, offset=1e3)


def test_many_classes():
    logits = make_problem((1, 70, *LOW))[0]
    target = make_problem((1, 70, *SIZE), labels=70)[1]
    assert_matches_reference(logits, target, "triton", kernel_size=3)
    assert_matches_reference(logits, target, "triton", kernel_size=3, normalize=False, label_smoothing=0.1)


def test_corners_that_cancel():
    sign = torch.tensor([1.0, -1.0], device=DEVICE)
    logits, target, _ = make_small({}, scale=100.0)
    logits = logits[:, :, :1, :1] * sign.repeat(3)[: LOW[1]] * sign[:, None]
    logits = logits + 1e-3 * make_problem((2, 4, *LOW), seed=5)[0]
    for align_corners in (False, True):
        assert_matches_reference(logits, target, "triton", align_corners=align_corners)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 1, "normalize": False, "reduction": "none"}], ids=str)
def test_half_precision(dtype, options):
    check(options, dtype=dtype)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_layouts(layout):
    logits, target, _ = make_small({})
    logits = in_layout(logits, layout)
    before = logits.clone()
    target = target.transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches_reference(logits, target, "triton", kernel_size=3, reduction="none")
    assert torch.equal(logits, before)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_scratch_may_be_small(monkeypatch, poison, normalize):
    """Images in groups, and rows of tiles in bands: the same bits."""
    logits, target, _ = make_small({}, (32, 8), (8, 2))
    target[-1] = target[0]
    results, rows, row_bytes = [], [], 1
    for affordable in (8, 4, 0):
        monkeypatch.setattr(configs, "SCRATCH_BYTES", affordable * row_bytes if rows else configs.SCRATCH_BYTES)
        poison.clear()
        steps.clear()
        options = {"backend": "triton", "reduction": "none", "kernel_size": 3, "normalize": normalize}
        with configs.forcing({"upsampled_loss_bwd": {"lanes": 8}}):  # a tile's, of which there is a single column
            results.append(value_and_gradient(logits, target, torch.float32, **options))
        (scratch,) = (shape for shape in poison if len(shape) == 4 and shape[-1] == 1)
        rows.append(scratch[1])
        row_bytes = 4 * math.prod(scratch) // scratch[1]
    assert rows == [8, 4, 2]
    for other in results[1:]:
        assert torch.equal(results[0][1], other[1])


def test_results_are_reproducible():
    logits, target, _ = make_small({})
    first, second = (value_and_gradient(logits, target, torch.float32, backend="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_all_void():
    logits, target, _ = make_small({})
    loss, gradient = value_and_gradient(logits, torch.full_like(target, 255), torch.float32, backend="triton")
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_labels_out_of_range():
    logits, target, _ = make_small({})
    target[0, 3, 4] = 77
    losses, _ = Plan(logits, target, None, None, LAL, MAP, False).forward(logits, target, None, None)
    assert losses[0, 3, 4].isnan()
    assert losses.isnan().sum() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_stay_in_their_window(bad):
    low, size = (3, 5), (12, 20)
    clean, target, _ = make_small({}, size, low)
    logits = clean.clone()
    logits[0, 1, 0, 1] = bad
    near = torch.zeros(2, 1, *low, device=DEVICE)
    near[0, 0, 0, 1] = 1
    touched = F.interpolate(near, size, mode="bilinear")
    inside = F.max_pool2d(touched, 3, 1, 1)[:, 0] > 0
    options = {"reduction": "none", "backend": "triton", "kernel_size": 3}
    loss, gradient = value_and_gradient(logits, target, torch.float32, **options)
    expected, expected_gradient = value_and_gradient(clean, target, torch.float32, **options)
    assert not loss[(touched[:, 0] > 0) & (target != 255)].isfinite().any()
    torch.testing.assert_close(loss[~inside], expected[~inside])
    assert not gradient[0, :, 0, 1].isfinite().any()
    far = F.max_pool2d(near, 5, 1, 2)[:, 0] == 0
    assert far[0].any()
    torch.testing.assert_close(
        gradient.movedim(1, -1)[far], expected_gradient.movedim(1, -1)[far], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_no_buffer_is_as_large_as_the_upsampled_logits(poison, kernel_size):
    """At a ratio of 4 they hold a quarter of it each; what has no class dimension is a plane or two."""
    classes = 40
    logits = make_problem((1, classes, 4, 4))[0]
    target = make_problem((1, classes, 16, 16))[1]
    value_and_gradient(logits, target, torch.float32, backend="triton", kernel_size=kernel_size)
    upsampled = classes * target.numel()
    assert max(math.prod(shape) for shape in poison) <= upsampled / 3
    assert (1, classes, 4, 4) in poison  # the gradient: the list is that of this step


def test_modules_and_a_full_graph():
    logits, target, _ = make_small({})
    expected = functional.locally_adaptive_loss(logits.double(), target, kernel_size=3, backend="reference")
    loss = LocallyAdaptiveLoss(3, backend="triton")
    leaf = logits.requires_grad_()
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(leaf, target)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
        assert torch.autograd.grad(value, leaf)[0].isfinite().all()


def test_opcheck():
    logits, target, _ = make_small({}, (8, 8), (2, 2))
    for options, pooling in ((LAL, ("image", 3.0, 255, True)), (make_options(), (*MAP, False))):
        arguments = (logits.detach().requires_grad_(), target, None, None, *options, *pooling)
        torch.library.opcheck(torch.ops.lal_triton.pooled_loss.default, arguments)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_ratios_of_two_and_more_are_served(kernel_size, align_corners):
    from lal_triton.kernels.host.upsampled import _tables

    options = make_options(kernel_size=kernel_size, align_corners=align_corners)
    for low in [(size, 2 * size // 3 + 1) for size in range(1, 40)]:
        for ratio in (2, 2.5, 4, 8, 16):
            high = tuple(int(ratio * size) for size in low)
            served = upsampling_is_served(low, high, options)
            assert served or (kernel_size == 7 and ratio < 3)
            if served:
                _tables(low, high, align_corners, (kernel_size, kernel_size), torch.device("cpu"))  # or it raises


def test_logits_of_other_ratios_are_interpolated_first():
    logits, target = make_problem((1, 3, 7, 9))[0], make_problem((1, 3, 8, 9))[1]
    assert not upsampling_is_served((7, 9), (8, 9), LAL)
    assert_matches_reference(logits, target, "triton")


def test_dynamic_shapes_compile_in_a_full_graph():
    torch._dynamo.reset()
    loss = LocallyAdaptiveLoss(3, backend="triton")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for low, size in (((2, 3), (8, 12)), ((3, 2), (12, 8))):
        logits, target, _ = make_small({}, size, low)
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))
