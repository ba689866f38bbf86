"""Losses under autocast: value, gradient and bits are those without it."""

import pytest
import torch
from problems import DEVICE, make_problem

from lal_triton.functional import center_loss, cross_entropy, focal_loss, locally_adaptive_loss

BACKENDS = ["cpu", "triton", "reference"]
LOSSES = {
    "cross_entropy": (cross_entropy, {}),
    "smoothed": (cross_entropy, {"label_smoothing": 0.1}),
    "focal": (focal_loss, {}),
    "lal": (locally_adaptive_loss, {"kernel_size": 3}),
    "map": (locally_adaptive_loss, {"kernel_size": 3, "reduction": "none"}),
    "max_pooling": (locally_adaptive_loss, {"kernel_size": 3, "reduction": "max_pooling"}),
}


def step(loss, logits, forward, backward, compiled=False):
    """Value and gradient with autocast to bfloat16 on in the forward, in the backward, or in neither."""
    leaf = logits.detach().requires_grad_()
    if compiled:
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=forward):
        value = loss(leaf)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=backward):
        value.sum().backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", ["equal", "upsampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_without_autocast(backend, name, size, dtype):
    if backend == "triton" and (dtype, name) not in [(torch.float32, "lal"), (torch.bfloat16, "cross_entropy")]:
        pytest.skip("the kernels do not differ in what torch does around them")
    logits, target = make_problem((2, 3, 6, 8))
    logits = (logits if size == "equal" else logits[:, :, ::2, ::2]).to(dtype)
    function, options = LOSSES[name]

    def loss(x):
        return function(x, target, backend=backend, **options)

    expected = step(loss, logits, False, False)
    for forward, backward in ((True, True), (True, False), (False, True)):
        value, gradient = step(loss, logits, forward, backward)
        assert value.dtype == expected[0].dtype
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("size", ["equal", "upsampled"])
def test_compiled_bits_are_those_without_autocast(size):
    torch._dynamo.reset()
    logits, target = make_problem((2, 3, 6, 8))
    logits = logits if size == "equal" else logits[:, :, ::2, ::2]

    def loss(x):
        return locally_adaptive_loss(x, target, kernel_size=3, backend="auto")

    expected = step(loss, logits, False, False)
    actual = step(loss, logits, True, False, compiled=True)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_center_loss_is_that_without_autocast():
    features, target = make_problem((2, 3, 6, 8))
    centers = torch.randn(3, 3, device=DEVICE)
    expected = step(lambda x: center_loss(x, target, centers), features, False, False)
    actual = step(lambda x: center_loss(x, target, centers), features, True, True)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_mixed_precision_training_step():
    """A bfloat16 network at half resolution, its loss inside autocast, and a GradScaler."""
    images, target = make_problem((2, 3, 8, 8))
    network = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1).to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.weight.detach().clone()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = network(images)
        loss = locally_adaptive_loss(logits, target, kernel_size=3)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert network.weight.grad.isfinite().all()
    assert not torch.equal(network.weight, before)
