"""Tensors that are more than tensors: unwrapped, taken by their local parts, traced, or refused by name."""

import pytest
import torch
from problems import make_problem
from torch._subclasses.fake_tensor import FakeTensorMode

from lal_triton.functional import cross_entropy, locally_adaptive_loss
from lal_triton.subclasses import Inputs, unwrap


class Watching(torch.Tensor):
    """Hears of torch's functions, as MONAI's MetaTensor and torchvision's Mask do."""


class Dispatching(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("the loss went on with it")


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_a_subclass_that_watches_is_unwrapped(backend):
    logits, target = make_problem()
    expected_leaf = logits.clone().requires_grad_()
    expected = locally_adaptive_loss(expected_leaf, target, kernel_size=3, backend=backend)
    leaf = logits.clone().as_subclass(Watching).requires_grad_()
    pixel_weight = torch.ones(target.shape).as_subclass(Watching)
    loss = locally_adaptive_loss(
        leaf, target.as_subclass(Watching), kernel_size=3, pixel_weight=pixel_weight, backend=backend
    )
    assert type(loss) is torch.Tensor
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad.as_subclass(torch.Tensor), expected_leaf.grad)


@pytest.mark.parametrize("name", ["logits", "target", "weight", "pixel_weight"])
def test_a_subclass_that_dispatches_is_refused(name):
    logits, target = make_problem()
    tensors = {"logits": logits, "target": target, "weight": torch.ones(4), "pixel_weight": torch.ones(target.shape)}
    tensors[name] = tensors[name].as_subclass(Dispatching)
    with pytest.raises(TypeError, match=f"{name} is a Dispatching, expected"):
        cross_entropy(**tensors)


def test_sparse_logits_are_refused():
    logits, target = make_problem()
    with pytest.raises(TypeError, match=r"logits has the layout torch\.sparse_coo, expected torch\.strided"):
        cross_entropy(logits.to_sparse(), target)


def test_fake_and_meta_tensors_have_the_shape_of_the_result():
    logits, target = make_problem()
    with FakeTensorMode() as mode:
        loss = cross_entropy(mode.from_tensor(logits), mode.from_tensor(target), reduction="none")
        assert loss.shape == target.shape
    meta = logits.to("meta").requires_grad_()
    cross_entropy(meta, target.to("meta")).backward()
    assert meta.grad.shape == logits.shape


def test_distributed_logits_need_distributed_labels(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

        mesh = init_device_mesh("cpu", (1,))
        logits, target = make_problem()
        sharded = DTensor.from_local(logits, mesh, [Shard(0)])
        with pytest.raises(ValueError, match="target is not distributed as logits are"):
            cross_entropy(sharded, target)
        with pytest.raises(ValueError, match="target is not distributed as logits are"):
            cross_entropy(sharded, DTensor.from_local(target, mesh, [Replicate()]))
        by_class = DTensor.from_local(logits, mesh, [Shard(1)])
        with pytest.raises(ValueError, match=r"logits has the placements .*, expected Shard\(0\)"):
            cross_entropy(by_class, DTensor.from_local(target, mesh, [Shard(1)]))
        with pytest.raises(ValueError, match="process_group is given with DTensor logits"):
            cross_entropy(sharded, DTensor.from_local(target, mesh, [Shard(0)]), process_group=dist.group.WORLD)
        with pytest.raises(TypeError, match="target is a DTensor"):
            cross_entropy(logits, DTensor.from_local(target, mesh, [Shard(0)]))
    finally:
        dist.destroy_process_group()


def test_plain_tensors_are_left_alone():
    inputs = Inputs(*make_problem(), None, None, None)
    assert unwrap(inputs) is inputs
