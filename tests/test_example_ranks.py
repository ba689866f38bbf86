"""Each framework's example, on two processes, makes the step of one process that holds all images."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("PIL")

import example_ranks
from example_ranks import LOSSES, RANKS, VOID

from lal_triton import LocallyAdaptiveLoss

LEARNING_RATE = 0.1
# float64: some 10^4 terms of at most 1, summed in another order, at 1e-16 each. The gradients are of size 0.01 to 1.
TOLERANCE = 1e-12
LOGGED = 1e-6  # the Trainer adds up float32 losses: four roundings of 6e-8
LIBRARIES = {"accelerate_loop": "accelerate", "lightning_module": "lightning", "huggingface_trainer": "transformers"}


@pytest.fixture
def huggingface_trainer(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)  # where the Trainer makes its folder
    return importlib.import_module("huggingface_trainer")


def upsampled_cross_entropy(logits, labels):
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=VOID)


REFERENCES = {"cross_entropy": upsampled_cross_entropy, "lal": LocallyAdaptiveLoss()}


def step_of_one_process(network, loss, micro_batches=1):
    """The parameters after a step of gradient descent, and the loss: the mean of those of consecutive micro-batches."""
    images, labels = example_ranks.make_crops()[:]
    value = torch.zeros(())
    for image, label in zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True):
        output = network(image)
        value = value + REFERENCES[loss](getattr(output, "logits", output), label) / micro_batches
    value.backward()
    stepped = {name: value.detach() - LEARNING_RATE * value.grad for name, value in network.named_parameters()}
    return stepped, value.item()


def assert_equal(parameters, expected):
    assert parameters.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            parameters[name], values, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def run_on_ranks(example, folder):
    """What each rank came to, by the name of the loss."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command = [*torchrun, example_ranks.__file__, example, str(folder)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("example", ["ddp", "fsdp2", "accelerate_loop", "lightning_module"])
def test_processes_equal_one(example, tmp_path):
    pytest.importorskip(LIBRARIES.get(example, "torch"))
    ranks = run_on_ranks(example, tmp_path)
    for loss in LOSSES:
        micro_batches = 2 if example == "accelerate_loop" else 1
        expected, value = step_of_one_process(example_ranks.make_layers(), loss, micro_batches)
        for rank in ranks:
            parameters, loss_of_rank = rank[loss]
            assert loss_of_rank == pytest.approx(value, abs=TOLERANCE)
            assert_equal(parameters, expected)
    if example == "ddp":
        expected, _ = step_of_one_process(example_ranks.make_layers(), "cross_entropy")
        with pytest.raises(AssertionError):
            assert_equal(ranks[0]["mean of ranks"][0], expected)


def test_trainer_on_processes_equals_one_batch(tmp_path):
    pytest.importorskip("transformers")
    ranks = run_on_ranks("huggingface_trainer", tmp_path)
    for loss in LOSSES:
        expected, _ = step_of_one_process(example_ranks.make_segformer(), loss)
        for rank in ranks:
            assert_equal(rank[loss][0], expected)
    assert_equal(ranks[0]["model"][0], too_large_a_step())


@pytest.mark.parametrize("loss", LOSSES)
def test_trainer_with_micro_batches_equals_one_batch(loss, huggingface_trainer):
    model, value = example_ranks.step_huggingface(huggingface_trainer, loss, gradient_accumulation_steps=4)
    expected, loss_of_batch = step_of_one_process(example_ranks.make_segformer(), loss)
    assert_equal(example_ranks.parameters_of(model), expected)
    assert value == pytest.approx(loss_of_batch, abs=LOGGED)


def test_trainer_with_the_loss_of_the_model_does_not(huggingface_trainer):
    """Which docs/frameworks.md says; where this fails, transformers has mended it."""
    model, _ = example_ranks.step_huggingface(huggingface_trainer, "model", gradient_accumulation_steps=4)
    assert_equal(example_ranks.parameters_of(model), too_large_a_step())


def too_large_a_step():
    """By the sum of the losses of four micro-batches, in place of their mean."""
    before = dict(example_ranks.make_segformer().named_parameters())
    after, _ = step_of_one_process(example_ranks.make_segformer(), "cross_entropy", micro_batches=4)
    return {name: before[name].detach() + 4 * (after[name] - before[name].detach()) for name in before}
