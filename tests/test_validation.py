"""Bad input: the exception names the argument, the value found and what was expected, before anything is computed."""

import warnings

import numpy as np
import pytest
import torch
from problems import make_problem

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss, steps, validation
from lal_triton.functional import center_loss, cross_entropy, locally_adaptive_loss, merge

LOGITS = torch.randn(2, 3, 4, 5)
TARGET = torch.zeros(2, 4, 5, dtype=torch.long)
ONE_HOT = torch.nn.functional.one_hot(TARGET, 3)
NAN = float("nan")
INF = float("inf")

BAD_OPTIONS = [
    ({"kernel_size": 4}, ValueError, r"kernel_size is 4, expected odd"),
    ({"kernel_size": 0}, ValueError, r"kernel_size is 0, expected odd and >= 1"),
    ({"kernel_size": (3, -1)}, ValueError, r"kernel_size is \(3, -1\), expected odd"),
    ({"kernel_size": 3.0}, TypeError, r"kernel_size is 3\.0, expected an odd integer"),
    ({"kernel_size": (3, 3, 3)}, TypeError, r"kernel_size is \(3, 3, 3\), expected"),
    ({"window": "gauss"}, ValueError, r"window is 'gauss', expected one of 'chessboard', 'uniform'"),
    ({"window": torch.ones(3, 3)}, ValueError, r"window is .*, expected the shape \[5, 5\]"),
    ({"window": -torch.ones(5, 5)}, ValueError, r"window holds .*, expected finite weights >= 0"),
    ({"window": torch.full((5, 5), INF)}, ValueError, r"window holds .*, expected finite weights >= 0"),
    ({"window": torch.zeros(5, 5)}, ValueError, r"window has the centre 0\.0, expected a positive weight"),
    ({"stride": 0}, ValueError, r"stride is 0, expected an integer >= 1"),
    ({"stride": 1.5}, TypeError, r"stride is 1\.5, expected an integer"),
    ({"average": "median"}, ValueError, r"average is 'median', expected one of 'count', 'weight'"),
    ({"eps": 0}, ValueError, r"eps is 0, expected a finite number in \[1\.17.*e-38, inf\)"),
    ({"eps": -1e-5}, ValueError, r"eps is -1e-05, expected"),
    ({"cost": "hinge"}, ValueError, r"cost is 'hinge', expected one of 'cross_entropy', 'focal'"),
    ({"focal_alpha": -1.0}, ValueError, r"focal_alpha is -1\.0, expected"),
    ({"focal_alpha": [0.5, -1.0, 0.5]}, ValueError, r"focal_alpha is -1\.0, expected"),
    (
        {"focal_alpha": torch.tensor(0.5)},
        TypeError,
        r"focal_alpha is tensor\(0\.5.*\), expected .*; pass its \.item\(\)",
    ),
    ({"focal_alpha": "0.5"}, TypeError, r"focal_alpha is '0\.5', expected a number or \[C\] of them"),
    ({"focal_alpha": [0.5, 0.5], "cost": "focal"}, ValueError, r"focal_alpha has 2 values, expected .* \[C = 3\]"),
    ({"focal_gamma": -1.0}, ValueError, r"focal_gamma is -1\.0, expected"),
    ({"label_smoothing": 1.0}, ValueError, r"label_smoothing is 1\.0, expected a finite number in \[0, 1\)"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing is -0\.1, expected"),
    ({"label_smoothing": 0.1, "cost": "focal"}, ValueError, r"label_smoothing is 0\.1, expected 0 with cost=\"focal\""),
    ({"reduction": "max"}, ValueError, r"reduction is 'max', expected one of 'minkowski', 'mean', 'sum', 'none'"),
    ({"reduction": "max_pooling", "pooling_ratio": 0.0}, ValueError, r"pooling_ratio is 0.0"),
    ({"pooling_ratio": 1.5}, ValueError, r"pooling_ratio is 1.5, expected a number in \(0, 1\]"),
    ({"pooling_norm": 1.0}, ValueError, r"pooling_norm is 1.0"),
    ({"p": 0.9}, ValueError, r"p is 0\.9, expected a finite number in \[1, inf\)"),
    ({"p": INF}, ValueError, r"p is inf, expected"),
    ({"p": NAN}, ValueError, r"p is nan, expected"),
    ({"p": "3"}, TypeError, r"p is '3', expected a number"),
    ({"pool": "row"}, ValueError, r"pool is 'row', expected one of 'image', 'batch'"),
    ({"ignore_index": 1.0}, TypeError, r"ignore_index is 1\.0, expected an integer"),
    ({"upsample": "nearest"}, ValueError, r"upsample is 'nearest', expected one of 'bilinear'"),
    ({"process_group": object()}, TypeError, r"process_group is a object"),
    ({"backend": "jax"}, ValueError, r"backend is 'jax', expected one of 'auto', 'cpu', 'triton', 'reference'"),
    ({"p": torch.tensor(3.0)}, TypeError, r"p is tensor\(3\.\), expected a number; pass its \.item\(\)"),
    ({"p": np.array(3.0)}, TypeError, r"p is array\(3\.\), expected a number; pass its \.item\(\)"),
    ({"p": True}, TypeError, r"p is True, expected a number"),
    ({"eps": "1e-5"}, TypeError, r"eps is '1e-5', expected a number"),
    ({"ignore_index": torch.tensor(255)}, TypeError, r"ignore_index is tensor\(255\), expected an integer; pass its"),
    ({"ignore_index": np.float32(255)}, TypeError, r"ignore_index is .*, expected an integer"),
    ({"stride": torch.tensor(1)}, TypeError, r"stride is tensor\(1\), expected an integer; pass its \.item\(\)"),
    ({"stride": True}, TypeError, r"stride is True, expected an integer"),
    ({"kernel_size": torch.tensor(5)}, TypeError, r"kernel_size is tensor\(5\), expected an odd integer"),
    ({"kernel_size": True}, TypeError, r"kernel_size is True, expected an integer"),
    ({"normalize": "false"}, TypeError, r"normalize is 'false', expected True or False"),
    ({"normalize": 1}, TypeError, r"normalize is 1, expected True or False"),
    ({"normalize": torch.tensor(True)}, TypeError, r"normalize is tensor\(True\), expected .*; pass its \.item\(\)"),
    ({"align_corners": "no"}, TypeError, r"align_corners is 'no', expected True or False"),
    ({"align_corners": None}, TypeError, r"align_corners is None, expected True or False"),
    ({"window": 5}, TypeError, r"window is 5, expected 'chessboard', 'uniform' or \[Kh, Kw\] weights"),
    ({"window": [1.0] * 5}, TypeError, r"window is \[1\.0, .*, expected 'chessboard', 'uniform' or \[Kh, Kw\]"),
    ({"window": [["1"] * 5] * 5}, TypeError, r"window holds .*, expected numbers"),
    ({"weight": torch.ones(4)}, ValueError, r"weight has the shape \[4\], expected \[C = 3\]"),
    ({"weight": torch.tensor([1.0, -2.0, 1.0])}, ValueError, r"weight holds -2\.0, expected finite values >= 0"),
    ({"weight": torch.tensor([1, 1, 1])}, TypeError, r"weight has the dtype torch\.int64, expected a floating"),
    ({"weight": [1.0, 1.0, 1.0]}, TypeError, r"weight is a list, expected a torch\.Tensor"),
    ({"weight": torch.ones(3, device="meta")}, ValueError, r"weight is on meta, expected the device of logits, cpu"),
    ({"pixel_weight": torch.ones(2, 4)}, ValueError, r"pixel_weight has the shape \[2, 4\], expected that of target"),
    ({"pixel_weight": torch.full((2, 4, 5), NAN)}, ValueError, r"pixel_weight holds nan, expected finite"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_option(options, error, message):
    with pytest.raises(error, match=message):
        locally_adaptive_loss(LOGITS, TARGET, **options)


BAD_TENSORS = [
    (LOGITS[0], TARGET, ValueError, r"logits has the shape \[3, 4, 5\], expected \[N, C, H, W\]"),
    (LOGITS.long(), TARGET, TypeError, r"logits has the dtype torch\.int64, expected one of float32"),
    (LOGITS[:, :1], TARGET, ValueError, r"logits has C = 1 classes, expected at least 2"),
    (LOGITS[:, :, :0], TARGET[:, :0], ValueError, r"logits has the shape \[2, 3, 0, 5\], expected no empty"),
    (LOGITS.numpy(), TARGET, TypeError, r"logits is a ndarray, expected a torch\.Tensor"),
    (LOGITS, TARGET[0], ValueError, r"target has the shape \[4, 5\], expected \[N, H, W\]"),
    (LOGITS, TARGET[None], ValueError, r"target has the shape \[1, 2, 4, 5\], expected \[N, H, W\]$"),
    (
        LOGITS,
        ONE_HOT,
        ValueError,
        r"target has the shape \[2, 4, 5, 3\], .* not probabilities; pass target\.argmax\(-1\)",
    ),
    (
        LOGITS,
        LOGITS,
        ValueError,
        r"target has the shape \[2, 3, 4, 5\], .* not probabilities; pass target\.argmax\(1\)",
    ),
    (LOGITS, TARGET[:1], ValueError, r"target has N = 1, expected the N = 2 of logits"),
    (LOGITS, TARGET[:, :0], ValueError, r"target has the shape \[2, 0, 5\], expected no empty"),
    (LOGITS, TARGET.float(), TypeError, r"target has the dtype torch\.float32, .*; pass target\.long\(\)$"),
    (LOGITS, TARGET.bool(), TypeError, r"target has the dtype torch\.bool, .*; pass target\.long\(\)$"),
    (LOGITS, TARGET.to(torch.uint16), TypeError, r"target has the dtype torch\.uint16"),
    (LOGITS, TARGET.to("meta"), ValueError, r"target is on meta, expected the device of logits, cpu"),
    (LOGITS, TARGET + 3, ValueError, r"target holds the label 3, expected \[0, 3\) or ignore_index = 255"),
    (LOGITS, TARGET - 1, ValueError, r"target holds the label -1, expected"),
]


def test_one_hot_labels_of_as_many_columns_as_classes():
    with pytest.raises(ValueError, match=r"pass target\.argmax\(-1\)"):
        cross_entropy(torch.randn(2, 3, 3, 8), torch.zeros(2, 3, 8, 3))
    with pytest.raises(ValueError, match=r"pass target\.argmax\(1\)"):
        cross_entropy(torch.randn(2, 3, 8, 3), torch.zeros(2, 3, 8, 3))


@pytest.mark.parametrize(("logits", "target", "error", "message"), BAD_TENSORS)
@pytest.mark.parametrize("loss", [locally_adaptive_loss, cross_entropy, merge])
def test_bad_tensor(loss, logits, target, error, message):
    with pytest.raises(error, match=message):
        loss(logits, target)


def test_unequal_sizes():
    with pytest.raises(ValueError, match=r"target has the size \[8, 10\], expected .* upsample=None"):
        locally_adaptive_loss(LOGITS, torch.zeros(2, 8, 10, dtype=torch.long), upsample=None)


def test_labels_are_compared_after_widening():
    """In torch uint8(156) == -100 and int8(-1) == 255 are True; as labels they are neither."""
    with pytest.raises(ValueError, match="label 156"):
        locally_adaptive_loss(LOGITS, torch.full_like(TARGET, 156, dtype=torch.uint8), ignore_index=-100)
    with pytest.raises(ValueError, match="label -1"):
        locally_adaptive_loss(LOGITS, torch.full_like(TARGET, -1, dtype=torch.int8))


def test_triton_never_falls_back(monkeypatch):
    with pytest.raises(TypeError, match="float64"):
        locally_adaptive_loss(LOGITS.double(), TARGET, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="logits are on the CPU"):
        locally_adaptive_loss(LOGITS, TARGET, backend="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed"):
        locally_adaptive_loss(LOGITS, TARGET, backend="triton")


def test_two_classes_warn():
    logits, target = LOGITS[:, :2], TARGET
    with pytest.warns(UserWarning, match="normalize=False") as caught:
        locally_adaptive_loss(logits, target)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        locally_adaptive_loss(logits, target, normalize=False)
        locally_adaptive_loss(LOGITS, target)


@pytest.mark.parametrize("by_module", [False, True])
@pytest.mark.parametrize(
    ("size", "labels"), [((16, 24), (96, 64)), ((24, 16), (8, 12)), ((129, 65), (512, 1024)), ((192, 108), (108, 192))]
)
def test_sizes_that_are_transposed_warn(size, labels, by_module):
    loss = CrossEntropyLoss() if by_module else cross_entropy
    logits, target = torch.zeros(1, 3, *size), torch.zeros(1, *labels, dtype=torch.long)
    named = f"logits of {size[0]} x {size[1]} are interpolated to a target of {labels[0]} x {labels[1]}, by"
    steps.clear()
    with pytest.warns(UserWarning, match=named) as caught:
        loss(logits, target)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("rounded", ["down", "up", "with ends"])
def test_sizes_of_one_stride_do_not_warn(stride, rounded):
    """Of any network: strides that divide the size or not, and its ends as align_corners has them."""
    for height, width in ((33, 1024), (65, 97), (96, 64), (321, 500), (513, 512)):
        h, w = (
            {"down": side // stride, "up": -(-side // stride), "with ends": (side - 1) // stride + 1}[rounded]
            for side in (height, width)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            validation.warn_of_sizes((h, w), (height, width))
            validation.warn_of_sizes((height, width), (h, w))
            validation.warn_of_sizes((128, 128), (height, width))  # an input that was resized to a square


def test_numbers_of_numpy_are_numbers():
    plain = {"kernel_size": 3, "stride": 2, "p": 2.0, "eps": 0.5, "ignore_index": 1, "normalize": True}
    numpy = {
        **{"kernel_size": np.int64(3), "stride": np.uint8(2), "p": np.float32(2), "eps": np.float64(0.5)},
        **{"ignore_index": np.int64(1), "normalize": np.bool_(True)},
    }
    expected = locally_adaptive_loss(LOGITS, TARGET, **plain)
    assert torch.equal(locally_adaptive_loss(LOGITS, TARGET, **numpy), expected)
    assert torch.equal(LocallyAdaptiveLoss(**numpy)(LOGITS, TARGET), expected)
    pair = locally_adaptive_loss(LOGITS, TARGET, **{**numpy, "kernel_size": (np.int32(3), np.int16(3))})
    assert torch.equal(pair, expected)
    window = np.array([[0.5, 1, 0.5], [1, 2, 1], [0.5, 1, 0.5]])
    weighed = locally_adaptive_loss(LOGITS, TARGET, kernel_size=3, window=window)
    assert torch.equal(weighed, locally_adaptive_loss(LOGITS, TARGET, kernel_size=3, window=window.tolist()))
    shares = {"reduction": "max_pooling", "pooling_ratio": np.float16(0.5), "pooling_norm": np.float32(2)}
    expected = locally_adaptive_loss(LOGITS, TARGET, reduction="max_pooling", pooling_ratio=0.5, pooling_norm=2.0)
    assert torch.equal(locally_adaptive_loss(LOGITS, TARGET, **shares), expected)


def test_more_classes_than_the_void_label():
    """With C > 255 the default ignore_index is a class, and it is ignored."""
    logits = torch.randn(1, 300, 2, 2)
    target = torch.tensor([[[255, 299], [0, 1]]])
    with pytest.warns(UserWarning, match="ignore_index 255 is a class, too") as caught:
        losses = locally_adaptive_loss(logits, target, reduction="none")
    assert caught[0].filename == __file__
    assert losses[0, 0, 0] == 0
    assert locally_adaptive_loss(logits, target, reduction="none", ignore_index=-1)[0, 0, 0] > 0


def test_a_repeated_call_of_triton_is_checked_as_the_first():
    pytest.importorskip("triton")
    logits, target = make_problem((1, 3, 4, 4))
    target[target == 255] = 0
    locally_adaptive_loss(logits, target, ignore_index=1, p=1, backend="triton")
    for options in ({"ignore_index": True}, {"ignore_index": 1.0}, {"ignore_index": 1, "p": True}):
        with pytest.raises(TypeError, match="expected"):
            locally_adaptive_loss(logits, target, **{"p": 1, "backend": "triton", **options})


@pytest.mark.parametrize("loss", [locally_adaptive_loss, cross_entropy])
@pytest.mark.parametrize("size", [(4, 5), (8, 10), (2, 3)])
def test_a_channel_of_labels_or_weights_is_dropped(loss, size):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, *size), generator=generator)
    pixel_weight = torch.rand(2, *size, generator=generator)
    for reduction in ("mean", "none"):
        expected = loss(LOGITS, target, pixel_weight=pixel_weight, reduction=reduction)
        for labels, weights in ((target[:, None], pixel_weight), (target, pixel_weight[:, None])):
            assert torch.equal(loss(LOGITS, labels, pixel_weight=weights, reduction=reduction), expected)
    assert torch.equal(merge(LOGITS, TARGET[:, None]), merge(LOGITS, TARGET))
    centers = torch.ones(3, 3)
    assert torch.equal(center_loss(LOGITS, TARGET[:, None], centers), center_loss(LOGITS, TARGET, centers))
