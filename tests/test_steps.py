"""A step is prepared once and repeated: what a later call brings that the first did not is seen all the same."""

import gc
import weakref

import pytest
import torch
from problems import DEVICE, cpu_only, make_problem

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss, steps

BACKENDS = ("cpu", "reference", "triton") if DEVICE == "cpu" else ("reference", "triton")


@cpu_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_checked_at_every_call(backend):
    loss = LocallyAdaptiveLoss(3, weight=torch.ones(3), backend=backend)
    logits, target = make_problem((2, 3, 5, 6))
    pixel_weight = torch.ones(target.shape)
    loss(logits, target, pixel_weight)
    with pytest.raises(ValueError, match="target holds the label 7"):
        loss(logits, target.clone().index_fill_(2, torch.tensor([1]), 7), pixel_weight)
    with pytest.raises(ValueError, match="pixel_weight holds -1"):
        loss(logits, target, -pixel_weight)
    loss.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="weight holds nan"):
        loss(logits, target, pixel_weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_of_strides_dtypes_and_gradients(backend):
    loss = LocallyAdaptiveLoss(3, backend=backend)
    logits, target = make_problem((2, 3, 5, 6))
    expected = LocallyAdaptiveLoss(3, backend="reference")(logits, target)
    last = logits.contiguous(memory_format=torch.channels_last)
    for given, labels in (
        (logits, target),
        (last, target),
        (logits, target.int()),
        (logits, target.mT.contiguous().mT),
    ):
        assert torch.allclose(loss(given, labels), expected, rtol=1e-5)
        leaf = given.detach().requires_grad_()
        assert loss(leaf, labels).requires_grad
        with torch.no_grad():
            assert not loss(leaf, labels).requires_grad


def test_weights_that_begin_to_ask_for_a_gradient_are_refused():
    loss = CrossEntropyLoss()
    logits, target = make_problem((2, 3, 5, 6))
    pixel_weight = torch.ones(target.shape, device=DEVICE)
    loss(logits, target, pixel_weight)
    with pytest.raises(ValueError, match="pixel_weight requires a gradient"):
        loss(logits, target, pixel_weight.requires_grad_())


def test_few_steps_are_kept_and_no_tensor_of_a_call(monkeypatch):
    monkeypatch.setattr(steps, "MOST", 2)
    loss = CrossEntropyLoss()
    found = []
    for size in (3, 4, 5):
        logits, target = make_problem((1, 3, size, size))
        loss(logits, target)
        found += [weakref.ref(logits), weakref.ref(target)]
    assert len(steps._steps) == 2
    del logits, target
    gc.collect()
    assert [reference() for reference in found] == [None] * 6


@pytest.mark.parametrize("position", [0, 1])
def test_what_is_no_dense_tensor_is_named(position):
    tensors = list(make_problem((2, 3, 5, 6)))
    for other in (None, 1.0, torch.eye(4, device=DEVICE).to_sparse_csr()):
        tensors[position] = other
        with pytest.raises((TypeError, ValueError), match=r"^(logits|target) (is a|has the)"):
            CrossEntropyLoss()(*tensors)
