"""What test_process_group.py evaluates, on each rank its share of a batch, and on one process the whole of it."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from problems import DEVICE

from lal_triton import CenterLoss, functional
from lal_triton.functional import locally_adaptive_loss
from lal_triton.kernels import configs

CLASSES, SIZE, LOW, CROP = 4, (7, 9), (3, 4), (5, 6)
LOSSES = {
    "minkowski": {},
    "minkowski over the batch": {"pool": "batch"},
    "mean": {"reduction": "mean"},
    "sum": {"reduction": "sum", "cost": "focal"},
    "max_pooling": {"reduction": "max_pooling"},
    "weights": {"weight": True, "pixel_weight": True},
    "weights, mean": {"weight": True, "pixel_weight": True, "reduction": "mean", "label_smoothing": 0.1},
    "weights, max_pooling": {"weight": True, "pixel_weight": True, "reduction": "max_pooling"},
    "cross-entropy": functional.cross_entropy,
    "focal": functional.focal_loss,
    "center": CenterLoss,
}
BATCHES = ["sizes differ", "first rank void", "all void", "upsampled"]


def share(rank):
    """Ranks have 1, 2, 3, ... images."""
    return slice(rank * (rank + 1) // 2, (rank + 1) * (rank + 2) // 2)


def make_batch(kind, world_size):
    """Logits, target and pixel weights of all ranks; where sizes differ, void surrounds the images of rank 1."""
    generator = torch.Generator().manual_seed(BATCHES.index(kind))
    images = world_size * (world_size + 1) // 2
    low = LOW if kind == "upsampled" else SIZE
    logits = torch.randn(images, CLASSES, *low, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (images, *SIZE), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    pixel_weight = torch.rand(target.shape, generator=generator, dtype=torch.float64)
    if kind == "sizes differ":
        target[share(1), CROP[0] :] = 255
        target[share(1), :, CROP[1] :] = 255
    if kind == "first rank void":
        target[share(0)] = 255
    if kind == "all void":
        target[:] = 255
    return logits, target, pixel_weight


def crop(tensor):
    return tensor[..., : CROP[0], : CROP[1]]


def evaluate(name, logits, target, pixel_weight, group, **options):
    """The loss, its gradient, and what else every rank has to agree on (the centres of center loss)."""
    leaf = logits.clone().requires_grad_()
    loss_fn, agreed = LOSSES[name], torch.empty(0)
    if loss_fn is CenterLoss:
        module = CenterLoss(3, CLASSES, lambda_=0.1, process_group=group).double()
        target = target.where(target != 3, 0)
        module(leaf, target)
        loss, agreed = module(leaf, target), module.centers
    elif callable(loss_fn):
        loss = loss_fn(leaf, target, process_group=group, **options)
    else:
        filled = dict(loss_fn)
        if "weight" in filled:
            filled["weight"] = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
            filled["pixel_weight"] = pixel_weight
        loss = locally_adaptive_loss(leaf, target, kernel_size=3, process_group=group, **filled, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], agreed


def evaluate_all(world_size, rank=None, group=None):
    """The results by kind of batch, loss and backend, of a rank or (None) of the whole batch."""
    results = {}
    for kind in BATCHES:
        batch = make_batch(kind, world_size)
        if rank is not None:
            batch = [tensor[share(rank)] for tensor in batch]
            if kind == "sizes differ" and rank == 1:
                batch = [crop(tensor) for tensor in batch]
        for name in LOSSES:
            if name != "center" or kind != "upsampled":
                results[kind, name, "torch"] = evaluate(name, *batch, group)
    if world_size > 2 or DEVICE == "cuda":  # the interpreter takes its time, and gloo is for CPUs
        return results
    logits, target, pixel_weight = (tensor[..., : LOW[0], : LOW[1]].contiguous() for tensor in batch)
    strips = {"rows": 2, "columns": 16, "strips": 4}  # sooner interpreted than those that ship
    with configs.forcing({"local_loss_fwd": strips, "local_cost_bwd": strips, "merge_bwd": {**strips, "groups": 1}}):
        results["corner", "weights", "triton"] = evaluate(
            "weights", logits.float(), target, pixel_weight.float(), group, backend="triton"
        )
    return results


def run(rank, world_size, folder):
    with process_group(rank, world_size, folder) as group:
        torch.set_num_threads(1)
        torch.save(evaluate_all(world_size, rank, group), Path(folder) / f"{rank}.pt")


@contextlib.contextmanager
def process_group(rank, world_size, folder):
    """All processes, over a store in `folder`: no port that another process may hold."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
