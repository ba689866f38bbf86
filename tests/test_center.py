"""Center loss against plain formulas in float64, and the centres' update against loops over the pixels."""

import copy
import io
import pickle

import pytest
import torch
from problems import DEVICE, step_of

from lal_triton import CenterLoss
from lal_triton.benchmarks.memory import allocations
from lal_triton.functional import center_loss

CLASSES, FEATURES = 5, 4


def make_features(images=3, *, dtype=torch.float64, seed=0):
    """Features, a target with void in which class 2 is absent and the last image has no valid pixel, and centres."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, FEATURES, 5, 6, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, CLASSES, (images, 5, 6), generator=generator)
    target[target == 2] = 255
    target[-1] = 255
    centers = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    return features.to(DEVICE), target.to(DEVICE), centers.to(DEVICE)


def plain(features, target, centers):
    """The definition by indexing, differentiable by autograd."""
    valid = target != 255
    difference = features.movedim(1, -1)[valid] - centers[target[valid]]
    return difference.square().sum(1).mean() / 2


def updated(features, target, centers, alpha):
    """The published update, pixel by pixel."""
    moved = centers.clone()
    for j in range(len(centers)):
        own = features.movedim(1, -1)[target == j]
        total = sum((centers[j] - x for x in own), torch.zeros_like(centers[j]))
        moved[j] -= alpha * total / (1 + len(own))
    return moved


def test_value_and_gradients():
    features, target, centers = make_features()
    leaves = features.requires_grad_(), centers.requires_grad_()
    loss, expected = center_loss(features, target, centers), plain(features, target, centers)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(3 * expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-16)
    corner = features[..., :2, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: center_loss(x, target[:, :2, :2], c), (corner, leaves[1]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_centers_move_by_the_published_update(alpha):
    loss_fn = CenterLoss(CLASSES, FEATURES, alpha, lambda_=0.1).double().to(DEVICE)
    expected = torch.zeros(CLASSES, FEATURES, dtype=torch.float64, device=DEVICE)
    for step in range(4):
        features, target, _ = make_features(seed=step)
        leaf = features.clone().requires_grad_()
        loss = loss_fn(leaf, target)
        torch.testing.assert_close(loss, 0.1 * plain(features, target, expected), rtol=1e-13, atol=0)
        # the gradient is that at the centres before the step, though it is taken after it
        before = features.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(0.1 * plain(before, target, expected), before)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], wanted, rtol=1e-12, atol=1e-16)
        expected = updated(features, target, expected, alpha)
        torch.testing.assert_close(loss_fn.centers, expected, rtol=1e-12, atol=1e-15)
    assert not loss_fn.centers[2].any()  # a class without a pixel stays


def test_centers_reach_the_class_means():
    features, target, _ = make_features()
    loss_fn = CenterLoss(CLASSES, FEATURES).double().to(DEVICE)
    for _ in range(100):
        loss_fn(features, target)
    for j in set(range(CLASSES)) - {2}:
        torch.testing.assert_close(loss_fn.centers[j], features.movedim(1, -1)[target == j].mean(0))


def test_evaluation_leaves_the_centers():
    features, target, _ = make_features()
    loss_fn = CenterLoss(CLASSES, FEATURES).to(DEVICE)
    loss_fn(features, target)
    before = loss_fn.centers.clone()
    assert before.any()
    loss_fn.eval()(features, target)
    assert torch.equal(loss_fn.centers, before)
    assert not before.requires_grad
    assert not list(loss_fn.parameters())


def test_void_features_do_not_matter():
    features, target, centers = make_features()
    broken = torch.where((target == 255)[:, None], torch.nan, features)
    results = []
    for x in (features, broken):
        leaf = x.clone().requires_grad_()
        loss = center_loss(leaf, target, centers)
        loss_fn = CenterLoss(CLASSES, FEATURES).to(DEVICE)
        loss_fn(x, target)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf), loss_fn.centers))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not results[0][1].movedim(1, -1)[target == 255].any()


def test_another_void_label():
    features, target, centers = make_features()
    other = torch.where(target == 255, -100, target)
    assert torch.equal(center_loss(features, other, centers, ignore_index=-100), center_loss(features, target, centers))


def test_no_valid_pixel():
    features, target, centers = make_features()
    leaves = features.requires_grad_(), centers.requires_grad_()
    loss = center_loss(features, torch.full_like(target, 255), centers)
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, leaves))
    loss_fn = CenterLoss(CLASSES, FEATURES).to(DEVICE)
    loss_fn.centers += 1
    assert loss_fn(features, torch.full_like(target, 255)) == 0
    assert torch.equal(loss_fn.centers, torch.ones_like(loss_fn.centers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(dtype):
    """All is float32, but for the gradient's last rounding; the sums have some 100 terms of size 1."""
    features, target, centers = make_features(dtype=dtype)
    exact = features.double().requires_grad_()
    centers = centers.float()
    expected = plain(exact, target, centers.double())
    leaf = features.clone().requires_grad_()
    loss = center_loss(leaf, target, centers)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.dtype == dtype
    (wanted,) = torch.autograd.grad(expected, exact)
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), wanted, rtol=torch.finfo(dtype).eps + 1e-6, atol=subnormal + 1e-9)


def test_autocast_does_not_round_the_centers():
    features, target, _ = make_features(dtype=torch.float32)
    losses = [CenterLoss(CLASSES, FEATURES).to(DEVICE) for _ in range(2)]
    losses[0](features, target)
    with torch.autocast(DEVICE, torch.bfloat16):
        losses[1](features, target)
    assert torch.equal(losses[0].centers, losses[1].centers)


def test_memory_formats_agree():
    features, target, centers = make_features()
    layouts = (features, features.contiguous(memory_format=torch.channels_last), features.flip(0).flip(0))
    results = [step_of(lambda x, y: center_loss(x, y, centers), layout, target) for layout in layouts]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-13, atol=1e-16)


def test_memory_is_the_gradient_and_some_images():
    """Of 16 images a step holds the gradient, three planes of an image, and what grows with the pixels alone."""
    features = torch.randn(16, 64, 32, 32, requires_grad=True)
    target = torch.randint(0, 8, (16, 32, 32))
    loss_fn = CenterLoss(8, 64)
    size = features.numel() * features.element_size()
    largest, peak = allocations(lambda: loss_fn(features, target).backward())
    assert largest == size
    assert peak <= size * (1 + 4 / 16)


def test_label_out_of_range():
    features, target, centers = make_features()
    target[0, 0, 0] = CLASSES
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match=r"target holds the label 5, expected \[0, 5\) or ignore_index = 255"):
            center_loss(features, target, centers)
    else:
        assert center_loss(features, target, centers).isnan()


def test_compiles_to_one_graph():
    """With the gradient at the centres from before the step, which moves them before the backward."""
    features, target, _ = make_features()
    eager = CenterLoss(CLASSES, FEATURES, lambda_=1.0).double().to(DEVICE)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        results = [step_of(loss_fn, features, target) for loss_fn in (eager, compiled)]
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-16)
        torch.testing.assert_close(module.centers, eager.centers, rtol=1e-13, atol=1e-16)


def test_state_copies_and_repr():
    features, target, _ = make_features(dtype=torch.float32)
    loss_fn = CenterLoss(CLASSES, FEATURES, 0.25, lambda_=0.1).to(DEVICE)
    loss_fn(features, target)
    copies = [copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))]
    buffer = io.BytesIO()
    torch.save(loss_fn.state_dict(), buffer)
    buffer.seek(0)
    loaded = CenterLoss(CLASSES, FEATURES, 0.25, lambda_=0.1).to(DEVICE)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    loss = loss_fn(features, target)
    for other in (*copies, loaded):
        assert torch.equal(other(features, target), loss)
        assert torch.equal(other.centers, loss_fn.centers)
    assert repr(loss_fn) == "CenterLoss(5, 4, alpha=0.25, lambda_=0.1, ignore_index=255)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "num_classes is 0, expected an integer >= 1"),
        ((5, 2.0), TypeError, r"num_features is 2\.0, expected an integer"),
        ((5, 4, -0.5), ValueError, r"alpha is -0\.5, expected a finite number in \[0, inf\)"),
        ((5, 4, 0.5, float("nan")), ValueError, "lambda_ is nan, expected"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        CenterLoss(*arguments)


X, Y, C = torch.randn(2, 4, 5, 6), torch.zeros(2, 5, 6, dtype=torch.long), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("features", "target", "centers", "error", "message"),
    [
        (X[0], Y, C, ValueError, r"features has the shape \[4, 5, 6\], expected \[N, C, H, W\]"),
        (X.long(), Y, C, TypeError, r"features has the dtype torch\.int64"),
        (X[:, :3], Y, C, ValueError, r"features has D = 3, expected the D = 4 of centers"),
        (X, Y[:1], C, ValueError, r"target has N = 1, expected the N = 2 of features"),
        (X, Y[:, :3], C, ValueError, r"target has the size \[3, 6\], expected .* features, \[5, 6\]; .* nearest"),
        (X, Y.float(), C, TypeError, r"target has the dtype torch\.float32"),
        (X, Y, C[0], ValueError, r"centers has the shape \[4\], expected \[C, D\]"),
        (X, Y, C.long(), TypeError, r"centers has the dtype torch\.int64"),
        (X, Y, C.to("meta"), ValueError, "centers is on meta, expected the device of features, cpu"),
        (X, Y, None, TypeError, "centers is a NoneType"),
    ],
)
def test_bad_tensors(features, target, centers, error, message):
    with pytest.raises(error, match=message):
        center_loss(features, target, centers)
