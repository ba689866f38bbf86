"""What importing needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HIDE = """
import sys
for name in ("triton", "matplotlib", "mmseg", "PIL", *sys.argv[1:]):
    sys.modules[name] = None
import torch
import lal_triton
from lal_triton import functional
assert sys.modules.get("numba") is None
assert "lal_triton.tuning.search" not in sys.modules
logits, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)
lal_triton.LocallyAdaptiveLoss()(logits, target).backward()
assert logits.grad.abs().sum() > 0
print(lal_triton.__version__)
"""


@pytest.mark.parametrize("hidden", [[], ["numba"]], ids=["triton", "triton and numba"])
def test_import_and_train_without(hidden):
    done = subprocess.run([sys.executable, "-c", HIDE, *hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_are_imported_when_they_are_used():
    code = """
import sys, lal_triton
assert "torch" not in sys.modules
assert set(lal_triton.__all__) <= set(dir(lal_triton))
assert lal_triton.functional.cross_entropy.__module__ == "lal_triton.functional"
assert lal_triton.CrossEntropyLoss is lal_triton.modules.CrossEntropyLoss
from lal_triton import *
print(*sorted(set(lal_triton.__all__) - set(globals())))
try:
    lal_triton.nothing
except AttributeError as error:
    print(error)
"""
    assert run_python(code) == "\nmodule 'lal_triton' has no attribute 'nothing'\n"


@pytest.mark.parametrize("loss", ["lal_triton.functional.cross_entropy", "lal_triton.CrossEntropyLoss()"])
def test_a_graph_may_be_the_first_to_use_a_name(loss):
    code = f"""
import torch, lal_triton
step = torch.compile(lambda logits, target: {loss}(logits, target), fullgraph=True, backend="eager")
logits, target = torch.zeros(1, 4, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, dtype=torch.long)
for _ in range(2):
    print(f"{{step(logits, target).item():.4f}}")
"""
    assert run_python(code) == "1.3863\n1.3863\n"  # log 4


def test_the_kernels_know_nothing_of_tuning():
    sources = sorted((Path(__file__).parents[1] / "kernels").rglob("*.py"))
    assert sources
    assert [source for source in sources if re.search(r"import.*\btuning|from.*\btuning", source.read_text())] == []
