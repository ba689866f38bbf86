"""The Triton kernels against the float64 reference: in the interpreter on the CPU, natively where there is a GPU."""

import math

import pytest
import torch
from criterion import assert_as_accurate

pytest.importorskip("triton")

import triton
import triton.language as tl

from lal_triton import reference, steps
from lal_triton.kernels import configs
from lal_triton.kernels.arithmetic import log_of_sum
from lal_triton.kernels.host.plan import Plan
from lal_triton.labels import INVALID, VOID, encode_labels
from lal_triton.options import LocalLoss, Pooling, make_options

pytestmark = pytest.mark.usefixtures("poison")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAP = Pooling("none", 1.0, ignore_index=VOID)


@triton.jit
def log1p_kernel(out, a, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, log_of_sum(tl.load(a + i), 1.0))


def strips(rows, columns, strips, groups=1):
    """The same strips for all kernels."""
    config = {"rows": rows, "columns": columns, "strips": strips}
    return {"local_loss_fwd": config, "local_cost_bwd": config, "merge_bwd": {**config, "groups": groups}}


@pytest.fixture
def small_tiles(cheap_strips):
    """So that an image of a few pixels has tiles inside and at all borders."""
    with configs.forcing(strips(2, 4, 1)):
        yield


def lal(**options) -> LocalLoss:
    return make_options(**{"kernel_size": 3, "window": "chessboard", "normalize": True, **options})


def make_logits(images=2, classes=3, height=5, width=7, scale=2.0, offset=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(images + 10 * classes + 100 * height + 1000 * width)
    logits = torch.randn(images, classes, height, width, generator=generator) * scale + offset
    return logits.to(DEVICE, dtype)


def make_labels(logits, void=0.1, block=2):
    """Blocks of equal labels with void pixels among them, encoded."""
    images, classes, height, width = logits.shape
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(0, classes, (images, height, width), generator=generator)
    target = target.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    target = torch.where(torch.rand(target.shape, generator=generator) < void, 255, target)
    return encode_labels(target, classes, 255).to(DEVICE)


def make_gradient(labels):
    return torch.rand(labels.shape, generator=torch.Generator().manual_seed(7)).to(labels.device) - 0.3


def evaluate(logits, labels, options, weight=None, gradient=None, saves_exp=True):
    """The map of losses and the gradient of the logits; the encoded labels are a target whose ignore_index is VOID."""
    gradient = make_gradient(labels) if gradient is None else gradient
    plan = Plan(logits, labels, weight, None, options, MAP, saves_exp)
    losses, saved = plan.forward(logits, labels, weight, None)
    return losses, plan.backward(gradient, logits, weight, None, saved)


def evaluate_reference(logits, labels, options, weight=None, gradient=None, dtype=torch.float64):
    logits = logits.detach().to(dtype, copy=True).requires_grad_()
    gradient = make_gradient(labels) if gradient is None else gradient
    losses = reference.local_loss(logits, labels, None if weight is None else weight.to(dtype), options)
    losses.backward(gradient.to(dtype))
    return losses.detach(), logits.grad


def check(logits, labels, options, weight=None, gradient=None, saves_exp=True):
    actual = evaluate(logits, labels, options, weight, gradient, saves_exp)
    eager = evaluate_reference(logits, labels, options, weight, gradient, dtype=torch.float32)
    oracle = evaluate_reference(logits, labels, options, weight, gradient)
    assert actual[0].dtype == torch.float32
    assert actual[1].dtype == logits.dtype
    truncated = DEVICE.type == "cpu" and logits.dtype == torch.bfloat16
    for result in zip(actual, eager, oracle, strict=True):
        assert_as_accurate(*result, truncated=truncated and result[0].dtype == torch.bfloat16)
    return actual


@pytest.mark.pinned
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, (3, 5), (1, 7), (5, 1)])
def test_pinned_configurations(kernel_size):
    logits = make_logits(images=1, height=6)
    check(logits, make_labels(logits), lal(kernel_size=kernel_size))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, (3, 5)])
def test_merging_again(kernel_size):
    logits = make_logits(images=1, height=6)
    check(logits, make_labels(logits), lal(kernel_size=kernel_size), saves_exp=False)


@pytest.mark.parametrize("kernel_size", [3, (1, 5)])
@pytest.mark.parametrize("saves_exp", [True, False])
def test_interior_tiles(small_tiles, kernel_size, saves_exp):
    logits = make_logits(images=1, classes=2, height=6, width=10)
    check(logits, make_labels(logits), lal(kernel_size=kernel_size, eps=0.1), saves_exp=saves_exp)


@pytest.mark.parametrize(("classes", "dtype"), [(4, torch.float32), (5, torch.float32), (3, torch.float16)])
def test_classes_in_groups(classes, dtype):
    """With void tiles among them."""
    logits = make_logits(images=1, classes=classes, height=6, width=10, dtype=dtype)
    labels = make_labels(logits)
    labels[:, 2:4, :8] = VOID
    with configs.forcing(strips(2, 4, 1, groups=4)):
        check(logits, labels, lal())


@pytest.mark.parametrize("options", [{}, {"normalize": False}], ids=str)
def test_all_strips_give_the_same_bits(options):
    logits = make_logits(images=1, height=9, offset=1e2)
    labels = make_labels(logits)
    results = []
    for rows in (1, 2, 8):
        steps.clear()
        with configs.forcing(strips(rows, 8, 2)):
            results.append(evaluate(logits, labels, lal(**options)))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])


def test_keeping_and_merging_again_agree():
    logits = make_logits()
    labels = make_labels(logits)
    kept, merged_again = (evaluate(logits, labels, lal(), saves_exp=saves_exp) for saves_exp in (True, False))
    assert torch.equal(kept[0], merged_again[0])
    torch.testing.assert_close(kept[1], merged_again[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False},
        {"average": "weight", "window": [[0, 1, 2], [3, 1.5, 0.25], [0.1, 0, 0]]},
        {"label_smoothing": 0.1, "stride": 2},
        {"cost": "focal"},
    ],
)
def test_windows_walked_by_taps(monkeypatch, options):
    assert configs.is_large(lal(kernel_size=11))
    monkeypatch.setattr(configs, "WEIGHTS_IN_REGISTERS", 0)
    logits = make_logits(images=1, height=4, width=5)
    with configs.forcing(strips(1, 8, 4)):
        check(logits, make_labels(logits), lal(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": 3, "kernel_size": 1, "normalize": False},
        {"average": "weight"},
        {"window": "uniform"},
        {"window": [[0.5, 0, 2], [1, 1.5, 0.25], [3, 1, 0]]},
        {"window": [[0, 0, 0], [0, 1, 0], [0, 0, 0]], "average": "weight"},
        {"normalize": False},
        {"kernel_size": 1, "normalize": False},
        {"kernel_size": 1, "normalize": False, "window": [[1.5]]},
        {"eps": 0.5},
        {"label_smoothing": 0.2},
        {"kernel_size": 1, "normalize": False, "label_smoothing": 0.2},
        {"cost": "focal", "focal_gamma": 0.0},
        {"cost": "focal", "focal_gamma": 0.5, "focal_alpha": 1.0},
        {"cost": "focal", "focal_gamma": 2.0, "normalize": False},
    ],
    ids=str,
)
def test_options(options):
    logits = make_logits()
    check(logits, make_labels(logits), lal(**options))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_weights(smoothing, dtype):
    logits = make_logits()
    weight = torch.tensor([0.5, 0.0, 9.0, 2.0, 9.0], dtype=dtype, device=DEVICE)[::2]
    check(logits, make_labels(logits), lal(label_smoothing=smoothing), weight.contiguous())


@pytest.mark.parametrize("options", [{}, {"kernel_size": 1}, {"label_smoothing": 0.1}, {"cost": "focal"}], ids=str)
def test_large_logits(options):
    logits = make_logits(scale=1e3)
    check(logits, make_labels(logits), lal(normalize=False, **options))


def test_score_beyond_the_range_of_exp():
    """A window so heavy that exp(f_c - f_y) would overflow although the score is bounded."""
    logits = make_logits()
    options = lal(window=[[1, 1, 1], [1, 300, 1], [1, 1, 1]])
    assert not options.exp_is_bounded(logits.shape[1])
    check(logits, make_labels(logits), options)


@pytest.mark.parametrize("cost", ["cross_entropy", "focal"])
def test_certain_pixels(cost):
    """Where 1 - q vanishes the focal loss keeps a finite slope for every gamma."""
    logits = make_logits(scale=1.0)
    labels = make_labels(logits)
    logits.scatter_(1, labels.clamp(min=0).long()[:, None], 200.0)
    for gamma in (0.0, 0.25, 3.0):
        losses, grad = evaluate(logits, labels, lal(kernel_size=1, normalize=False, cost=cost, focal_gamma=gamma))
        assert losses.abs().max() == 0
        assert grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"kernel_size": 1, "normalize": False}, {"normalize": False, "cost": "focal"}], ids=str
)
def test_half_precision(dtype, options):
    logits = make_logits(dtype=dtype)
    check(logits, make_labels(logits), lal(**options))


def test_common_offset():
    logits = make_logits(offset=1e3)
    check(logits, make_labels(logits), lal())


def test_logarithms_are_right_to_two_ulps():
    a = torch.logspace(-30, 30, 1024, device=DEVICE)
    found = torch.empty_like(a)
    log1p_kernel[(1,)](found, a, COUNT=1024)
    expected = a.double().log1p()
    exponent = expected.frexp().exponent
    assert ((found - expected).abs() <= 2 * torch.ldexp(torch.full_like(expected, 2.0**-24), exponent)).all()


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (2, 3, 1, 9), (1, 3, 9, 1), (1, 2, 4, 5), (1, 150, 1, 1)], ids=lambda shape: f"{shape}"
)
def test_shapes(shape):
    logits = make_logits(*shape)
    check(logits, make_labels(logits), lal(eps=0.1))  # with two classes and a small eps the gradient is rounding noise


@pytest.mark.parametrize("normalize", [True, False])
def test_all_void(normalize):
    logits = make_logits()
    labels = torch.full((2, 5, 7), VOID, dtype=torch.int32, device=DEVICE)
    losses, grad = evaluate(logits, labels, lal(normalize=normalize))
    assert torch.equal(losses, torch.zeros_like(losses))
    assert torch.equal(grad, torch.zeros_like(grad))


def test_checkerboard():
    logits = make_logits()
    rows, columns = torch.arange(5, device=DEVICE), torch.arange(7, device=DEVICE)
    labels = ((rows[:, None] + columns) % 2).to(torch.int32).expand(2, 5, 7)
    check(logits, labels, lal())


def test_labels_out_of_range():
    logits = make_logits()
    labels = make_labels(logits)
    labels[0, 2, 2:4] = INVALID
    labels[1, 0, 0] = INVALID
    losses, _ = check(logits, labels, lal())
    assert torch.equal(losses.isnan(), labels == INVALID)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype):
    logits = make_logits(dtype=dtype)
    if layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        logits = make_logits(height=12, width=9, dtype=dtype)[:, :, 1:11:2, 2:]
    elif layout == "expanded":
        logits = logits[:1].expand(2, -1, -1, -1)
    else:
        logits = make_logits(height=7, width=5, dtype=dtype).transpose(2, 3)
    before = logits.clone()
    labels = make_labels(logits).transpose(1, 2).contiguous().transpose(1, 2)
    _, grad = check(logits, labels, lal(), gradient=torch.tensor(0.5, device=DEVICE).expand(labels.shape))
    assert torch.equal(logits, before)
    assert grad.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_in_groups(monkeypatch, dtype):
    logits = make_logits(images=3, height=3, width=4, dtype=dtype)
    labels = make_labels(logits)
    whole = check(logits, labels, lal(), saves_exp=False)
    for images in (0, 2):
        monkeypatch.setattr(configs, "SCRATCH_BYTES", images * 4 * logits[0].numel())
        steps.clear()
        grouped = evaluate(logits, labels, lal(), saves_exp=False)
        assert torch.equal(grouped[1], whole[1])


def test_results_are_reproducible():
    logits = make_logits(images=1)
    labels = make_labels(logits)
    first, second = evaluate(logits, labels, lal()), evaluate(logits, labels, lal())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_non_finite_logits_stay_in_their_window(small_tiles):
    """The loss feels a pixel one window away, the gradient (through the losses of its window) two."""
    clean = make_logits(2, 2, 6, 10)
    labels = make_labels(clean)
    logits = clean.clone()
    near = torch.zeros(2, 1, 6, 10, dtype=torch.bool, device=DEVICE)
    # inside, and where running across the end of a row or of the image would show
    for row, column, bad in ((2, 4, math.nan), (2, 9, math.inf), (5, 9, math.nan)):
        logits[0, 1, row, column] = bad
        near[0, 0, row, column] = True
    losses, grad = evaluate(logits, labels, lal())
    clean_losses, clean_grad = evaluate(clean, labels, lal())

    def within(reach):
        return torch.nn.functional.max_pool2d(near.float(), 2 * reach + 1, 1, reach)[:, 0].bool()

    assert not losses[near[:, 0] & (labels >= 0)].isfinite().any()
    # not the same bits: a lane's pivot leaves out what is not finite
    torch.testing.assert_close(losses[~within(1)], clean_losses[~within(1)], rtol=1e-6, atol=1e-7)
    far = (~within(2))[:, None].expand_as(grad)
    assert not far[:1].all()
    torch.testing.assert_close(grad[far], clean_grad[far], rtol=1e-5, atol=1e-6)


def test_void_pixels_have_no_gradient_even_where_logits_are_nan():
    logits = make_logits()
    labels = make_labels(logits)
    labels[0, 2, 3] = VOID
    logits[0, :, 2, 3] = math.nan
    _, grad = evaluate(logits, labels, lal())
    assert torch.equal(grad[0, :, 2, 3], torch.zeros_like(grad[0, :, 2, 3]))
