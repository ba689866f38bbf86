"""The examples run; what they need beyond the package is the extra `examples`."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("transformers")


@pytest.fixture
def segformer(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    yield pytest.importorskip("segformer")
    sys.modules.pop("segformer", None)


@pytest.mark.parametrize("loss", ["lal", "cross_entropy"])
def test_segformer_learns_from_its_small_logits(segformer, loss):
    torch.manual_seed(0)
    model = segformer.make_model()
    losses = segformer.train(model, loss, steps=4, size=64)
    assert losses[-1] < losses[0]
    first_layer = next(parameter for parameter in model.parameters())
    assert first_layer.grad.abs().sum() > 0


def test_segformer_reports_its_accuracy(segformer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segformer.py", "--steps=1", "--size=64"])
    segformer.main()
    printed = capsys.readouterr().out
    assert "step 1: loss" in printed
    assert "pixel accuracy" in printed
