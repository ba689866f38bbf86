"""The modules: defaults, state, copies, repr, options read once."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from problems import DEVICE, make_problem

from lal_triton import CenterLoss, CrossEntropyLoss, FocalLoss, LocallyAdaptiveLoss, functional

FUNCTIONS = {
    LocallyAdaptiveLoss: functional.locally_adaptive_loss,
    CrossEntropyLoss: functional.cross_entropy,
    FocalLoss: functional.focal_loss,
}


@pytest.mark.parametrize("module", FUNCTIONS)
def test_arguments_and_defaults_are_those_of_the_function(module):
    function = dict(inspect.signature(FUNCTIONS[module]).parameters)
    constructor = dict(inspect.signature(module).parameters)
    expected = {name: p.default for name, p in function.items() if name not in ("logits", "target", "pixel_weight")}
    assert {name: p.default for name, p in constructor.items()} == expected


def test_default_is_the_function():
    logits, target = make_problem((2, 5, 6, 7))
    assert torch.equal(LocallyAdaptiveLoss()(logits, target), functional.locally_adaptive_loss(logits, target))


def test_every_option_reaches_the_function():
    logits, target = make_problem((2, 5, 6, 7))
    options = {
        "kernel_size": (3, 1),
        "window": [[1.0], [2.0], [0.0]],
        "stride": 2,
        "average": "weight",
        "normalize": False,
        "label_smoothing": 0.1,
        "weight": torch.rand(5, device=DEVICE),
        "p": 2.0,
        "pool": "batch",
        "ignore_index": -100,
    }
    target = torch.where(target == 255, -100, target)
    module = LocallyAdaptiveLoss(**options)
    assert torch.equal(module(logits, target), functional.locally_adaptive_loss(logits, target, **options))
    focal = {"cost": "focal", "focal_alpha": 0.5, "focal_gamma": 1.0, "eps": 0.1, "ignore_index": -100}
    expected = functional.locally_adaptive_loss(logits, target, reduction="mean", **focal)
    assert torch.equal(LocallyAdaptiveLoss(reduction="mean", **focal)(logits, target), expected)


@pytest.mark.parametrize("module", FUNCTIONS)
def test_weight_is_a_buffer(module):
    weight = torch.rand(5)
    loss = module(weight=weight)
    assert torch.equal(loss.state_dict()["weight"], weight)
    assert "weight" not in module().state_dict()
    assert not list(loss.parameters())


@pytest.mark.parametrize("module", FUNCTIONS)
def test_pickle_and_deepcopy(module):
    logits, target = make_problem((2, 5, 6, 7))
    loss = module(weight=torch.rand(5)).to(DEVICE)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(logits, target), loss(logits, target))
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)


def test_repr_names_the_options():
    assert "kernel_size=3" in repr(LocallyAdaptiveLoss(3))
    assert "p=2.0" in repr(LocallyAdaptiveLoss(p=2.0))
    assert "weight=[5]" in repr(CrossEntropyLoss(torch.ones(5)))
    assert "gamma=1.5" in repr(FocalLoss(gamma=1.5))


def test_a_window_tensor_is_read_once():
    window = torch.rand(3, 3)
    loss = LocallyAdaptiveLoss(3, window=window)
    logits, target = make_problem((1, 3, 4, 5))
    before = loss(logits, target)
    window.zero_()
    assert torch.equal(loss(logits, target), before)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (LocallyAdaptiveLoss, {"kernel_size": 4}, "kernel_size"),
        (LocallyAdaptiveLoss, {"p": 0.5}, "p is 0.5"),
        (LocallyAdaptiveLoss, {"reduction": "median"}, "reduction"),
        (LocallyAdaptiveLoss, {"pool": "row"}, "pool"),
        (LocallyAdaptiveLoss, {"backend": "jax"}, "backend"),
        (LocallyAdaptiveLoss, {"upsample": "nearest"}, "upsample"),
        (CrossEntropyLoss, {"weight": torch.tensor([1.0, -1.0])}, "weight holds -1.0"),
        (CrossEntropyLoss, {"label_smoothing": 1.0}, "label_smoothing"),
        (FocalLoss, {"gamma": -1.0}, "gamma"),
    ],
)
def test_bad_options_fail_at_construction(module, options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


@pytest.mark.parametrize("module", FUNCTIONS)
def test_options_of_one_call(module):
    logits, target = make_problem((2, 5, 6, 7))
    loss = module(weight=torch.rand(5)).to(DEVICE)
    before = loss(logits, target)
    for options in (
        {"reduction": "none"},
        {"reduction": "sum"},
        {"ignore_index": 1},
        {"ignore_index": 0, "reduction": "mean"},
    ):
        labels = torch.where(target == 255, options.get("ignore_index", 255), target)
        expected = FUNCTIONS[module](logits, labels, weight=loss.weight, **options)
        assert torch.equal(loss(logits, labels, **options), expected)
    assert torch.equal(loss(logits, target), before)
    with pytest.raises(ValueError, match="reduction is 'median'"):
        loss(logits, target, reduction="median")


def test_the_exponent_is_kept_for_a_call_that_needs_it():
    logits, target = make_problem((2, 5, 6, 7))
    loss = LocallyAdaptiveLoss(p=2.0, reduction="mean")
    assert torch.equal(loss(logits, target, reduction="minkowski"), LocallyAdaptiveLoss(p=2.0)(logits, target))


def test_void_label_of_one_call_of_the_center_loss():
    logits, target = make_problem((2, 5, 6, 7))
    loss = CenterLoss(5, 5).to(DEVICE).eval()
    expected = CenterLoss(5, 5, ignore_index=1).to(DEVICE).eval()(logits, torch.where(target == 255, 1, target))
    assert torch.equal(loss(logits, torch.where(target == 255, 1, target), ignore_index=1), expected)


@pytest.mark.parametrize("make", [list, torch.tensor, np.array], ids=["list", "tensor", "array"])
def test_options_are_those_of_the_constructor(make):
    """Whoever changes a list or an array afterwards changes no loss, not that of a call with options either."""
    logits, target = make_problem((2, 3, 6, 7))
    alpha, window = make([0.1, 0.2, 0.3]), make([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    focal, lal = FocalLoss(alpha), LocallyAdaptiveLoss(3, window=window, reduction="mean")
    expected = focal(logits, target), lal(logits, target)
    alpha[0] = window[0][0] = 9.0
    for module, value in zip((focal, lal), expected, strict=True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for call in (module, copy.copy(module), compiled):
            assert torch.equal(call(logits, target, reduction="mean"), value)
    assert "9.0" not in repr(focal) + repr(lal)


def test_options_that_require_a_gradient_are_refused():
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ValueError, match="window requires a gradient"):
        LocallyAdaptiveLoss(3, window=parameter)
    with pytest.raises(ValueError, match="focal_alpha requires a gradient"):
        FocalLoss(parameter[0])
    with pytest.raises(TypeError, match=r"focal_alpha is tensor\(1\.\), expected .*; pass its \.item"):
        FocalLoss(torch.tensor(1.0))
