"""Tensor subclasses: what can be unwrapped is, DTensors by their local parts, and others are refused by name."""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

PLAIN = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def are_wrapped(*tensors: Any) -> bool:
    """Whether some are of a subclass that torch itself does not make, as FakeTensors."""
    return any(isinstance(tensor, Tensor) and type(tensor) not in PLAIN for tensor in tensors)


class Inputs(NamedTuple):
    """The tensors of a loss, and the group over whose ranks it is pooled."""

    logits: Any
    target: Any
    weight: Any
    pixel_weight: Any
    process_group: Any


def unwrap(inputs: Inputs) -> Inputs:
    """The same tensors without a subclass. What is no tensor stays, for the checks to name.

    A subclass that only watches torch's functions, such as MONAI's MetaTensor, holds a plain tensor. A DTensor is taken
    by its local part, and the mesh dimension that shards its batch is the process group.
    """
    if not are_wrapped(*inputs[:4]):
        return inputs
    if _is_distributed(inputs.logits):
        inputs = _to_local(inputs)
    return inputs._replace(**{name: _unwrap(name, getattr(inputs, name)) for name in Inputs._fields[:4]})


def like_logits(losses: Tensor, logits: Any) -> Tensor:
    """The map of losses as the logits are given: a DTensor of the same placements where they are one."""
    if not _is_distributed(logits):
        return losses
    shape = torch.Size((len(logits), *losses.shape[1:]))
    stride = losses.contiguous().stride()
    return type(logits).from_local(losses, logits.device_mesh, logits.placements, shape=shape, stride=stride)


def _is_distributed(tensor: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _unwrap(name: str, tensor: Any) -> Any:
    if not are_wrapped(tensor):
        return tensor
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor or, as logits are, a DTensor")
    return tensor.as_subclass(Tensor)


def _to_local(inputs: Inputs) -> Inputs:
    logits = inputs.logits
    mesh, placements = logits.device_mesh, logits.placements
    sharded = [dim for dim, placement in enumerate(placements) if placement.is_shard(0)]
    whole = sum(placement.is_replicate() for placement in placements)
    if len(sharded) > 1 or len(sharded) + whole < len(placements):
        raise ValueError(
            f"logits has the placements {placements}, expected Shard(0) on one dimension of the mesh and Replicate() "
            "on the others"
        )
    if inputs.process_group is not None:
        raise ValueError("process_group is given with DTensor logits, expected None: their mesh has the group")
    for name in ("target", "pixel_weight"):
        other = getattr(inputs, name)
        if other is not None and not (
            _is_distributed(other) and (other.device_mesh, other.placements) == (mesh, placements)
        ):
            raise ValueError(
                f"{name} is not distributed as logits are, expected a DTensor with placements {placements}"
            )
    weight = inputs.weight
    if _is_distributed(weight):
        weight = weight.full_tensor()
    return Inputs(
        logits.to_local(grad_placements=placements),
        inputs.target.to_local(),
        weight,
        None if inputs.pixel_weight is None else inputs.pixel_weight.to_local(),
        mesh.get_group(sharded[0]) if sharded else None,
    )
