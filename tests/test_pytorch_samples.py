"""PyTorch's own samples of cross-entropy, its checks of custom ops, and numerical derivatives of every loss."""

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_as_accurate
from problems import DEVICE, make_problem
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from lal_triton.functional import center_loss, cross_entropy, focal_loss, locally_adaptive_loss, merge

BACKENDS = ["cpu", "triton", "reference"]
(SAMPLED,) = (op for op in op_db if op.name == "nn.functional.cross_entropy")
(MODULE,) = (module for module in module_db if module.name == "nn.CrossEntropyLoss")
SHARED = ("weight", "reduction", "label_smoothing", "ignore_index")


def as_images(logits, target):
    """`[N, C, ...]` logits and `[N, ...]` labels with two dimensions of pixels: views, with the same loss."""
    shape = target.shape[0], target.shape[1] if target.dim() > 1 else 1, -1
    return logits.reshape(shape[0], logits.shape[1], *shape[1:]), target.reshape(shape)


def samples(dtype):
    """Those whose targets are labels, with options that both take; and those with probabilities."""
    found = list(SAMPLED.sample_inputs(DEVICE, dtype, requires_grad=True))
    labelled = [sample for sample in found if not sample.args[0].is_floating_point()]
    assert all(set(sample.kwargs) <= set(SHARED) for sample in labelled)
    return labelled, [sample for sample in found if sample.args[0].is_floating_point()]


def step(loss, leaf):
    """The value of a loss and its gradient, by an uneven gradient of the value."""
    value = loss(leaf)
    ramp = torch.linspace(0.5, 1.5, value.numel(), device=leaf.device).view(value.shape).to(value.dtype)
    return value.detach(), torch.autograd.grad(value, leaf, ramp)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_samples_of_cross_entropy(backend, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the kernels have no float64")
    labelled, _ = samples(dtype)
    assert len(labelled) >= 11
    for sample in labelled:
        logits, target = as_images(sample.input.detach(), sample.args[0])
        options = {"ignore_index": -100, **sample.kwargs}
        weight = options.pop("weight", None)

        def ours(x, target=target, weight=weight, options=options):
            weight = None if weight is None else weight.abs().detach()
            return cross_entropy(x, target, weight=weight, backend=backend, **options)

        def theirs(x, target=target, weight=weight, options=options):
            return F.cross_entropy(x, target, None if weight is None else weight.abs().to(x.dtype).detach(), **options)

        actual = step(ours, logits.clone().requires_grad_())
        assert actual[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert actual[1].dtype == dtype
        oracle = step(theirs, logits.double().requires_grad_())
        if oracle[0].isnan().all():  # no valid pixel: a documented difference
            assert actual[0] == 0
            assert not actual[1].any()
            continue
        eager = step(theirs, logits.float().requires_grad_())
        for result in zip(actual, eager, oracle, strict=True):
            assert_as_accurate(*result, truncated=backend == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_are_refused(backend):
    _, probabilities = samples(torch.float32)
    assert len(probabilities) >= 10
    for sample in probabilities:
        shape = (*sample.input.shape, 1, 1)[:4]
        with pytest.raises((TypeError, ValueError), match="target has the"):
            cross_entropy(sample.input.reshape(*shape[:3], -1), sample.args[0], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_inputs_of_cross_entropy(backend):
    """What PyTorch's module refuses, its function's counterpart here refuses, too."""
    errors = MODULE.module_error_inputs_func(MODULE, DEVICE, torch.float32, False, False)
    assert len(errors) >= 1
    for error in errors:
        forward = error.module_error_input.forward_input
        with pytest.raises((TypeError, ValueError)):
            cross_entropy(*forward.args, backend=backend, **forward.kwargs)


def test_every_op_is_checked():
    """By opcheck, here or in test_ops: a new op has to be added there."""
    names = {
        name.removeprefix("lal_triton::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lal_triton::")
    }
    in_test_ops = {"prepare", "local_loss", "local_loss_backward", "power_norms", "pooled_loss", "pooled_loss_backward"}
    assert names == {"snapshot", "scale_rows", *in_test_ops}
    if DEVICE == "cpu":
        gradient, factor = torch.randn(2, 3, 4, 5), torch.rand(2, 4)
        for dtype in (torch.float32, torch.float16):
            torch.library.opcheck(torch.ops.lal_triton.scale_rows.default, (gradient, factor, dtype))
    torch.library.opcheck(torch.ops.lal_triton.snapshot.default, (torch.randn(3, 4, device=DEVICE),))


LOSSES = {
    "cross_entropy": (cross_entropy, {}),
    "smoothed": (cross_entropy, {"label_smoothing": 0.1, "reduction": "none"}),
    "focal": (focal_loss, {"reduction": "sum"}),
    "minkowski": (locally_adaptive_loss, {"kernel_size": 3}),
    "batch": (locally_adaptive_loss, {"kernel_size": 3, "pool": "batch", "stride": 2}),
    "max_pooling": (locally_adaptive_loss, {"kernel_size": 3, "reduction": "max_pooling"}),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [(3, 4), (6, 8)], ids=["equal", "upsampled"])
def test_numerical_derivatives(name, backend, size):
    """The first of all, the second of the reference; max-pooling's holds its weights fixed, which has no second."""
    function, options = LOSSES[name]
    logits, target = make_problem((2, 3, 3, 4), seed=3)
    target = F.interpolate(target[:, None].float(), size)[:, 0].long()

    def loss(x):
        return function(x, target, backend=backend, **options)

    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, leaf)
    if backend == "reference" and name != "max_pooling":
        assert torch.autograd.gradgradcheck(loss, leaf)


def test_numerical_derivatives_of_merge_and_center_loss():
    logits, target = make_problem((1, 3, 3, 4), seed=3)
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: merge(x, target, kernel_size=3), leaf)
    assert torch.autograd.gradgradcheck(lambda x: merge(x, target, kernel_size=3), leaf)
    centers = torch.randn(3, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: center_loss(x, target, c), (leaf, centers))
