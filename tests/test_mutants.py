"""What mutations of the package survived before these tests were there (see tests/mutations.py)."""

import math

import pytest
import torch
from problems import DEVICE, WINDOW, make_problem, value_and_gradient
from test_backends import assert_matches_reference

from lal_triton import LocallyAdaptiveLoss
from lal_triton.functional import cross_entropy, locally_adaptive_loss

BACKENDS = ["cpu", "triton"]
CROSS_ENTROPY = {"kernel_size": 1, "window": "uniform", "normalize": False}


@pytest.mark.parametrize("backend", BACKENDS)
def test_powers_below_the_range_of_float64(backend):
    """1e-4 to the power of 100 is 1e-400."""
    logits, target = make_problem((2, 3, 6, 9), scale=0.1)
    own = torch.nn.functional.one_hot(target.where(target != 255, 0), 3).movedim(-1, 1)
    options = {**CROSS_ENTROPY, "p": 100.0}
    value, gradient = value_and_gradient(logits + 9.0 * own, target, torch.float32, backend=backend, **options)
    oracle = value_and_gradient(logits + 9.0 * own, target, torch.float64, backend="reference", **options)
    assert 0 < oracle[0] < 1e-3
    # the rounding of a log-softmax, 2^-24, in a loss of 1e-4, and 100 times that in its power
    torch.testing.assert_close(value.double(), oracle[0], rtol=2**-24 / 1e-4, atol=0)
    assert (gradient - oracle[1]).norm() < 100 * 2**-24 / 1e-4 * oracle[1].norm()


def test_small_losses_keep_their_digits():
    """The kernels leave the own class, whose term is 1, out of the sum: 1 + 1e-5 would round to 2^-24."""
    pytest.importorskip("triton")
    logits = torch.zeros(1, 3, 4, 5, device=DEVICE)
    logits[:, 1] = torch.linspace(10.0, 20.0, 20, device=DEVICE).view(4, 5)
    target = torch.ones(1, 4, 5, dtype=torch.int64, device=DEVICE)
    options = {**CROSS_ENTROPY, "reduction": "none"}
    value, _ = value_and_gradient(logits, target, torch.float32, backend="triton", **options)
    oracle = torch.log1p(2 * torch.exp(-logits[:, 1].double()))
    torch.testing.assert_close(value.double(), oracle, rtol=1e-5, atol=0)


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_common_offset_has_no_effect(backend, upsampling):
    """Logits and offset are such that their sum is exact, but not their mean."""
    logits, _ = make_problem((2, 5, 4, 4))
    _, target = make_problem((2, 5, 4 * upsampling, 4 * upsampling))
    logits = (8 * logits).round() / 8
    options = {"kernel_size": 3, "backend": backend}
    value, gradient = value_and_gradient(logits, target, torch.float32, **options)
    other = value_and_gradient(logits + 2**20, target, torch.float32, **options)
    torch.testing.assert_close(other[0], value, rtol=1e-5, atol=0)
    assert (other[1] - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_asymmetric_window_over_one_label(backend):
    logits, target = make_problem((1, 4, 6, 9))
    target = torch.ones_like(target)
    target[:, :, 7:] = 2
    assert_matches_reference(logits, target, backend, kernel_size=3, window=WINDOW)


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("window", ["chessboard", "uniform"])
@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize("backend", ["cpu"])
def test_runs_of_one_label(backend, classes, window, kernel_size):
    """150 columns are no whole number of vectors; most of them see one label, some two, and runs end within vectors.

    Nor are the classes a multiple of the four that are merged together.
    """
    logits, target = make_problem((1, classes, 20, 150), labels=3)
    target[:, 4:] = 1
    target[:, 4:, 71:100] = 2
    target[:, 9, 120] = 255
    target[:, 10, 149] = 2
    assert_matches_reference(logits, target, backend, kernel_size=kernel_size, window=window)


def test_the_loss_of_certain_pixels():
    """log(1 + x) of a small x, which eager float32 rounds to 0."""
    logits, target = torch.tensor([20.0, 0, -1]).view(1, 3, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    torch.testing.assert_close(cross_entropy(logits, target).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel_size", [(4, 3), (3, 4)])
def test_a_window_with_one_even_side_is_refused(kernel_size):
    with pytest.raises(ValueError, match="expected odd"):
        LocallyAdaptiveLoss(kernel_size=kernel_size)


@pytest.mark.parametrize("normalize", [True, False])
def test_void_has_no_influence_on_tiles_inside_the_image(normalize):
    """Of rows 14 and 15, which have void pixels, and of those from 16 on, in the band of rows below theirs."""
    pytest.importorskip("triton")
    from lal_triton.kernels import configs

    logits, target = make_problem((1, 3, 21, 9), labels=2)
    target[target == 255] = 0
    target[:, 14:16, 3:7] = 255
    spoiled = logits.masked_fill((target == 255)[:, None], math.nan)
    options = {"backend": "triton", "kernel_size": 3, "normalize": normalize}
    with configs.forcing({"local_loss_fwd": {"rows": 1, "columns": 4, "strips": 4}}):
        value, other = (locally_adaptive_loss(x, target, **options) for x in (logits, spoiled))
    torch.testing.assert_close(other, value, rtol=1e-6, atol=0)
