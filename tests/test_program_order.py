"""The kernels' results do not depend on the order in which their programs run."""

import pytest
import torch
from problems import DEVICE, make_problem, value_and_gradient

pytest.importorskip("triton")

from triton.runtime import interpreter

from lal_triton.kernels import configs

KINDS = {  # ratio, and options
    "equal": (1, {"kernel_size": 3}),
    "upsampled": (2, {"kernel_size": 3}),
    "cells": (4, {"kernel_size": 1, "normalize": False, "window": "uniform"}),
}
ORDERS = {"reversed": lambda x, count: count - 1 - x, "rotated": lambda x, count: (x + 7) % count}
CELLS = {  # small enough for many programs
    "cell_loss_fwd": {"lanes": 32, "columns": 2},
    "cell_loss_bwd": {"lanes": 32, "columns": 2, "rows": 1, "classes": 2},
}


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU takes its own order")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["minkowski", "mean"])
def test_programs_in_another_order(monkeypatch, kind, order, reduction):
    ratio, options = KINDS[kind]
    size = (6, 9) if ratio == 1 else (3, 4)
    logits, target = make_problem((3, 3, *size))
    target = target.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)
    options = {"backend": "triton", "reduction": reduction, **options}
    builder = interpreter.interpreter_builder
    place, visited = builder.set_grid_idx, []

    def permuted(x, y, z):
        visited.append(x)
        place(ORDERS[order](x, builder.grid_dim[0]), y, z)

    with configs.forcing(CELLS):
        forwards = value_and_gradient(logits, target, torch.float32, **options)
        monkeypatch.setattr(builder, "set_grid_idx", permuted)
        permutedly = value_and_gradient(logits, target, torch.float32, **options)
    assert max(visited) > 0
    assert torch.equal(forwards[0], permutedly[0])
    assert torch.equal(forwards[1], permutedly[1])
