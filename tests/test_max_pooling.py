"""Loss max-pooling: its weights solve the convex problem that defines it; every loss and backend uses them alike."""

import numpy as np
import pytest
import torch
from criterion import assert_as_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DEVICE, eager_samples, make_case, make_problem, step_of, value_and_gradient

from lal_triton import LocallyAdaptiveLoss, functional
from lal_triton.functional import locally_adaptive_loss
from lal_triton.max_pooling import max_pool

NORMS = [1.2, 1.7, 2.0, 5.0]
RATIOS = [0.1, 0.25, 0.6, 1.0]


def pooled(losses, ratio, norm):
    """Value and weights (the gradient of the value) of one image's losses, all of them valid."""
    leaf = torch.as_tensor(losses)[None].requires_grad_()
    value = max_pool(leaf, torch.ones_like(leaf, dtype=torch.bool), ratio, norm)[0]
    return value.item(), torch.autograd.grad(value, leaf)[0][0].numpy()


def bounds(count, ratio, norm):
    """The bounds on ||w||_P and on ||w||_inf, by the formulas of the paper."""
    conjugate = norm / (norm - 1)
    return count ** (-1 / conjugate), count ** (-1 / conjugate) * (ratio * count) ** (-1 / norm)


def dual_bound(losses, ratio, norm):
    """No feasible w does better: w.L = w.c + w.(L - c) <= a ||c||_Q + b ||L - c||_1 for c = min(L, t), at any t.

    The slope in t changes its sign once, where t / ||c||_Q = (b / a)^(1 / (Q - 1)), which a bisection finds.
    """
    conjugate = norm / (norm - 1)
    a, b = bounds(len(losses), ratio, norm)

    def norm_of(c):
        largest = c.max()
        return largest * ((c / largest) ** conjugate).sum() ** (1 / conjugate)

    low, high = 0.0, losses.max()
    for _ in range(200):
        middle = (low + high) / 2
        if middle / norm_of(np.minimum(losses, middle)) < (b / a) ** (1 / (conjugate - 1)):
            low = middle
        else:
            high = middle
    return a * norm_of(np.minimum(losses, high)) + b * np.maximum(losses - high, 0).sum()


def assert_optimal(losses, ratio, norm):
    value, weights = pooled(losses, ratio, norm)
    a, b = bounds(len(losses), ratio, norm)
    assert weights.min() >= 0
    assert weights.max() <= b * (1 + 1e-12)
    assert (weights**norm).sum() ** (1 / norm) <= a * (1 + 1e-12)
    assert value == pytest.approx(weights @ losses, rel=1e-13)
    assert value >= losses.mean() * (1 - 1e-12)
    if losses.any():
        assert value >= dual_bound(losses, ratio, norm) * (1 - 1e-11)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 2, 7, 10000])
def test_weights_are_optimal(count, ratio, norm):
    generator = np.random.default_rng(count)
    assert_optimal(generator.exponential(size=count), ratio, norm)
    assert_optimal(generator.exponential(size=count) ** 6, ratio, norm)
    assert_optimal(generator.integers(0, 3, size=count).astype(float), ratio, norm)  # ties and zeros


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 1.0, 3.0, 1e6]) | st.floats(1e-12, 1e12), min_size=1),
    ratio=st.floats(0.01, 1.0),
    norm=st.floats(1.05, 50.0),
)
def test_weights_are_optimal_for_any_losses(losses, ratio, norm):
    assert_optimal(np.array(losses), ratio, norm)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_solver_finds_nothing_better(ratio, norm):
    optimize = pytest.importorskip("scipy.optimize")
    losses = np.random.default_rng(0).exponential(size=8)
    a, b = bounds(8, ratio, norm)
    # in units of b, where the norm's bound is sum v^P <= ratio x 8
    constraint = {
        "type": "ineq",
        "fun": lambda v: ratio * 8 - (v**norm).sum(),
        "jac": lambda v: -norm * v ** (norm - 1),
    }
    solved = optimize.minimize(
        lambda v: -(v @ losses),
        np.full(8, 0.5 * ratio),
        jac=lambda v: -losses,
        bounds=[(1e-12, 1)] * 8,
        constraints=constraint,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solved.success
    assert (ratio * 8) ** (1 / norm) * b == pytest.approx(a, rel=1e-12)
    assert pooled(losses, ratio, norm)[0] == pytest.approx(b * -solved.fun, rel=1e-6)  # the solver's tolerance


@pytest.mark.parametrize("norm", NORMS)
def test_equal_losses_have_equal_weights(norm):
    value, weights = pooled(np.full(12, 0.7), 0.25, norm)
    assert value == pytest.approx(0.7, rel=1e-13)
    assert weights == pytest.approx(np.full(12, 1 / 12), rel=1e-13)


def test_limits():
    losses = np.random.default_rng(1).exponential(size=50)
    assert pooled(losses, 0.25, 1e9)[0] == pytest.approx(losses.mean(), rel=1e-7)  # the mean as P grows
    assert pooled(losses, 1.0, 1.7)[0] == pytest.approx(losses.mean(), rel=1e-12)  # and at the ratio 1
    worst = np.sort(losses)[-10:].mean()  # P near 1 takes the mean of the largest m
    assert pooled(losses, 0.2, 1 + 1e-6)[0] == pytest.approx(worst, rel=1e-4)


def test_few_positive_losses_have_the_largest_weight():
    losses = np.zeros(20)
    losses[[3, 7]] = 1.0, 5.0
    value, weights = pooled(losses, 0.25, 1.7)
    assert value == pytest.approx(6 * bounds(20, 0.25, 1.7)[1], rel=1e-13)
    assert np.flatnonzero(weights).tolist() == [3, 7]
    value, weights = pooled(np.zeros(20), 0.25, 1.7)
    assert value == 0
    assert not weights.any()


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-40])
def test_scales_with_the_losses(scale):
    losses = torch.rand(1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    scaled = (scale * losses).float()
    exact, value = (max_pool(x, torch.ones(1, 40, dtype=torch.bool), 0.25, 1.7) for x in (scaled.double(), scaled))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-45)


def test_void_pixels_do_not_count():
    losses = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) < 0.6
    values = max_pool(losses * valid, valid, 0.3, 1.7)
    for value, row, mask in zip(values, losses, valid, strict=True):
        assert float(value) == pytest.approx(pooled(row[mask], 0.3, 1.7)[0], rel=1e-13)


def test_images_without_a_valid_pixel_are_left_out():
    logits, target = make_problem()  # the last image has none
    loss, gradient = value_and_gradient(logits, target, torch.float64, reduction="max_pooling")
    expected, expected_gradient = value_and_gradient(logits[:-1], target[:-1], torch.float64, reduction="max_pooling")
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient[:-1], expected_gradient, rtol=1e-12, atol=1e-16)
    assert not gradient[-1].any()
    loss, gradient = value_and_gradient(logits, torch.full_like(target, 255), torch.float64, reduction="max_pooling")
    assert loss == 0
    assert not gradient.any()


POOLED = {"reduction": "max_pooling"}
CASES = {
    "lal": {"kernel_size": 3},
    "focal": {"cost": "focal", "kernel_size": 3},
    "cross-entropy": {"kernel_size": 1, "window": "uniform", "normalize": False},
    "weights": {"kernel_size": 3, "weight": True, "pixel_weight": True},
    "label smoothing": {"kernel_size": 3, "weight": True, "label_smoothing": 0.1},
    "batch": {"kernel_size": 3, "pool": "batch", "pooling_ratio": 0.6, "pooling_norm": 2.5},
    "stride": {"kernel_size": 3, "stride": 2},
}


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("low", [None, (3, 4)], ids=["full resolution", "upsampled"])
@pytest.mark.parametrize("name", CASES)
def test_backends_match_the_float64_reference(name, low, backend):
    if backend == "triton" and low is not None and name not in ("lal", "weights"):
        pytest.skip("the interpreter takes its time, and the maps have tests of their own")
    logits, target, options = make_case({**CASES[name], **POOLED}, (3, 4, 6, 8))
    if low is not None:
        logits = logits[..., : low[0], : low[1]].contiguous()
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend=backend, **options)
    oracle, oracle_gradient = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    losses, gradients = eager_samples(logits, target, **options)
    assert_as_accurate(loss, losses, oracle)
    assert_as_accurate(gradient, gradients, oracle_gradient)


@pytest.mark.parametrize("pool", ["image", "batch"])
def test_is_the_pooled_map(pool):
    """From the losses of "none", with the class and pixel weights in them, and their gradient at fixed weights."""
    logits, target, options = make_case({"weight": True, "pixel_weight": True})
    logits = logits.double().requires_grad_()
    options = {name: value.double() for name, value in options.items()}
    losses = locally_adaptive_loss(logits, target, reduction="none", **options)
    images = 1 if pool == "batch" else len(losses)
    rows = zip(losses.view(images, -1), (target != 255).view(images, -1), strict=True)
    expected = 0
    for row, valid in rows:
        if valid.any():
            weights = torch.from_numpy(pooled(row[valid].detach().cpu(), 0.25, 1.7)[1]).to(DEVICE)
            expected = expected + (weights * row[valid]).sum() / (1 if pool == "batch" else 2)  # the third has none
    loss = locally_adaptive_loss(logits, target, pool=pool, **POOLED, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("loss_fn", [functional.cross_entropy, functional.focal_loss])
def test_functions_take_it(loss_fn):
    logits, target = make_problem()
    losses = loss_fn(logits.double(), target, reduction="none")
    expected = max_pool(losses.flatten(1)[:2], (target != 255).flatten(1)[:2], 0.25, 1.7).mean()
    torch.testing.assert_close(loss_fn(logits.double(), target, **POOLED), expected, rtol=1e-13, atol=0)


def test_compiles_to_one_graph():
    logits, target = make_problem()
    loss_fn = LocallyAdaptiveLoss(3, backend="auto", **POOLED)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    results = [step_of(step, logits.double(), target) for step in (loss_fn, compiled)]
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-16)
