"""Void pixels, whatever stands there, and logits as large as their dtype holds: one rule for all backends."""

import math

import pytest
import torch
from problems import DEVICE, make_problem, value_and_gradient

from lal_triton.functional import merge

BACKENDS = ["cpu", "triton", "reference"]
LOCAL = {
    "lal": {"kernel_size": 3},
    "uneven": {"kernel_size": (3, 1), "average": "weight"},
    "smoothed": {"kernel_size": 3, "label_smoothing": 0.1},
    "not normalized": {"kernel_size": 3, "normalize": False},
    "pixel": {"kernel_size": 1},
    "cross-entropy": {"kernel_size": 1, "normalize": False, "window": "uniform"},
}


def void_problem(upsampling):
    """Void at the last rows of a band of 16 and in a corner, and the logits that only void pixels see."""
    logits, target = make_problem((1, 3, 18, 9), labels=2)
    target = torch.where(target == 255, 0, target)
    target[:, 12:16, 2:6] = 255
    target[0, 0, 0] = 255
    if upsampling == 1:
        return logits, target, (target == 255)[:, None]
    target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    hidden = torch.zeros_like(logits[:, :1], dtype=torch.bool)
    hidden[:, :, 13:15, 3:5] = True
    return logits, target, hidden


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -3e38], ids=str)
@pytest.mark.parametrize("options", LOCAL.values(), ids=LOCAL)
@pytest.mark.parametrize("upsampling", [1, 2])
def test_what_stands_at_void_has_no_influence(backend, bad, options, upsampling):
    if backend == "triton" and (bad == math.inf or (upsampling == 2 and options != {"kernel_size": 3})):
        pytest.skip("the interpreter takes its time")
    logits, target, hidden = void_problem(upsampling)
    clean, clean_gradient = value_and_gradient(logits, target, torch.float32, backend=backend, **options)
    spoiled = logits.masked_fill(hidden, bad)
    spoiled[:, 1:] = torch.where(hidden, 1.0, spoiled[:, 1:])  # one bad class is enough
    value, gradient = value_and_gradient(spoiled, target, torch.float32, backend=backend, **options)
    torch.testing.assert_close(value, clean, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, clean_gradient, rtol=1e-5, atol=1e-7)
    assert torch.equal(gradient.masked_select(hidden), torch.zeros_like(gradient.masked_select(hidden)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["minkowski", "mean", "sum", "none", "max_pooling"])
def test_no_valid_pixel_gives_zero(backend, reduction):
    logits = torch.full((2, 3, 4, 5), math.nan, device=DEVICE)
    target = torch.full((2, 4, 5), 255, device=DEVICE)
    value, gradient = value_and_gradient(
        logits, target, torch.float32, backend=backend, kernel_size=3, reduction=reduction
    )
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("row", [0, 2])
def test_nan_at_a_label_is_seen(backend, normalize, row):
    """In a tile at the border and in one inside."""
    logits, target, _ = void_problem(1)
    logits[0, 2, row + 4, 4] = math.nan
    value, _ = value_and_gradient(logits, target, torch.float32, backend=backend, kernel_size=3, normalize=normalize)
    assert value.isnan()


def test_merge_is_zero_at_void():
    logits, target, hidden = void_problem(1)
    spoiled = logits.masked_fill(hidden, math.nan).requires_grad_()
    merged = merge(spoiled, target)
    assert torch.equal(merged.detach(), merge(logits, target))
    merged.sum().backward()
    assert spoiled.grad.isfinite().all()


# The gradient is about 1 / std: at 1e37 it is subnormal in float32, with 2^-149 as its unit.
@pytest.mark.parametrize("scale", [1e10, 1e20, 1e30, 3e37])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_have_their_true_loss(backend, kernel_size, scale):
    logits, target = make_problem((2, 4, 5, 6))
    options = {"kernel_size": kernel_size, "reduction": "sum"}
    value, gradient = value_and_gradient(scale * logits, target, torch.float32, backend=backend, **options)
    oracle, slope = value_and_gradient((scale * logits).double(), target, torch.float64, backend="reference", **options)
    torch.testing.assert_close(value.double(), oracle, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=16 * 2.0**-149 + 1e-6 / scale)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_large_logits_through_an_upsampling(backend, scale):
    logits, target = make_problem((2, 4, 5, 6))
    target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    value, gradient = value_and_gradient(scale * logits, target, torch.float32, backend=backend, kernel_size=3)
    oracle, slope = value_and_gradient(
        (scale * logits).double(), target, torch.float64, backend="reference", kernel_size=3
    )
    torch.testing.assert_close(value.double(), oracle, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-6 / scale)


def test_upsampled_kernels_say_that_logits_are_too_large():
    """Their gradient would lose the part of the standard score: NaN, not a wrong number."""
    logits, target = make_problem((2, 4, 5, 6))
    target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    value, _ = value_and_gradient(1e13 * logits, target, torch.float32, backend="triton", kernel_size=3)
    assert value.isnan()


@pytest.mark.parametrize(
    ("backend", "level"),
    [(backend, level) for backend in BACKENDS for level in (0.0, 1.0)] + [("cpu", 1e30), ("reference", 1e30)],
)
def test_equal_logits_have_the_slope_of_eps(backend, level):
    """No variance is left, and 1 / sqrt(eps) is what scales the gradient, at any level."""
    _, target = make_problem((1, 3, 4, 5))
    logits = torch.full((1, 3, 4, 5), level, device=DEVICE)
    options = {"kernel_size": 3, "reduction": "sum"}
    value, gradient = value_and_gradient(logits, target, torch.float32, backend=backend, **options)
    oracle, slope = value_and_gradient(torch.zeros_like(logits), target, torch.float64, backend="reference", **options)
    torch.testing.assert_close(value.double(), oracle, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"kernel_size": 1}, {}, {"reduction": "max_pooling"}], ids=str)
def test_void_beside_nan_has_no_gradient(backend, options):
    logits, target = make_problem((1, 4, 4, 4))
    target[target == 255] = 0
    target[0, 0, 0], target[0, 3, 3], target[0, 1, 1] = 255, 1, 1
    logits[0, :, 3, 3] = logits[0, :, 1, 1] = torch.nan
    loss, gradient = value_and_gradient(
        logits, target, torch.float32, **{"kernel_size": 3, "backend": backend, **options}
    )
    assert loss.isnan()
    assert (gradient[0, :, 0, 0] == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("level", [1e30, 1e37, 3e38])
def test_equal_logits_of_any_size(backend, level):
    target = torch.zeros(1, 4, 4, dtype=torch.long, device=DEVICE)
    logits = torch.full((1, 4, 4, 4), level, device=DEVICE)
    loss, gradient = value_and_gradient(logits, target, torch.float32, kernel_size=3, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(4.0, device=DEVICE).log())
    expected = value_and_gradient(torch.zeros_like(logits), target, torch.float32, kernel_size=3, backend=backend)[1]
    torch.testing.assert_close(gradient, expected)
