"""Logits and labels of unequal sizes: F.interpolate and then the loss, by the usual criterion."""

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_as_accurate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import DEVICE, OPTIONS, cpu_only, make_case, make_problem, value_and_gradient
from test_backends import assert_matches_reference

from lal_triton import (
    CrossEntropyLoss,
    FocalLoss,
    LocallyAdaptiveLoss,
    derivatives,
    functional,
)
from lal_triton.benchmarks.memory import allocations
from lal_triton.functional import locally_adaptive_loss
from lal_triton.options import make_options

LOW = (4, 5)
SIZES = [(8, 10), (16, 20), (32, 40), (16, 10), (17, 23), (9, 5), (4, 13), (5, 6), (3, 20), (16, 2), (1, 1), (3, 4)]


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of a few rows, so that the images of the tests have several."""
    monkeypatch.setattr("lal_triton.cpu.bands.BAND_ROWS", 3)


def make_upsampled(options, size=(16, 20), low=LOW, images=3, **problem):
    """Logits `[images, 4, *low]`, and a target of the given size with blocks of labels, single pixels, and void."""
    logits, _, _ = make_case({}, (images, 4, *low), **problem)
    _, target, filled = make_case(options, (images, 4, *size), **problem)
    coarse = target[:, ::3, ::3].repeat_interleave(3, 1).repeat_interleave(3, 2)[:, : size[0], : size[1]]
    mixed = torch.rand(size, generator=torch.Generator().manual_seed(2)).to(DEVICE) < 0.5
    return logits, torch.where(mixed, coarse, target), filled


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(small_bands, name, align_corners):
    logits, target, options = make_upsampled(OPTIONS[name])
    assert_matches_reference(logits, target, "auto", align_corners=align_corners, **options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, {"kernel_size": 7}, {"kernel_size": 1, "normalize": False}], ids=str)
def test_every_ratio(small_bands, size, align_corners, options):
    logits, target, options = make_upsampled(options, size)
    assert_matches_reference(logits, target, "auto", align_corners=align_corners, **options)


@pytest.mark.parametrize("low", [(1, 1), (1, 5), (4, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_few_logits(low, align_corners):
    logits, target, _ = make_upsampled({}, low=low)
    assert_matches_reference(logits, target, "auto", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_reference_is_interpolate_and_the_loss(size, align_corners):
    logits, target, _ = make_upsampled({}, size)
    leaf = logits.double().requires_grad_()
    fine = F.interpolate(leaf, size, mode="bilinear", align_corners=align_corners)
    expected = locally_adaptive_loss(fine, target, backend="reference", upsample=None)
    (expected_gradient,) = torch.autograd.grad(expected, leaf)
    actual = locally_adaptive_loss(leaf, target, backend="reference", align_corners=align_corners)
    (gradient,) = torch.autograd.grad(actual, leaf)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [(16, 20), (11, 9), (3, 9)], ids=str)
@pytest.mark.parametrize("reduction", ["minkowski", "none"])
def test_float64_is_exact_and_leaves_its_input_alone(small_bands, size, reduction):
    logits, target, _ = make_upsampled({}, size)
    logits = logits.double()
    before = logits.clone()
    results = [
        value_and_gradient(logits, target, torch.float64, reduction=reduction, backend=backend)
        for backend in ("auto", "reference")
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)
    assert torch.equal(logits, before)


def test_gradient_is_the_derivative():
    logits, target = make_problem((1, 3, 2, 2))[0], make_problem((1, 3, 5, 4))[1]
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: locally_adaptive_loss(x, target, kernel_size=3), leaf)


def test_cross_entropy_and_focal_and_their_modules():
    logits, target, _ = make_upsampled({})
    fine = F.interpolate(logits.double(), (16, 20), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(fine, target.long(), ignore_index=255)
    torch.testing.assert_close(functional.cross_entropy(logits.double(), target, align_corners=True), expected)
    torch.testing.assert_close(CrossEntropyLoss(align_corners=True)(logits.double(), target), expected)
    expected = FocalLoss(upsample=None)(fine, target)
    torch.testing.assert_close(FocalLoss(align_corners=True)(logits.double(), target), expected)
    torch.testing.assert_close(functional.focal_loss(logits.double(), target, align_corners=True), expected)
    expected = LocallyAdaptiveLoss(3, upsample=None)(fine, target)
    torch.testing.assert_close(LocallyAdaptiveLoss(3, align_corners=True)(logits.double(), target), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["minkowski", "none"])
@pytest.mark.parametrize("size", [(16, 20), (3, 4)], ids=str)
def test_half_precision(dtype, reduction, size):
    logits, target, _ = make_upsampled({}, size)
    assert_matches_reference(logits, target, "auto", dtype, reduction=reduction)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(data=st.data())
def test_random_problems(data):
    low = tuple(data.draw(st.integers(1, 6)) for _ in range(2))
    size = tuple(data.draw(st.integers(1, 30)) for _ in range(2))
    normalize = data.draw(st.booleans())
    logits, target, _ = make_upsampled(
        {},
        size,
        low,
        seed=data.draw(st.integers(0, 2**16)),
        labels=data.draw(st.integers(1, 3)),
        scale=data.draw(st.sampled_from([0.3, 1.0, 5.0])),
        offset=data.draw(st.sampled_from([0.0, 1e3])) if normalize else 0.0,
    )
    assert_matches_reference(
        logits.to(memory_format=data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))),
        target.to(data.draw(st.sampled_from([torch.uint8, torch.int64]))),
        "auto",
        data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16])),
        align_corners=data.draw(st.booleans()),
        kernel_size=data.draw(st.sampled_from([1, 3, 5, 7, (1, 9), (5, 3)])),
        average=data.draw(st.sampled_from(["count", "weight"])),
        normalize=normalize,
        stride=data.draw(st.sampled_from([1, 1, 2])),
        reduction=data.draw(st.sampled_from(["minkowski", "mean", "sum", "none"])),
        p=data.draw(st.sampled_from([1.0, 2.0, 3.0])),
        pool=data.draw(st.sampled_from(["image", "batch"])),
    )


def test_corners_that_cancel():
    """Neighbours of opposite sign: the variance half-way is far below the products that its Gram form adds up."""
    logits, target, _ = make_upsampled({}, (32, 40), scale=100.0)
    sign = torch.tensor([1.0, -1.0], device=DEVICE)
    logits = logits[:, :, :1, :1] * sign.repeat(3)[: LOW[1]] * sign.repeat(3)[: LOW[0], None]
    logits = logits + 1e-3 * make_problem((3, 4, *LOW), seed=5)[0]
    for align_corners in (False, True):
        assert_matches_reference(logits, target, "auto", align_corners=align_corners)


def test_no_allocation_is_as_large_as_the_upsampled_logits():
    """Of a step on `[1, 150, 128, 128]` logits and a 512 x 512 target, by what the allocator reports."""
    shape, size = (1, 150, 128, 128), (512, 512)
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, 150, (1, 64, 64)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    upsampled = 4 * shape[1] * size[0] * size[1]
    for options in ({}, {"kernel_size": 1, "normalize": False, "p": 1.0}, {"reduction": "none"}):

        def step(options=options):
            torch.autograd.grad(locally_adaptive_loss(logits, target, **options).sum(), logits)

        step()
        largest, peak = allocations(step)
        assert largest < upsampled / 8
        assert peak < upsampled / 2

    def plain():
        F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), target).backward()

    assert allocations(plain)[0] >= upsampled  # the counter counts


def test_non_finite_logits_stay_in_their_window():
    clean, target, _ = make_upsampled({}, (32, 40), (8, 10))
    logits = clean.clone()
    logits[0, 1, 2, 3], logits[0, 0, 7, 9] = torch.nan, torch.inf
    near = torch.zeros(3, 1, 8, 10, device=DEVICE)
    near[0, 0, 2, 3] = near[0, 0, 7, 9] = 1
    touched = F.interpolate(near, (32, 40), mode="bilinear")
    inside = F.max_pool2d(touched, 5, 1, 2)[:, 0] > 0  # some pixel of the window interpolates from a bad one
    options = {"reduction": "none", "backend": "auto"}
    loss, gradient = value_and_gradient(logits, target, torch.float32, **options)
    expected, expected_gradient = value_and_gradient(clean, target, torch.float32, **options)
    assert not loss[(touched[:, 0] > 0) & (target != 255)].isfinite().any()
    torch.testing.assert_close(loss[~inside], expected[~inside])
    far = F.max_pool2d(near, 7, 1, 3)[:, 0] == 0
    assert far[0].any()
    assert not gradient[0, :, 2, 3].isfinite().any()
    torch.testing.assert_close(
        gradient.movedim(1, -1)[far], expected_gradient.movedim(1, -1)[far], rtol=1e-4, atol=1e-6
    )


@cpu_only
@pytest.mark.parametrize("reduction", ["minkowski", "none"])
def test_opcheck_and_full_graph(reduction):
    logits, target, _ = make_upsampled({})
    options = make_options(kernel_size=3, window="chessboard", normalize=True, align_corners=True)
    labels, omega, _ = torch.ops.lal_triton.prepare(target, None, None, 4, 1, 255, torch.float32)
    leaf = logits.clone().requires_grad_()
    if reduction == "none":
        torch.library.opcheck(torch.ops.lal_triton.local_loss.default, (leaf, labels, None, *options))
    else:
        arguments = (leaf, labels, None, omega, torch.tensor(2.0), derivatives.origin(leaf), 3.0, True, *options)
        torch.library.opcheck(torch.ops.lal_triton.power_norms.default, arguments)
    loss = LocallyAdaptiveLoss(3, reduction=reduction, backend="auto")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for size in ((4, 5), (3, 30)):  # upsampled, and shrunk in one direction
        leaf = make_problem((3, 4, *size))[0].double().requires_grad_()  # the compiler interpolates in another order
        results = [torch.autograd.grad(f(leaf, target).sum(), leaf)[0] for f in (loss, compiled)]
        torch.testing.assert_close(*results)


def test_a_half_gradient_is_rounded_once():
    logits, target, _ = make_upsampled({})
    half = logits.half()
    _, gradient = value_and_gradient(half, target, torch.float16, backend="auto", p=2.0)
    _, exact = value_and_gradient(half.float(), target, torch.float32, backend="auto", p=2.0)
    assert_as_accurate(gradient, exact, exact.double())
