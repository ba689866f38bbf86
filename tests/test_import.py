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


def test_the_kernels_know_nothing_of_tuning():
    sources = sorted((Path(__file__).parents[1] / "kernels").rglob("*.py"))
    assert sources
    assert [source for source in sources if re.search(r"import.*\btuning|from.*\btuning", source.read_text())] == []
