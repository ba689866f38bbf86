"""The custom ops under opcheck and torch.compile."""

import inspect

import pytest
import torch
from problems import DEVICE, cpu_only, make_problem

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss, derivatives, functional
from lal_triton.options import make_options

OPTIONS = make_options(kernel_size=3, window="chessboard", normalize=True)


def problem(requires_grad=True):
    logits, target = make_problem((2, 3, 5, 6))
    labels, omega, _ = torch.ops.lal_triton.prepare(target, None, None, 3, 1, 255, torch.float32)
    return logits.requires_grad_(requires_grad), target, labels, omega


def test_opcheck_prepare():
    _, target, _, _ = problem()
    weight, pixel_weight = torch.rand(3, device=DEVICE), torch.rand(target.shape, device=DEVICE)
    for arguments in ((None, None), (weight, pixel_weight)):
        torch.library.opcheck(torch.ops.lal_triton.prepare.default, (target, *arguments, 3, 2, 255, torch.float32))


@cpu_only
@pytest.mark.parametrize("options", [OPTIONS, make_options(kernel_size=3)], ids=["normalized", "plain"])
def test_opcheck_local_loss(options):
    logits, _, labels, _ = problem()
    torch.library.opcheck(torch.ops.lal_triton.local_loss.default, (logits, labels, None, *options))


@cpu_only
def test_opcheck_local_loss_backward():
    logits, _, labels, _ = problem(requires_grad=False)
    losses = torch.ops.lal_triton.local_loss(logits, labels, None, *OPTIONS)
    for gradient in (torch.ones_like(losses), torch.ones((), device=DEVICE).expand_as(losses)):
        arguments = (gradient, logits, labels, None, *OPTIONS)
        torch.library.opcheck(torch.ops.lal_triton.local_loss_backward.default, arguments)


@pytest.mark.parametrize("options", [OPTIONS, make_options(kernel_size=3)], ids=["normalized", "plain"])
@pytest.mark.parametrize("pooling", [("image", 3.0, 255, True), ("none", 1.0, 255, False)], ids=["image", "none"])
def test_opcheck_pooled_loss(options, pooling):
    logits, target, _, _ = problem()
    arguments = (logits, target, None, None, *options, *pooling)
    torch.library.opcheck(torch.ops.lal_triton.pooled_loss.default, arguments)


@pytest.mark.parametrize("reduction", ["image", "none"])
def test_opcheck_pooled_loss_backward(reduction):
    logits, target, _, _ = problem(requires_grad=False)
    pooling = (reduction, 3.0, 255, True)
    value, *saved = torch.ops.lal_triton.pooled_loss(logits, target, None, None, *OPTIONS, *pooling)
    for gradient in (torch.ones_like(value), torch.ones((), device=DEVICE).expand_as(value)):
        arguments = (gradient, logits, target, None, None, *saved, *OPTIONS, *pooling)
        torch.library.opcheck(torch.ops.lal_triton.pooled_loss_backward.default, arguments)


@cpu_only
def test_opcheck_power_norms():
    logits, _, labels, omega = problem()
    arguments = (logits, labels, None, omega, torch.tensor(2.0), derivatives.origin(logits), 3.0, True, *OPTIONS)
    torch.library.opcheck(torch.ops.lal_triton.power_norms.default, arguments)


def step(loss, logits, target):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, target)
    value.sum().backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        LocallyAdaptiveLoss(3, backend="auto"),
        LocallyAdaptiveLoss(3, backend="triton"),
        LocallyAdaptiveLoss(3, backend="auto", reduction="none"),
        CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1, backend="auto"),
    ],
    ids=["cpu", "triton", "none", "cross_entropy"],
)
def test_compiles_without_a_graph_break(loss, dynamic):
    torch._dynamo.reset()
    loss = loss.to(DEVICE)
    logits, target = make_problem((2, 3, 5, 6))
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    value, gradient = step(loss, logits, target)
    compiled_value, compiled_gradient = step(compiled, logits, target)
    torch.testing.assert_close(compiled_value, value)
    torch.testing.assert_close(compiled_gradient, gradient)


def test_labels_are_checked_in_a_compiled_graph():
    if DEVICE != "cpu":
        pytest.skip("on a GPU labels out of range give NaN")
    torch._dynamo.reset()
    compiled = torch.compile(functional.locally_adaptive_loss, fullgraph=True, backend="aot_eager")
    logits, target = make_problem((2, 3, 5, 6))
    with pytest.raises(ValueError, match="label 7"):
        compiled(logits, torch.full_like(target, 7))


def test_two_classes_compile():
    torch._dynamo.reset()
    logits, target = make_problem((2, 2, 5, 6))
    compiled = torch.compile(LocallyAdaptiveLoss(3, backend="auto"), fullgraph=True, backend="aot_eager")
    assert compiled(logits, target).isfinite()


@cpu_only
def test_labels_out_of_range_are_nan_where_values_are_not_read():
    """What a GPU does: `prepare` cannot read there, and the backend gets encoded labels."""
    logits, _, labels, _ = problem(requires_grad=False)
    labels[0, 2, 3] = -2
    losses = torch.ops.lal_triton.local_loss(logits, labels, None, *OPTIONS)
    assert losses[0, 2, 3].isnan()
    assert losses.isnan().sum() == 1


@cpu_only
def test_nothing_is_saved_without_a_gradient(monkeypatch):
    logits, target = make_problem((2, 3, 5, 6))

    from lal_triton.cpu import backend

    sweep = backend.sweep
    gradient = list(inspect.signature(sweep.py_func).parameters).index("gradient")

    def watching(*arguments):
        if arguments[gradient].size > 0:
            raise AssertionError("the gradient was computed")
        return sweep(*arguments)

    monkeypatch.setattr(backend, "sweep", watching)
    functional.locally_adaptive_loss(logits, target, backend="auto")
    with torch.no_grad():
        functional.locally_adaptive_loss(logits.requires_grad_(), target, backend="auto")
    with pytest.raises(AssertionError, match="computed"):
        functional.locally_adaptive_loss(logits, target, backend="auto")


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.focal_loss, functional.locally_adaptive_loss])
def test_functions_compile_with_a_gradient(loss):
    pytest.importorskip("triton")
    torch._dynamo.reset()
    logits, target = make_problem((2, 3, 5, 6))
    for backend in ("auto", "triton"):

        def plain(x, t, backend=backend):
            return loss(x, t, backend=backend)

        results = [
            step(function, logits, target)
            for function in (plain, torch.compile(plain, fullgraph=True, backend="aot_eager"))
        ]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("weights", [None, "expanded"])
def test_saved_tensors_may_come_back_with_other_strides(weights):
    """As those that a hook brings to another device and back do."""
    pytest.importorskip("triton")
    logits, target = make_problem((2, 3, 5, 6))
    logits = logits.contiguous(memory_format=torch.channels_last)
    if weights is not None:
        weights = torch.rand(5, 1).to(DEVICE).expand(2, 5, 6)

    def loss(x, t):
        return functional.locally_adaptive_loss(x, t, kernel_size=3, pixel_weight=weights, backend="triton")

    expected = step(loss, logits, target)
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous, lambda tensor: tensor):
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, target)
    value.backward()
    assert torch.equal(leaf.grad, expected[1])


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_negated_views(backend):
    """torch keeps the sign of some views in a bit."""
    logits, target = make_problem((2, 3, 5, 6))
    expected = functional.cross_entropy(logits, target, backend=backend)
    assert torch.equal(functional.cross_entropy(torch._neg_view(-logits), target, backend=backend), expected)
