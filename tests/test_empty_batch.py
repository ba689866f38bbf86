"""A batch without an image: 0, with an empty gradient, as a batch without a valid pixel."""

import pytest
import torch
from problems import DEVICE, step_of

from lal_triton import CenterLoss
from lal_triton.functional import cross_entropy, focal_loss, locally_adaptive_loss, merge

LOGITS = torch.zeros(0, 3, 4, 5, device=DEVICE)
TARGET = torch.zeros(0, 4, 5, dtype=torch.long, device=DEVICE)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("reduction", ["minkowski", "mean", "sum", "none", "max_pooling"])
@pytest.mark.parametrize("loss", [cross_entropy, focal_loss, locally_adaptive_loss])
def test_losses(loss, reduction, backend):
    value, gradient = step_of(lambda x, y: loss(x, y, reduction=reduction, backend=backend).sum(), LOGITS, TARGET)
    assert value == 0
    assert gradient.shape == LOGITS.shape


@pytest.mark.parametrize("options", [{"pool": "batch"}, {"pool": "batch", "reduction": "max_pooling"}, {"p": 1.0}])
def test_pooling(options):
    value, _ = step_of(lambda x, y: locally_adaptive_loss(x, y, **options), LOGITS, TARGET)
    assert value == 0


def test_through_an_upsampling_with_weights():
    target = torch.zeros(0, 8, 20, dtype=torch.long, device=DEVICE)
    weights = {"weight": torch.ones(3, device=DEVICE), "pixel_weight": torch.ones(0, 8, 20, device=DEVICE)}
    value, gradient = step_of(lambda x, y: cross_entropy(x, y, **weights, label_smoothing=0.1), LOGITS, target)
    assert value == 0
    assert gradient.shape == LOGITS.shape


def test_map_merge_and_centers():
    assert locally_adaptive_loss(LOGITS, TARGET, reduction="none", stride=2).shape == (0, 2, 3)
    assert merge(LOGITS, TARGET).shape == LOGITS.shape
    loss = CenterLoss(3, 3).to(DEVICE)
    value, gradient = step_of(loss, LOGITS, TARGET)
    assert value == 0
    assert gradient.shape == LOGITS.shape
    assert torch.equal(loss.centers, torch.zeros_like(loss.centers))


def test_in_a_full_graph():
    torch._dynamo.reset()
    compiled = torch.compile(locally_adaptive_loss, fullgraph=True, backend="aot_eager")
    assert compiled(LOGITS, TARGET) == 0


@pytest.mark.parametrize("shape", [(0, 3, 0, 5), (0, 3, 4, 0), (0, 0, 4, 5)])
def test_empty_images_are_refused(shape):
    with pytest.raises(ValueError, match="expected no empty dimension but the batch"):
        cross_entropy(torch.zeros(shape), torch.zeros(0, 4, 5, dtype=torch.long))
