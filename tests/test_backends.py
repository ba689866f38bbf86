"""The torch and Triton backends against the float64 reference, by the criterion of tests/criterion.py."""

import copy

import pytest
import torch
from criterion import assert_as_accurate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import DEVICE, OPTIONS, compare_with_reference, make_case, make_problem, value_and_gradient

from lal_triton import steps
from lal_triton.functional import locally_adaptive_loss

# The interpreter takes about a second a kernel, and a GPU compiles most examples anew.
EXAMPLES = {"cpu": 60, "triton": 8}
BACKENDS = ["cpu", "triton"]
HALF = [torch.float16, torch.bfloat16]


def assert_matches_reference(logits, target, backend, dtype=torch.float32, **options):
    for comparison in compare_with_reference(logits, target, backend, dtype, **options):
        assert_as_accurate(*comparison[:3], truncated=comparison.truncated)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(backend, name):
    logits, target, options = make_case(OPTIONS[name])
    assert_matches_reference(logits, target, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("reduction", ["minkowski", "mean", "none"])
def test_half_precision(backend, dtype, reduction):
    logits, target = make_problem()
    assert_matches_reference(logits, target, backend, dtype, reduction=reduction, kernel_size=3)


def strided(logits, layout):
    if layout == "channels_last":
        return logits.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return logits.mT.contiguous().mT
    if layout == "sliced":
        padded = torch.full([*logits.shape[:-1], 2 * logits.shape[-1] + 1], torch.nan, device=logits.device)
        padded[..., 1::2] = logits
        return padded[..., 1::2]
    if layout == "expanded":
        return logits[:1].expand_as(logits)
    return logits


def run_example(backend, data):
    kernel = st.sampled_from([1, 3, 5, (1, 3), (5, 3)] if backend == "triton" and DEVICE == "cpu" else [1, 3, 5, 7, 9])
    largest = 6 if backend == "triton" and DEVICE == "cpu" else 12
    shape = tuple(data.draw(st.integers(low, high)) for low, high in ((1, 3), (3, 5), (3, largest), (3, largest)))
    normalize = data.draw(st.booleans())
    logits, target = make_problem(
        shape,
        seed=data.draw(st.integers(0, 2**16)),
        labels=data.draw(st.integers(1, 3)),
        scale=data.draw(st.sampled_from([0.3, 1.0, 5.0])),
        offset=data.draw(st.sampled_from([0.0, 0.0, 1e3])) if normalize else 0.0,
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    cost = data.draw(st.sampled_from(["cross_entropy", "focal"]))
    target_dtype = data.draw(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
    assert_matches_reference(
        strided(
            logits, data.draw(st.sampled_from(["contiguous", "channels_last", "transposed", "sliced", "expanded"]))
        ),
        target.to(target_dtype),
        backend,
        dtype,
        kernel_size=data.draw(kernel),
        window=data.draw(st.sampled_from(["chessboard", "uniform"])),
        average=data.draw(st.sampled_from(["count", "weight"])),
        normalize=normalize,
        stride=data.draw(st.sampled_from([1, 1, 2])),
        cost=cost,
        focal_gamma=data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        label_smoothing=data.draw(st.sampled_from([0.0, 0.1])) if cost == "cross_entropy" else 0.0,
        reduction=data.draw(st.sampled_from(["minkowski", "mean", "sum", "none"])),
        p=data.draw(st.sampled_from([1.0, 2.0, 3.0])),
        pool=data.draw(st.sampled_from(["image", "batch"])),
    )


def examples_of(backend):
    suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES[backend], deadline=None, derandomize=True, suppress_health_check=suppressed, database=None
    )


@examples_of("cpu")
@given(data=st.data())
def test_random_problems_torch(data):
    run_example("cpu", data)


@examples_of("triton")
@given(data=st.data())
def test_random_problems_triton(data):
    run_example("triton", data)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("reduction", ["minkowski", "mean", "sum", "none"])
def test_no_valid_pixel_is_zero(backend, reduction):
    logits, target = make_problem((2, 3, 4, 5))
    loss, gradient = value_and_gradient(
        logits, torch.full_like(target, 255), torch.float32, backend=backend, reduction=reduction, kernel_size=3
    )
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_an_image_of_zero_weight_counts_as_void(backend):
    logits, target = make_problem((3, 3, 4, 5))
    pixel_weight = torch.ones(target.shape, device=DEVICE)
    pixel_weight[0] = 0
    options = {"backend": backend, "kernel_size": 3}
    loss, gradient = value_and_gradient(logits, target, torch.float32, pixel_weight=pixel_weight, **options)
    target[0] = 255
    expected, _ = value_and_gradient(logits, target, torch.float32, **options)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "scale"), [({"p": 20.0}, 2.0), ({"normalize": False, "p": 20.0}, 1e4)])
def test_powers_do_not_overflow(backend, options, scale):
    logits, target = make_problem(scale=scale)
    assert_matches_reference(logits, target, backend, kernel_size=3, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_losses_keep_their_power(backend):
    """1e-4 cubed and again to the power of 20 is far below the smallest float."""
    logits, target = make_problem((1, 3, 6, 9), scale=0.1)
    own = torch.nn.functional.one_hot(target.where(target != 255, 0), 3).movedim(-1, 1)
    logits = logits + 9.0 * own
    options = {"normalize": False, "kernel_size": 1, "window": "uniform", "p": 20.0}
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend=backend, **options)
    oracle, oracle_gradient = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    # log-softmax in float32 is absolute: 2^-24 in a loss of 1e-4, and 20 times that in its power
    torch.testing.assert_close(loss.double(), oracle, rtol=2**-24 / 1e-4, atol=0)
    assert (gradient - oracle_gradient).norm() < 20 * 2**-24 / 1e-4 * oracle_gradient.norm()
    assert oracle < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["minkowski", "none"])
def test_backward_twice_gives_the_same_bits(backend, reduction):
    logits, target = make_problem((2, 3, 5, 6))
    leaf = logits.requires_grad_()
    loss = locally_adaptive_loss(leaf, target, backend=backend, reduction=reduction, kernel_size=3)
    first, second = (torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    again = locally_adaptive_loss(leaf, target, backend=backend, reduction=reduction, kernel_size=3)
    assert torch.equal(loss, again)
    assert torch.equal(first, torch.autograd.grad(again.sum(), leaf)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_layouts(layout):
    logits, target = make_problem((2, 3, 5, 6))
    assert_matches_reference(strided(logits, layout), target, "cpu" if DEVICE == "cpu" else "triton")


def test_a_batch_of_gradients():
    logits, target = make_problem((2, 3, 5, 6))
    leaf = logits.requires_grad_()
    loss = locally_adaptive_loss(leaf, target, backend="auto")
    batched = torch.autograd.grad(loss, leaf, torch.tensor([1.0, 2.0], device=DEVICE), is_grads_batched=True)[0]
    one = torch.autograd.grad(locally_adaptive_loss(leaf, target, backend="auto"), leaf)[0]
    assert torch.equal(batched, torch.stack([one, 2 * one]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_non_finite_logits_stay_in_their_window(backend, poison):
    logits, target = make_problem((2, 3, 9, 11), labels=2)
    target = torch.where(target == 255, 0, target)
    clean, clean_gradient = value_and_gradient(
        logits, target, torch.float32, backend=backend, reduction="none", kernel_size=3
    )
    logits[0, 1, 4, 10] = poison  # at the end of a row
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend=backend, reduction="none", kernel_size=3)
    assert not loss[0, 4, 10].isfinite()
    window, reach = torch.zeros_like(target, dtype=torch.bool), torch.zeros_like(target, dtype=torch.bool)
    window[0, 3:6, 9:] = True
    reach[0, 2:7, 8:] = True  # a gradient crosses two windows
    # not the same bits: the kernels subtract a pivot that several rows share
    torch.testing.assert_close(loss[~window], clean[~window], rtol=1e-6, atol=1e-6)
    outside = ~reach[:, None].expand_as(gradient)
    torch.testing.assert_close(gradient[outside], clean_gradient[outside], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_finite_logits_leave_other_images_alone(backend):
    logits, target = make_problem((2, 3, 5, 6))
    target[-1] = 0
    _, clean = value_and_gradient(logits, target, torch.float32, backend=backend, kernel_size=3)
    logits[0, 0, 2, 2] = torch.nan
    loss, gradient = value_and_gradient(logits, target, torch.float32, backend=backend, kernel_size=3)
    assert loss.isnan()
    assert torch.equal(gradient[1], clean[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(backend):
    logits, target = make_problem((2, 3, 5, 6))
    kept = copy.deepcopy((logits, target))
    value_and_gradient(logits, target, torch.float32, backend=backend, kernel_size=3)
    assert torch.equal(logits, kept[0])
    assert torch.equal(target, kept[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 9), (1, 3, 9, 1), (2, 2, 4, 5), (1, 150, 2, 3)], ids=str)
def test_extreme_shapes(backend, shape):
    logits, target = make_problem(shape)
    options = {"backend": backend, "reduction": "none"}
    loss, gradient = value_and_gradient(logits, target, torch.float32, **options)
    oracle, oracle_gradient = value_and_gradient(logits, target, torch.float64, **options | {"backend": "reference"})
    # few pixels: no norm over many, so bounds on each
    torch.testing.assert_close(loss.double(), oracle, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), oracle_gradient, rtol=1e-4, atol=1e-5)


def test_checkerboard_of_two_labels():
    logits, _ = make_problem((1, 3, 8, 8))
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    target = ((rows + columns) % 2)[None].to(DEVICE)
    for backend in BACKENDS:
        assert_matches_reference(logits, target, backend)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_bands_of_any_height_agree(rows, monkeypatch):
    logits, target = make_problem((3, 4, 13, 6))
    whole, whole_gradient = value_and_gradient(logits, target, torch.float64, backend="auto", p=5.0)
    monkeypatch.setattr("lal_triton.cpu.bands.BAND_ROWS", rows)
    steps.clear()
    loss, gradient = value_and_gradient(logits, target, torch.float64, backend="auto", p=5.0)
    torch.testing.assert_close(loss, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-16)


def test_a_thousand_classes():
    logits, target = make_problem((1, 1000, 4, 5), labels=1000)
    assert_matches_reference(logits, torch.where(target == 255, 0, target), "auto", ignore_index=-100)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("reduction", ["minkowski", "mean", "none"])
def test_weights_of_another_dtype(backend, reduction):
    """They are constants: the loss has the dtype that its logits give it."""
    logits, target = make_problem()
    weights = {"weight": torch.rand(logits.shape[1]).double(), "pixel_weight": torch.rand(target.shape).double()}
    weights = {name: weight.to(DEVICE) for name, weight in weights.items()}
    options = {"backend": backend, "reduction": reduction, "kernel_size": 3}
    loss, _ = value_and_gradient(logits, target, torch.float32, **options, **weights)
    assert loss.dtype == torch.float32
    same = {name: weight.float() for name, weight in weights.items()}
    expected, _ = value_and_gradient(logits, target, torch.float32, **options, **same)
    torch.testing.assert_close(loss, expected)
