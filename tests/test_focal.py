"""Focal loss against the published formula and its derivative, evaluated independently in float64."""

import numpy as np
import pytest
import torch
from problems import DEVICE, make_problem

from lal_triton.functional import focal_loss, locally_adaptive_loss

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
CLASSES, ALPHA = 3, 0.25


def published(logits, label, gamma):
    """FL = -alpha (1 - q)^gamma ln q of one pixel, and its slopes in the logits, by the chain rule through q.

    1 - q is summed from the other classes, which keeps its digits as q nears 1; -ln q likewise comes from log1p.
    """
    others = np.delete(logits, label) - logits[label]  # q = 1 / (1 + sum exp(others))
    largest = max(others.max(), 0.0)
    total = np.exp(others - largest).sum()
    rest = total / (np.exp(-largest) + total)
    log_q = -(np.log1p(total) if largest == 0 else largest + np.log(np.exp(-largest) + total))
    q = np.exp(log_q)
    loss = -ALPHA * rest**gamma * log_q
    slope = gamma * rest ** (gamma - 1) * q * log_q if gamma and rest else 0.0
    softmax = np.exp(logits - logits[label]) * q if largest == 0 else np.exp(logits - logits.max())
    softmax = softmax / softmax.sum()
    gradient = softmax.copy()
    gradient[label] = -rest
    return loss, ALPHA * (rest**gamma - slope) * gradient


def evaluate(logits, label, gamma, backend, dtype, **options):
    """Map and gradient of pixels in a row; `logits` `[pixels, C]`."""
    leaf = torch.from_numpy(logits).to(DEVICE, dtype).T[None, :, None].contiguous().requires_grad_()
    target = torch.full((1, 1, len(logits)), label, device=DEVICE)
    if options:
        options |= {"cost": "focal", "focal_alpha": ALPHA, "focal_gamma": gamma}
        losses = locally_adaptive_loss(leaf, target, reduction="none", backend=backend, **options)
    else:
        losses = focal_loss(leaf, target, alpha=ALPHA, gamma=gamma, reduction="none", backend=backend)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach()[0, 0].double().cpu().numpy(), gradient[0, :, 0].T.double().cpu().numpy()


# The label's logit above or below the others': q from 1e-43 to 1 - 1e-13, and beyond float32 on either side.
MARGINS = np.array([-1e4, -100.0, -20.0, -5.0, -1.0, 0.0, 0.5, 2.0, 5.0, 10.0, 15.0, 30.0, 1e4])


def logits_of(margins):
    return np.stack([margins, np.zeros_like(margins), np.full_like(margins, -0.7)], 1)


@pytest.mark.parametrize("as_local_cost", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("backend", "dtype"), [("reference", 64), ("cpu", 64), ("cpu", 32), ("triton", 32)])
def test_published_formula(backend, dtype, gamma, as_local_cost):
    """From hopeless to certain pixels, alone and as the cost of LAL (whose windows hold one pixel here)."""
    logits = logits_of(MARGINS)
    options = {"kernel_size": 1, "window": [[1.0]], "normalize": False} if as_local_cost else {}
    losses, gradient = evaluate(logits, 0, gamma, backend, getattr(torch, f"float{dtype}"), **options)
    expected, expected_gradient = zip(*(published(pixel, 0, gamma) for pixel in logits), strict=True)
    # 1 - q and -ln q err by some roundings of 1, which is all that is left of them as q nears 1; a power below 1 of
    # 1 - q makes the root of a rounding of it
    rounding = 2.0 ** (-23 if dtype == 32 else -52)
    small = 8 * rounding if gamma == 0 or gamma >= 1 else 4 * np.sqrt(rounding)
    np.testing.assert_allclose(losses, expected, rtol=64 * rounding, atol=small)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=128 * rounding, atol=small)


def test_slope_is_that_of_the_formula():
    """The independent gradient itself, by central differences."""
    for gamma in GAMMAS:
        for pixel in logits_of(MARGINS[3:10]):
            steps = 1e-5 * np.eye(CLASSES)
            numeric = [
                (published(pixel + step, 0, gamma)[0] - published(pixel - step, 0, gamma)[0]) / 2e-5 for step in steps
            ]
            np.testing.assert_allclose(published(pixel, 0, gamma)[1], numeric, rtol=1e-6, atol=1e-10)


def test_gamma_0_is_cross_entropy():
    logits = torch.randn(2, CLASSES, 4, 5, dtype=torch.float64, device=DEVICE)
    target = torch.randint(0, CLASSES, (2, 4, 5), device=DEVICE)
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(focal_loss(logits, target, alpha=1.0, gamma=0.0), expected, rtol=1e-13, atol=0)


def test_mean_is_over_the_valid_pixels():
    """Not over the positives, as detectors normalise it: here every valid pixel has its label's class."""
    logits = torch.randn(2, CLASSES, 4, 5, dtype=torch.float64, device=DEVICE)
    target = torch.randint(0, CLASSES, (2, 4, 5), device=DEVICE)
    target[0, :2] = 255
    losses = focal_loss(logits, target, reduction="none")
    assert not losses[0, :2].any()
    torch.testing.assert_close(focal_loss(logits, target), losses.sum() / 30, rtol=1e-13, atol=0)


@pytest.mark.parametrize("size", [(6, 7), (3, 4)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "minkowski", "max_pooling"])
@pytest.mark.parametrize(("backend", "dtype"), [("reference", 64), ("cpu", 64), ("cpu", 32), ("triton", 32)])
def test_alpha_by_class(backend, dtype, reduction, size):
    """The map of the losses times alpha at the labels, before the pooling; means are over the pixels."""
    dtype = {32: torch.float32, 64: torch.float64}[dtype]
    logits, target = make_problem((2, 5, 6, 7))
    logits = torch.nn.functional.interpolate(logits, size, mode="bilinear")
    leaf = logits.to(dtype, copy=True).requires_grad_()
    alpha = torch.rand(5, generator=torch.Generator().manual_seed(1))
    options = {"cost": "focal", "kernel_size": 3, "reduction": reduction}
    loss = locally_adaptive_loss(leaf, target, focal_alpha=alpha, backend=backend, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)

    of_labels = alpha.to(target.device, torch.float64)[target.clamp(max=4).long()]
    exact = logits.double().requires_grad_()
    options |= {"backend": "reference", "focal_alpha": 1.0}
    # In each of these reductions the alphas can stand where weights do, if the weights leave the means' divisors alone.
    if reduction in ("sum", "none", "max_pooling"):
        expected = locally_adaptive_loss(exact, target, pixel_weight=of_labels, **options)
    else:
        losses = locally_adaptive_loss(exact, target, **options | {"reduction": "none"}) * of_labels
        valid = (target != 255).sum((1, 2))
        p = 3.0 if reduction == "minkowski" else 1.0
        sums = losses.pow(p).sum((1, 2))[valid > 0]
        valid = valid[valid > 0]
        expected = (sums / valid).pow(1 / p).mean() if reduction == "minkowski" else sums.sum() / valid.sum()
    (of_exact,) = torch.autograd.grad(expected.sum(), exact)
    rounding = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loss.double(), expected, **rounding)
    torch.testing.assert_close(gradient.double(), of_exact, **rounding)
