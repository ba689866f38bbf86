"""Losses over a process group: each rank has the loss of the global batch, the gradients are those of one process."""

import copy
import pickle

import pytest
import torch
from losses_on_ranks import BATCHES, LOSSES, crop, evaluate_all, make_batch, process_group, run, share

from lal_triton import CenterLoss, CrossEntropyLoss, LocallyAdaptiveLoss
from lal_triton.functional import center_loss, cross_entropy, locally_adaptive_loss

pytest.importorskip("triton")
if not torch.distributed.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

# Sums of some 10^3 numbers of size 1 in another order; in float32 on Triton.
TOLERANCE = {"torch": {"rtol": 1e-12, "atol": 1e-15}, "triton": {"rtol": 1e-5, "atol": 1e-8}}


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    """Those of each rank and those of one process, by `losses_on_ranks.evaluate_all`."""
    folder, world_size = tmp_path_factory.mktemp("ranks"), request.param
    torch.multiprocessing.spawn(run, (world_size, str(folder)), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)], evaluate_all(world_size)


def cases(results):
    ranks, alone = results
    assert all(rank.keys() == alone.keys() for rank in ranks)
    assert len(alone) >= len(BATCHES) * len(LOSSES) - 1
    return [(case, [rank[case] for rank in ranks], alone[case]) for case in alone]


def test_every_rank_has_the_loss_of_the_whole_batch(results):
    for case, ranks, (loss, _, _) in cases(results):
        assert (loss == 0) == (case[0] == "all void")
        for rank in ranks:
            torch.testing.assert_close(
                rank[0], loss, **TOLERANCE[case[2]], msg=lambda text, case=case: f"{case} {text}"
            )
            assert torch.equal(rank[0], ranks[0][0]), case


def test_the_gradients_are_those_of_one_process(results):
    for case, ranks, (_, gradient, _) in cases(results):
        for rank, (_, own, _) in enumerate(ranks):
            expected = gradient[share(rank)]
            if case[0] == "sizes differ" and rank == 1:
                expected = crop(expected)
            torch.testing.assert_close(
                own, expected, **TOLERANCE[case[2]], msg=lambda text, case=case, rank=rank: f"{case} {rank} {text}"
            )


def test_centers_stay_equal(results):
    for (_, name, _), ranks, (_, _, centers) in cases(results):
        if name == "center":
            for rank in ranks:
                torch.testing.assert_close(rank[2], centers, rtol=1e-12, atol=1e-15)
                assert torch.equal(rank[2], ranks[0][2])


@pytest.fixture
def alone(tmp_path):
    with process_group(0, 1, tmp_path) as group:
        yield group


def test_max_pooling_over_the_batch_of_a_group_is_refused(alone):
    logits, target, _ = make_batch("sizes differ", 1)
    options = {"reduction": "max_pooling", "pool": "batch", "process_group": alone}
    with pytest.raises(ValueError, match='pool is "batch" with reduction="max_pooling" and a process_group'):
        locally_adaptive_loss(logits, target, **options)
    with pytest.raises(ValueError, match="process_group"):
        LocallyAdaptiveLoss(**options)


@pytest.mark.parametrize("group", ["gloo", 0, object()], ids=str)
def test_not_a_group(group):
    logits, target, _ = make_batch("sizes differ", 1)
    message = f"process_group is a {type(group).__name__}, expected a torch.distributed.ProcessGroup"
    for call in (
        lambda: cross_entropy(logits, target, process_group=group),
        lambda: center_loss(logits, target, torch.zeros(4, 4), process_group=group),
        lambda: CrossEntropyLoss(process_group=group),
        lambda: CenterLoss(4, 4, process_group=group),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("module", [LocallyAdaptiveLoss, CenterLoss])
def test_copies(alone, module):
    """Groups are torch's, and belong to a process; the state does not hold them."""
    loss_fn = module(*([4, 4] if module is CenterLoss else []), process_group=alone)
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises((TypeError, RuntimeError), match="pickle"):
            refused(loss_fn)
    loss_fn.load_state_dict(loss_fn.state_dict())
