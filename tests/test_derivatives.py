"""Derivatives of every order and kind: the right value, or an error that names the backend which has it."""

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, make_problem
from torch.autograd import forward_ad

from lal_triton import CenterLoss
from lal_triton.functional import center_loss, cross_entropy, locally_adaptive_loss

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
FAST = ["cpu", "triton"]
REDUCTIONS = ["mean", "none", "max_pooling"]
LOGITS = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 4, (1, 4, 4), generator=torch.Generator().manual_seed(1))
REFUSAL = 'expected backend="reference"'
EXACT = {"rtol": 1e-5, "atol": 1e-7}  # float32: sums of 16 pixels


def loss_of(backend, reduction="mean", target=TARGET):
    return lambda z: cross_entropy(z, target, backend=backend, reduction=reduction).sum()


def penalised(loss):
    """A scalar w that scales the logits, and a loss with a penalty on the gradient of the scaled logits."""
    w = torch.ones((), requires_grad=True)
    z = LOGITS.clone().requires_grad_() * w
    value = loss(z)
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    return w, z, gradient, value + 100 * gradient.square().sum()


def test_second_derivative_of_the_reference():
    w, *_, total = penalised(loss_of("reference"))
    total.backward()
    expected, *_, total = penalised(lambda z: F.cross_entropy(z, TARGET))
    total.backward()
    torch.testing.assert_close(w.grad, expected.grad, **EXACT)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_are_refused(backend, reduction):
    """By any route from the gradient to what the logits came from, and to a weight of the loss."""
    loss = loss_of(backend, reduction)
    w, *_, total = penalised(loss)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        total.backward()
    w, z, gradient, _ = penalised(loss)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        torch.autograd.grad(gradient.sum() + w, w)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        torch.autograd.grad(gradient.sum() + z.sum(), z)
    scale = torch.ones((), requires_grad=True)
    leaf = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scale * loss(leaf), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        torch.autograd.grad(gradient.sum(), scale)


@pytest.mark.parametrize("backend", FAST)
def test_a_gradient_may_stay_in_the_graph(backend):
    """With create_graph=True the first derivative is as always."""
    leaf = LOGITS.clone().requires_grad_()
    loss_of(backend)(leaf).backward(create_graph=True)
    expected = LOGITS.clone().requires_grad_()
    F.cross_entropy(expected, TARGET).backward()
    torch.testing.assert_close(leaf.grad.detach(), expected.grad, **EXACT)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_func_grad(backend, reduction):
    loss = loss_of(backend, reduction)
    leaf = LOGITS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.equal(torch.func.grad(loss)(LOGITS), expected)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_vmap_of_func_grad(backend):
    logits, targets = torch.stack([LOGITS, 2 * LOGITS, -LOGITS]), torch.stack([TARGET, 3 - TARGET, TARGET])

    def loss(z, y):
        return locally_adaptive_loss(z, y, kernel_size=3, backend=backend)

    mapped = torch.func.vmap(torch.func.grad(loss))(logits, targets)
    for gradient, z, y in zip(mapped, logits, targets, strict=True):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(z, y), **EXACT)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("upsampling", [1, 2])
def test_transforms_of_second_order_are_refused(backend, reduction, upsampling):
    target = TARGET.repeat_interleave(upsampling, 1).repeat_interleave(upsampling, 2)
    loss = loss_of(backend, reduction, target)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        torch.func.grad(lambda z: torch.func.grad(loss)(z).square().sum())(LOGITS)
    with pytest.raises(NotImplementedError, match='expected "reference"'):
        torch.func.hessian(loss)(LOGITS)
    gradient = torch.func.grad(loss)(LOGITS.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match=REFUSAL):
        gradient.sum().backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forward_mode(reduction):
    """ "auto" takes the reference for it, in all of torch's ways."""
    loss = loss_of("auto", reduction)
    leaf = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    expected = (gradient * LOGITS).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (LOGITS,), (LOGITS,))[1], expected, **EXACT)
    torch.testing.assert_close(torch.func.jacfwd(loss)(LOGITS), gradient, **EXACT)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(LOGITS, LOGITS))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected, **EXACT)
    hessian = torch.func.hessian(loss)(LOGITS)
    reference = torch.func.hessian(loss_of("reference", reduction))(LOGITS)
    assert torch.equal(hessian, reference)


def test_forward_mode_of_a_gradient():
    """A Hessian-vector product by "auto" is that of F.cross_entropy."""
    actual = torch.func.jvp(torch.func.grad(loss_of("auto")), (LOGITS,), (LOGITS,))[1]
    expected = torch.func.jvp(torch.func.grad(lambda z: F.cross_entropy(z, TARGET)), (LOGITS,), (LOGITS,))[1]
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("backend", FAST)
def test_forward_mode_is_refused_where_there_is_none(backend):
    with pytest.raises(NotImplementedError, match='expected "reference" or "auto"'):
        torch.func.jvp(loss_of(backend), (LOGITS,), (LOGITS,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='expected "reference" or "auto"'):
        loss_of(backend)(forward_ad.make_dual(LOGITS, LOGITS))


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("name", ["weight", "pixel_weight"])
def test_weights_that_require_a_gradient_are_refused(backend, name):
    """Also where the same call was made before with a constant; without gradients they are taken."""
    constant = torch.rand(4 if name == "weight" else (1, 4, 4))

    def loss(weight):
        return cross_entropy(LOGITS, TARGET, backend=backend, **{name: weight})

    expected = loss(constant)
    learnt = constant.clone().requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient, expected a constant"):
        loss(learnt)
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        torch.func.grad(loss)(constant)
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        torch.func.jvp(loss, (constant,), (constant,))
    with torch.no_grad():
        assert torch.equal(loss(learnt), expected)
    if backend == "reference":
        torch.func.jvp(lambda z: cross_entropy(z, TARGET, **{name: constant}), (LOGITS,), (LOGITS,))


def test_windows_that_require_a_gradient_are_refused():
    with pytest.raises(ValueError, match="window requires a gradient"):
        locally_adaptive_loss(LOGITS, TARGET, kernel_size=3, window=torch.ones(3, 3, requires_grad=True))


def test_center_loss_has_the_gradient_of_its_centers():
    centers = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(center_loss(LOGITS, TARGET, centers), centers)
    expected = torch.zeros_like(centers)
    for pixel, label in zip(LOGITS[0].flatten(1).T, TARGET.flatten(), strict=True):
        expected[label] -= (pixel - centers.detach()[label]) / TARGET.numel()
    torch.testing.assert_close(gradient, expected, **EXACT)


def test_center_loss_refuses_what_it_has_not():
    features = LOGITS.clone().requires_grad_()
    loss = CenterLoss(4, 4).eval()
    (gradient,) = torch.autograd.grad(loss(features, TARGET), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="center loss"):
        (gradient.sum() + features.sum()).backward()
    with pytest.raises(NotImplementedError, match="center loss"):
        torch.func.jvp(lambda z: loss(z, TARGET), (LOGITS,), (LOGITS,))
    expected = torch.autograd.grad(loss(features, TARGET), features)[0]
    assert torch.equal(torch.func.grad(lambda z: loss(z, TARGET))(LOGITS), expected)


@pytest.mark.parametrize("loss", [cross_entropy, locally_adaptive_loss])
def test_transforms_inside_a_graph(loss):
    """They take the reference, and no weights; forward mode is not compiled."""
    torch._dynamo.reset()
    logits, target = make_problem((2, 4, 4, 4))
    tangent, weight = torch.randn_like(logits), torch.ones(4, device=DEVICE)

    def compiled(function):
        return torch.compile(function, backend="aot_eager")

    gradient = compiled(lambda x: torch.func.grad(lambda y: loss(y, target))(x))
    torch.testing.assert_close(gradient(logits), torch.func.grad(lambda x: loss(x, target))(logits))
    with pytest.raises((ValueError, NotImplementedError), match="weight"):
        compiled(lambda w: torch.func.grad(lambda y: loss(logits, target, weight=y))(w))(weight)
    for backend in ("auto", "cpu", "triton", "reference"):

        def forward(x, v, backend=backend):
            return torch.func.jvp(lambda y: loss(y, target, backend=backend), (x,), (v,))[1]

        if backend in ("auto", "reference"):  # the graph breaks there
            torch.testing.assert_close(compiled(forward)(logits, tangent), forward(logits, tangent))
        else:
            with pytest.raises(NotImplementedError, match="forward"):
                compiled(forward)(logits, tangent)


def test_forward_mode_of_max_pooling_beside_void():
    logits, target = make_problem((2, 4, 4, 4))
    logits, target[0, 0, 0] = logits.double(), 255
    tangent = torch.randn_like(logits)

    def loss(x):
        return cross_entropy(x, target, reduction="max_pooling", backend="reference")

    derivative = torch.func.jvp(loss, (logits,), (tangent,))[1]
    expected = (torch.func.grad(loss)(logits) * tangent).sum()
    torch.testing.assert_close(derivative, expected)
