"""What each process that test_process_group.py spawns does: losses of its own images, pooled over all processes."""

import copy
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from problems import step_of
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from lal_triton import CenterLoss, LocallyAdaptiveLoss
from lal_triton.functional import cross_entropy, focal_loss, locally_adaptive_loss

CLASSES, FEATURES = 4, 5
SHARES = {2: (1, 3), 3: (1, 3, 0)}  # of the images, by rank: the last of three processes has none
VOID_IMAGES = (0, 2)  # of four: the first process has no valid pixel
WEIGHTS = {"weight": True, "pixel_weight": True}
CASES = {
    "image": (locally_adaptive_loss, {}),
    "batch": (locally_adaptive_loss, {"pool": "batch"}),
    "batch, p 20": (locally_adaptive_loss, {"pool": "batch", "p": 20.0}),
    "mean": (locally_adaptive_loss, {"reduction": "mean"}),
    "sum": (locally_adaptive_loss, {"reduction": "sum"}),
    "max pooling": (locally_adaptive_loss, {"reduction": "max_pooling"}),
    "weights, image": (locally_adaptive_loss, WEIGHTS),
    "weights, batch": (locally_adaptive_loss, {**WEIGHTS, "pool": "batch"}),
    "weights, smoothed mean": (cross_entropy, {**WEIGHTS, "label_smoothing": 0.1}),
    "weights, max pooling": (locally_adaptive_loss, {**WEIGHTS, "reduction": "max_pooling"}),
    "focal": (focal_loss, {}),
    "reference": (locally_adaptive_loss, {"backend": "reference"}),
}
OF_ANY_SIZES = ["image", "batch", "mean", "max pooling", "focal"]
SIZES = {"equal": (6, 7), "upsampled": (3, 4)}  # of the logits; the targets are 6 x 7


def make_batch(size):
    """Four images' logits, features, target, class weights and pixel weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, CLASSES, *size, generator=generator, dtype=torch.float64)
    features = torch.randn(4, FEATURES, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (4, 6, 7), generator=generator)
    target[1, :3] = 255
    target[list(VOID_IMAGES)] = 255
    weight = torch.rand(CLASSES, generator=generator, dtype=torch.float64)
    pixel_weight = torch.rand(target.shape, generator=generator, dtype=torch.float64)
    return logits, features, target, weight, pixel_weight


def evaluate(name, size, share, process_group, dtype=torch.float64, **changes):
    """Value and gradient on the images of the slice `share`."""
    function, options = CASES[name]
    logits, _, target, weight, pixel_weight = make_batch(SIZES[size])
    leaf = logits[share].to(dtype, copy=True).requires_grad_()
    options = {**options, **changes}
    if options.get("weight"):
        options |= {"weight": weight, "pixel_weight": pixel_weight[share]}
    loss = function(leaf, target[share], process_group=process_group, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def evaluate_sizes(name, ranks, rank=None, process_group=None):
    """The images of a rank lack as many last rows and columns as its number says; to one process those are void."""
    function, options = CASES[name]
    logits, _, target, *_ = make_batch(SIZES["equal"])
    for other in range(ranks):
        target[share_of(other, ranks), 6 - other :] = 255
        target[share_of(other, ranks), :, 7 - other :] = 255
    if rank is not None:
        logits, target = (crop(tensor[share_of(rank, ranks)], rank) for tensor in (logits, target))
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, target, process_group=process_group, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def evaluate_sharded(ranks):
    """Value and gradient of a DTensor whose mesh has the group, and the map; the gradient by its local part."""
    mesh = init_device_mesh("cpu", (ranks,))
    logits, _, target, weight, pixel_weight = make_batch(SIZES["equal"])

    def shard(tensor):
        return distribute_tensor(tensor, mesh, [Shard(0)])  # the last of three processes gets no image

    leaf = shard(logits).requires_grad_()
    options = {"weight": distribute_tensor(weight, mesh, [Replicate()]), "pixel_weight": shard(pixel_weight)}
    loss = locally_adaptive_loss(leaf, shard(target), **options)
    losses = locally_adaptive_loss(leaf.detach(), shard(target), reduction="none", **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0].to_local(), losses.full_tensor()


def share_of(rank, ranks):
    start = sum(SHARES[ranks][:rank])
    return slice(start, start + SHARES[ranks][rank])


def crop(images, rank):
    return images[..., : 6 - rank, : 7 - rank]


def move_centers(share, process_group, steps=3):
    """Values, gradients, and the centres after them."""
    _, features, target, *_ = make_batch(SIZES["equal"])
    module = CenterLoss(CLASSES, FEATURES, alpha=0.7, lambda_=0.1, process_group=process_group).double()
    values = []
    for step in range(steps):
        values += step_of(module, features[share] + step, target[share])
    return [*values, module.centers.clone()]


def make_modules():
    """By what they are given for a group: one that may not be there yet, a callable, its name."""
    groups = dist.group.WORLD, lambda: dist.group.WORLD, "world", "rank", None
    return [LocallyAdaptiveLoss(process_group=group) for group in groups]


def call_early(module, share):
    """The value of a second call, or the message of a refusal; a compiled module's is the same."""
    logits, _, target, *_ = make_batch(SIZES["equal"])
    try:
        module(logits[share], target[share])
    except ValueError as error:
        return str(error)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(logits[share], target[share])
    value = module(logits[share], target[share])
    torch.testing.assert_close(compiled, value, rtol=1e-12, atol=0)
    return value


def without_a_valid_pixel(process_group):
    leaf = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    void = torch.full((1, 4, 4), 255)
    plain = [(function, options) for function, options in CASES.values() if "weight" not in options]
    losses = [function(leaf, void, process_group=process_group, **options) for function, options in plain]
    return [(loss.detach(), torch.autograd.grad(loss, leaf)[0]) for loss in losses]


def run(rank, ranks, folder):
    torch.set_num_threads(1)
    early = make_modules()
    logits, _, target, *_ = make_batch(SIZES["equal"])
    kept = torch.compile(early[2], fullgraph=True, backend="aot_eager")  # "world"
    before = kept(logits[:1], target[:1]), early[4](logits[:1], target[:1])
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    share = share_of(rank, ranks)
    results = {(name, size): evaluate(name, size, share, group) for name in CASES for size in SIZES}
    results["sizes"] = {name: evaluate_sizes(name, ranks, rank, group) for name in OF_ANY_SIZES}
    if ranks == 2 and not torch.cuda.is_available():  # the interpreter takes its time, and gloo is for CPUs
        results["triton"] = evaluate("image", "equal", share, group, torch.float32, backend="triton", kernel_size=3)
    results["centers"] = move_centers(share, group)
    results["named"] = evaluate("image", "equal", share, "world"), move_centers(share, "world")
    results["early"] = [call_early(module, share) for module in early]
    results["before and after"] = *before, kept(logits[share], target[share])
    results["late"] = [call_early(module, share) for module in make_modules()]
    results["sharded"] = evaluate_sharded(ranks)
    results["void"] = without_a_valid_pixel(group)

    logits, _, target, *_ = make_batch(SIZES["equal"])
    for name, over in {"compiled": group, "compiled, named": "world"}.items():
        compiled = torch.compile(
            lambda x, t, over=over: locally_adaptive_loss(x, t, process_group=over), fullgraph=True, backend="aot_eager"
        )
        results[name] = compiled(logits[share], target[share])

    half = dist.new_group([0, 1])  # every process has to take part in making it
    if rank < 2:
        results["group of two"] = evaluate("image", "equal", share, half)
    try:
        copy.deepcopy(CenterLoss(2, 2, process_group=group))
    except TypeError as error:
        results["copied"] = str(error)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    # Caches of compiled functions and of DTensor hold the group, so gloo's threads go on, and can abort a Python that
    # shuts down (https://github.com/pytorch/pytorch/pull/179291). This one ends at once.
    os._exit(0)
