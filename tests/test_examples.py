"""The examples run; what they need beyond the package is the extra `examples`."""

import re
import sys

import pytest
import torch

pytest.importorskip("PIL")


@pytest.fixture
def segformer(load_example):
    pytest.importorskip("transformers")
    return load_example("segformer")


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


def test_lightning_module_in_bfloat16(load_example, monkeypatch, capsys):
    pytest.importorskip("lightning")
    example = load_example("lightning_module")
    dtypes = watch_logits(monkeypatch, example)
    monkeypatch.setattr(sys, "argv", ["lightning_module.py"])
    example.main()
    assert "1 processes, last loss 0." in capsys.readouterr().out
    assert dtypes == {torch.bfloat16}


def test_accelerate_gives_the_loss_float32(load_example, monkeypatch, capsys):
    state = pytest.importorskip("accelerate.state")
    example = load_example("accelerate_loop")
    dtypes = watch_logits(monkeypatch, example)
    state.AcceleratorState._reset_state(reset_partial_state=True)
    example.main()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert "1 processes, loss 1." in capsys.readouterr().out
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("loss", ["cross_entropy", "lal"])
def test_huggingface_trainer_learns(load_example, loss, monkeypatch, tmp_path, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(sys, "argv", ["huggingface_trainer.py", f"--loss={loss}"])
    monkeypatch.chdir(tmp_path)  # where the Trainer makes its folder
    load_example("huggingface_trainer").main()
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def watch_logits(monkeypatch, example):
    """The dtypes of the logits that the example's loss is given."""
    dtypes = set()

    class Watched(example.CrossEntropyLoss):
        def forward(self, logits, target):
            dtypes.add(logits.dtype)
            return super().forward(logits, target)

    monkeypatch.setattr(example, "CrossEntropyLoss", Watched)
    return dtypes
