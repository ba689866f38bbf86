"""Losses pooled over the ranks of a process group: every rank has the global value, and the gradients are its parts."""

import copy
import pickle

import pooling_ranks
import pytest
import torch
from pooling_ranks import CASES, OF_ANY_SIZES, SHARES, SIZES, crop, evaluate_sizes, share_of

from lal_triton import CenterLoss, LocallyAdaptiveLoss
from lal_triton.functional import locally_adaptive_loss

pytestmark = pytest.mark.xdist_group("process groups")  # the processes are spawned once
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64: some 10^2 terms summed in another order
ALL = slice(0, 4)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What each rank of a gloo group came to."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(pooling_ranks.run, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process(ranks, name, size):
    value, gradient = pooling_ranks.evaluate(name, size, ALL, None)
    assert value > 0
    for rank in ranks:
        torch.testing.assert_close(rank[name, size][0], value, **ROUNDING)
    parts = torch.cat([rank[name, size][1] for rank in ranks])
    torch.testing.assert_close(parts, gradient, **ROUNDING)


@pytest.mark.parametrize("name", OF_ANY_SIZES)
def test_ranks_may_have_images_of_other_sizes(ranks, name):
    value, gradient = evaluate_sizes(name, len(ranks))
    for rank, results in enumerate(ranks):
        torch.testing.assert_close(results["sizes"][name][0], value, **ROUNDING)
        expected = crop(gradient[share_of(rank, len(ranks))], rank)
        torch.testing.assert_close(results["sizes"][name][1], expected, **ROUNDING)


def test_sharded_tensors_equal_one_process(ranks):
    value, gradient = pooling_ranks.evaluate("weights, image", "equal", ALL, None)
    for rank in ranks:
        torch.testing.assert_close(rank["sharded"][0], value, **ROUNDING)
    torch.testing.assert_close(torch.cat([rank["sharded"][1] for rank in ranks]), gradient, **ROUNDING)
    logits, _, target, weight, pixel_weight = pooling_ranks.make_batch(SIZES["equal"])
    losses = locally_adaptive_loss(logits, target, weight=weight, pixel_weight=pixel_weight, reduction="none")
    torch.testing.assert_close(ranks[-1]["sharded"][2], losses, **ROUNDING)


def test_kernels_equal_one_process(ranks):
    if "triton" not in ranks[0]:
        pytest.skip("two processes on the CPU do")
    value, gradient = pooling_ranks.evaluate("image", "equal", ALL, None, kernel_size=3)
    rounding = {"rtol": 2e-6, "atol": 2e-7}  # float32: some ten roundings of 6e-8
    for rank in ranks:
        torch.testing.assert_close(rank["triton"][0].double(), value, **rounding)
    parts = torch.cat([rank["triton"][1] for rank in ranks])
    torch.testing.assert_close(parts.double(), gradient, **rounding)


def test_centers_of_ranks_are_those_of_one_process(ranks):
    expected = pooling_ranks.move_centers(ALL, None)
    for rank in ranks:
        assert torch.equal(rank["centers"][-1], ranks[0]["centers"][-1])
        torch.testing.assert_close(rank["centers"][-1], expected[-1], **ROUNDING)
        for step in range(0, len(expected) - 1, 2):
            torch.testing.assert_close(rank["centers"][step], expected[step], **ROUNDING)
    for step in range(1, len(expected) - 1, 2):
        parts = torch.cat([rank["centers"][step] for rank in ranks])
        torch.testing.assert_close(parts, expected[step], **ROUNDING)


def test_no_valid_pixel_on_any_rank(ranks):
    for rank in ranks:
        for value, gradient in rank["void"]:
            assert value == 0
            assert torch.count_nonzero(gradient) == 0


def test_one_graph_pools_over_ranks(ranks):
    value, _ = pooling_ranks.evaluate("image", "equal", ALL, None)
    for rank in ranks:
        torch.testing.assert_close(rank["compiled"], value, **ROUNDING)
        torch.testing.assert_close(rank["compiled, named"], value, **ROUNDING)


def test_a_graph_from_before_there_is_a_world(ranks):
    value, _ = pooling_ranks.evaluate("image", "equal", ALL, None)
    own, _ = pooling_ranks.evaluate("image", "equal", slice(0, 1), None)
    for rank in ranks:
        compiled, none, after = rank["before and after"]
        torch.testing.assert_close(compiled, own, **ROUNDING)
        torch.testing.assert_close(none, own, **ROUNDING)
        torch.testing.assert_close(after, value, **ROUNDING)


def test_the_world_by_its_name(ranks):
    value, gradient = pooling_ranks.evaluate("image", "equal", ALL, None)
    centers = pooling_ranks.move_centers(ALL, None)[-1]
    for rank in ranks:
        (found, _), moved = rank["named"]
        torch.testing.assert_close(found, value, **ROUNDING)
        torch.testing.assert_close(moved[-1], centers, **ROUNDING)
    parts = torch.cat([rank["named"][0][1] for rank in ranks])
    torch.testing.assert_close(parts, gradient, **ROUNDING)


@pytest.mark.parametrize("made", ["early", "late"])
def test_modules_find_their_group_at_the_first_forward(ranks, made):
    """Those that were made before init_process_group, and those after."""
    value, _ = pooling_ranks.evaluate("image", "equal", ALL, None)
    for number, rank in enumerate(ranks):
        world, called, named, alone, none = rank[made]
        torch.testing.assert_close(called, value, **ROUNDING)
        torch.testing.assert_close(named, value, **ROUNDING)
        own, _ = pooling_ranks.evaluate("image", "equal", share_of(number, len(ranks)), None)
        torch.testing.assert_close(alone, own, **ROUNDING)
        if made == "early":  # when group.WORLD was None
            assert "process_group was None before init_process_group" in world == none
        else:
            torch.testing.assert_close(world, value, **ROUNDING)
            torch.testing.assert_close(none, own, **ROUNDING)


def test_part_of_the_ranks(ranks):
    share = slice(0, sum(SHARES[len(ranks)][:2]))
    value, gradient = pooling_ranks.evaluate("image", "equal", share, None)
    for rank in ranks[:2]:
        torch.testing.assert_close(rank["group of two"][0], value, **ROUNDING)
    parts = torch.cat([rank["group of two"][1] for rank in ranks[:2]])
    torch.testing.assert_close(parts, gradient, **ROUNDING)


def test_group_cannot_be_copied(ranks):
    assert all("cannot pickle" in rank["copied"] for rank in ranks)


@pytest.mark.parametrize("make", [LocallyAdaptiveLoss, lambda **options: CenterLoss(2, 2, **options)])
def test_something_else_than_a_group(make):
    with pytest.raises(TypeError, match=r"process_group is a int, expected a torch.distributed.ProcessGroup"):
        make(process_group=2)
    with pytest.raises(
        ValueError, match=r"process_group is 'all', expected a torch.distributed.ProcessGroup, \"world\""
    ):
        make(process_group="all")
    returns_none = make(process_group=lambda: None)
    with pytest.raises(
        TypeError, match=r"process_group returned a NoneType, expected a torch.distributed.ProcessGroup"
    ):
        returns_none(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("process_group", ["world", None])
def test_one_process_is_the_world(process_group):
    logits, _, target, *_ = pooling_ranks.make_batch(SIZES["equal"])
    alone = LocallyAdaptiveLoss()(logits, target)
    loss = LocallyAdaptiveLoss(process_group=process_group)
    for module in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(module(logits, target), alone)


def test_max_pooling_of_all_pixels_needs_one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    group = torch.distributed.ProcessGroup(store, 0, 1)
    with pytest.raises(ValueError, match=r'pool is "batch" with reduction="max_pooling" and a process_group'):
        LocallyAdaptiveLoss(reduction="max_pooling", pool="batch", process_group=group)
