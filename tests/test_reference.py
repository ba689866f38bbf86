"""The reference against a literal transcription of the equations, and its gradient against finite differences."""

import literal
import pytest
import torch
from problems import OPTIONS, make_case, value_and_gradient

from lal_triton import functional


def as_lists(options):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in options.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_value_is_that_of_the_equations(name):
    logits, target, options = make_case(OPTIONS[name])
    expected = literal.locally_adaptive_loss(logits.tolist(), target.tolist(), **as_lists(options))
    actual, _ = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    torch.testing.assert_close(actual.cpu(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_matters(name):
    """Or no other test would notice a backend that ignores it."""
    logits, target, options = make_case(OPTIONS[name])
    loss, _ = value_and_gradient(logits, target, torch.float64, backend="reference", **options)
    if options.get("reduction") == "none":
        rest = {key: value for key, value in options.items() if key != "reduction"}
        others = [{"reduction": "none"}] if rest else [{"reduction": "sum"}]
    else:
        others = [{key: value for key, value in options.items() if key != left_out} for left_out in options]
    for other in others:
        if "window" in options and "kernel_size" not in other and "window" in other:
            continue  # a 3 x 3 window needs its kernel_size
        if options.get("ignore_index") and not other:
            continue  # the labels would be out of range
        default, _ = value_and_gradient(logits, target, torch.float64, backend="reference", **other)
        assert loss.shape != default.shape or (loss - default).abs().max() > 1e-4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_derivative(backend, name):
    logits, target, options = make_case(OPTIONS[name], (2, 3, 4, 5))
    options = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: functional.locally_adaptive_loss(x, target, backend=backend, **options), leaf
    )


def test_merge_is_that_of_the_equations():
    logits, target, _ = make_case({}, (2, 3, 4, 5))
    merged = functional.merge(logits.double(), target, kernel_size=(3, 5), average="weight")
    arguments = ((3, 5), "chessboard", "weight", True, 1e-5, 255)
    for n in range(2):
        for row in range(4):
            for column in range(5):
                pixel = merged[n, :, row, column].cpu()
                if target[n, row, column] == 255:
                    assert torch.equal(pixel, torch.zeros(3, dtype=torch.float64))
                    continue
                expected = literal.merged_logits(logits.tolist(), target.tolist(), n, row, column, *arguments)
                torch.testing.assert_close(pixel, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_merge_is_differentiable_and_float32_for_half():
    logits, target, _ = make_case({}, (2, 3, 4, 5))
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: functional.merge(x, target, kernel_size=3), leaf)
    assert functional.merge(logits.bfloat16(), target).dtype == torch.float32


def test_floor_of_perfect_logits():
    """The figures of docs/semantics.md: what an interior pixel costs when its logits are as sure as a float can be."""
    target = torch.zeros(1, 15, 15, dtype=torch.long)
    logits = torch.zeros(1, 21, 15, 15, dtype=torch.float64)
    logits[:, 0] = 1e6
    for kernel_size, floor in ((3, 0.10), (5, 0.52), (7, 1.10)):
        losses = functional.locally_adaptive_loss(logits, target, kernel_size=kernel_size, reduction="none")
        assert round(losses[0, 7, 7].item(), 2) == floor
    losses = functional.locally_adaptive_loss(logits, target, average="weight", reduction="none")
    assert round(losses[0, 7, 7].item(), 2) == 0.17
