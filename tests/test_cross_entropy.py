"""K = 1, no standard score, uniform window and mean: F.cross_entropy, on every option that both have."""

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, make_problem

from lal_triton import CrossEntropyLoss, FocalLoss, functional

BACKENDS = ["cpu", "triton", "reference"]


def value_and_gradient(loss_of, logits):
    leaf = logits.detach().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss.sum() * 1.5, leaf)
    return loss.detach(), gradient


def as_locally_adaptive_loss(*args, **options):
    return functional.locally_adaptive_loss(
        *args, kernel_size=1, normalize=False, window="uniform", **{"reduction": "mean"} | options
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("ours", [as_locally_adaptive_loss, functional.cross_entropy])
def test_equals_cross_entropy(ours, backend, reduction, weighted, label_smoothing):
    logits, target = make_problem((2, 5, 4, 7), labels=5)
    options = {
        "weight": torch.linspace(0, 2, 5, device=DEVICE) if weighted else None,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "ignore_index": 255,
    }
    expected, expected_gradient = value_and_gradient(lambda x: F.cross_entropy(x, target, **options), logits)
    loss, gradient = value_and_gradient(lambda x: ours(x, target, backend=backend, **options), logits)
    # float32: a few roundings of each, relative to the largest
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_focal_is_the_published_formula(backend):
    logits, target = make_problem((2, 5, 4, 7), labels=5)

    def published(x):
        log_q = torch.log_softmax(x, 1).gather(1, target.where(target != 255, 0)[:, None])[:, 0]
        losses = -0.3 * (1 - log_q.exp()) ** 1.5 * log_q
        return losses[target != 255].mean()

    expected, expected_gradient = value_and_gradient(published, logits.double())
    loss, gradient = value_and_gradient(
        lambda x: functional.focal_loss(x, target, alpha=0.3, gamma=1.5, backend=backend), logits
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_at_certainty(backend, gamma):
    logits = torch.zeros(1, 3, 2, 2, device=DEVICE)
    logits[:, 1] = 1e4
    target = torch.ones(1, 2, 2, dtype=torch.long, device=DEVICE)
    target[0, 0, 0] = 0
    loss, gradient = value_and_gradient(
        lambda x: functional.focal_loss(x, target, gamma=gamma, backend=backend), logits
    )
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, :, 0, 0].abs().max() > 0
    assert torch.equal(gradient[0, :, 1, 1], torch.zeros(3, device=DEVICE))


def test_modules_are_the_functions():
    logits, target = make_problem((2, 5, 4, 7), labels=5)
    weight = torch.rand(5, device=DEVICE)
    pixel_weight = torch.rand(target.shape, device=DEVICE)
    ours = CrossEntropyLoss(weight, label_smoothing=0.1)(logits, target, pixel_weight)
    expected = functional.cross_entropy(logits, target, weight=weight, label_smoothing=0.1, pixel_weight=pixel_weight)
    assert torch.equal(ours, expected)
    ours = FocalLoss(0.5, 1.0, weight=weight, reduction="sum")(logits, target)
    assert torch.equal(
        ours, functional.focal_loss(logits, target, alpha=0.5, gamma=1.0, weight=weight, reduction="sum")
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_logits_give_a_float32_loss(backend):
    logits, target = make_problem((2, 5, 4, 7), labels=5)
    loss, gradient = value_and_gradient(
        lambda x: functional.cross_entropy(x, target, backend=backend), logits.bfloat16()
    )
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
