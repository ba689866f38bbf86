"""The kernels' results do not depend on the order in which their programs run."""

import pytest
import torch
from problems import DEVICE, make_problem, value_and_gradient

pytest.importorskip("triton")

from triton.runtime import interpreter


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU takes its own order")
@pytest.mark.parametrize("size", [(6, 9), (3, 4)], ids=["equal", "upsampled"])
@pytest.mark.parametrize("reduction", ["minkowski", "mean"])
def test_programs_in_reverse(monkeypatch, size, reduction):
    logits, target = make_problem((3, 3, *size))
    if size != (6, 9):
        target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    options = {"backend": "triton", "kernel_size": 3, "reduction": reduction}
    forwards = value_and_gradient(logits, target, torch.float32, **options)
    builder = interpreter.interpreter_builder
    place, visited = builder.set_grid_idx, []

    def mirrored(x, y, z):
        visited.append(x)
        place(builder.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(builder, "set_grid_idx", mirrored)
    backwards = value_and_gradient(logits, target, torch.float32, **options)
    assert max(visited) > 0
    assert torch.equal(forwards[0], backwards[0])
    assert torch.equal(forwards[1], backwards[1])
