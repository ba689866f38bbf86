"""What a step asks of the host: few launches, no waiting, nothing that a CUDA graph could not hold."""

import json
import os
import subprocess
import sys

import pytest
import torch
from problems import make_problem

pytest.importorskip("triton")

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss


@pytest.mark.long
def test_a_step_makes_few_launches(tmp_path):
    """Compiled and launched through a stand-in for the driver, which only counts."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "lal_triton.benchmarks.overhead", "--steps", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["step"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["LocallyAdaptiveLoss"]["launches"] == 5
    assert rows["CrossEntropyLoss"]["launches"] == 5
    assert rows["LocallyAdaptiveLoss, upsampled x 4"]["launches"] == 10
    assert rows["F.cross_entropy"]["launches"] == 0
    assert all(row["microseconds"] > 0 for row in rows.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("loss", [LocallyAdaptiveLoss(3), CrossEntropyLoss()], ids=["lal", "cross_entropy"])
def test_a_step_is_captured_in_a_cuda_graph(loss):
    logits, target = make_problem((2, 3, 5, 6))
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(loss(logits, target), logits)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.autograd.grad(loss(logits, target), logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    gradient.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(gradient, expected)
