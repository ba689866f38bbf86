"""`lal-triton train`: the task that is asked for, on the processes that there are."""

import argparse
import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Iterator

import torch.distributed as dist
from lightning_fabric import Fabric

from lal_triton.benchmarks.training import experiment
from lal_triton.benchmarks.training.losses import LOSSES
from lal_triton.benchmarks.training.task import Task

SEEDS = {"nuclei": [0, 1, 2], "digits": [0, 1, 2], "voc": [0]}


def run(arguments: argparse.Namespace) -> int:
    """Exit status 130 where it was interrupted, which leaves a checkpoint to go on from."""
    task = make_task(arguments)
    losses = arguments.loss or list(LOSSES)
    for loss in losses:
        if loss not in LOSSES:
            raise ValueError(f"--loss is {loss}, expected {', '.join(LOSSES)}")
    with processes(arguments.precision) as fabric:
        try:
            path = experiment.run(
                task, losses, arguments.seeds or SEEDS[task.name], arguments.output, fabric, arguments.workers
            )
        except KeyboardInterrupt as interruption:
            print(f"lal-triton: {interruption or 'interrupted'}", file=sys.stderr)
            return 130
        if fabric.is_global_zero:
            print(path.with_name("tables.md").read_text())
            print("wrote", path, *sorted((path.parent / "figures").iterdir()), sep="\n  ")
        return 0


def make_task(arguments: argparse.Namespace) -> Task:
    """Imports what the task needs, and no more."""
    name = arguments.data or ("voc" if arguments.voc else "nuclei")
    if (name == "voc") != (arguments.voc is not None):
        raise ValueError("--data voc and --voc, the folder VOC2012, belong together")
    if name == "voc":
        from lal_triton.benchmarks.training import voc_aug

        task = voc_aug.make_task(arguments.voc, arguments.backbone, arguments.head)
    elif name == "digits":
        from lal_triton.benchmarks.training import digits

        task = digits.make_task()
    else:
        from lal_triton.benchmarks.training import nuclei

        task = nuclei.make_task()
    asked = {"iterations": arguments.iterations, "batch_size": arguments.batch_size}
    changes = {field: value for field, value in asked.items() if value is not None}
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, **changes))


@contextlib.contextmanager
def processes(precision: str) -> Iterator[Fabric]:
    """One process, or with torchrun its processes, each on a GPU of its own where there are any.

    A process that goes on to its end destroys its process group: gloo's threads may otherwise release tensors while
    Python shuts down, which aborts (https://github.com/pytorch/pytorch/pull/179291). The threads end with the group's
    last reference, and networks hold references until they are collected. After an error the group stays, since the
    other processes may wait in it; torchrun stops them.
    """
    ranks, local_ranks = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    strategy = "ddp" if ranks > 1 else "auto"
    fabric = Fabric(devices=local_ranks, num_nodes=ranks // local_ranks, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    yield fabric
    if ranks > 1:
        gc.collect()
        dist.destroy_process_group()
