"""Training on several processes comes to what one process with the same global batch comes to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning_fabric")
pytest.importorskip("monai")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")

from lightning_fabric import Fabric
from tiny_task import ITERATIONS, make_task_with_void

from lal_triton.benchmarks.training import loop
from lal_triton.progress import start_bar

LOSSES = ["ce", "center", "lal5", "max-pooling"]
# The processes add up some 10^3 pixels' terms in another order, at 1e-16 each: 1e-13 in a gradient of size 1. Steps of
# 0.05, each multiplied by at most 1 / (1 - 0.9) by the momentum, carry that into parameters of size 1.
TOLERANCE = 1e-13 * ITERATIONS


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    torch.set_default_dtype(torch.float64)
    try:
        for loss in LOSSES:
            loop.train(make_task_with_void(), loss, 0, folder / loss, fabric, start_bar(0, shown=False))
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


@pytest.fixture(scope="module", params=[2, 3])  # of a batch of 4, of which the ranks of 3 have 2, 1 and 1
def together(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    script = Path(__file__).with_name("train_on_ranks.py")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(script), str(folder), *LOSSES], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_processes_equal_one(alone, together, loss):
    one, several = checkpoint(alone / loss), checkpoint(together / loss)
    assert several["progress"]["curve"] == one["progress"]["curve"]
    for part in ("network", "criterion"):
        assert one[part].keys() == several[part].keys()
        for name, values in one[part].items():
            torch.testing.assert_close(several[part][name], values, rtol=0, atol=TOLERANCE, msg=f"{part} {name}")


def test_interrupted_processes_go_on_to_the_same_bits(together):
    whole, parts = checkpoint(together / "center"), checkpoint(together / "parts")
    assert parts["progress"]["curve"] == whole["progress"]["curve"]
    for part in ("network", "criterion"):
        assert all(torch.equal(parts[part][name], values) for name, values in whole[part].items())
