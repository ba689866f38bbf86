"""`lal-triton train`: every loss with every seed, and then the tables and figures of what came out."""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist
from lightning_fabric import Fabric

from lal_triton.benchmarks import environment
from lal_triton.benchmarks.training import pictures, report
from lal_triton.benchmarks.training.loop import restore, train
from lal_triton.benchmarks.training.losses import LOSSES
from lal_triton.benchmarks.training.task import Task
from lal_triton.plots import masks, training
from lal_triton.progress import about, announce, start_bar

SEEDS = {"nuclei": [0, 1, 2], "digits": [0, 1, 2], "voc": [0]}
# Of an iteration, on two cores of an AMD EPYC with a load of 5 and of 3 (benchmarks/results/training-*.json).
SECONDS = {"nuclei": 0.126, "digits": 0.069}


def main(arguments: argparse.Namespace) -> int:
    """Exit status 130 where it was interrupted, which leaves a checkpoint to go on from."""
    task = make_task(arguments)
    losses, seeds = arguments.loss or list(LOSSES), arguments.seeds or SEEDS[task.name]
    for loss in losses:
        if loss not in LOSSES:
            raise ValueError(f"--loss is {loss}, expected {', '.join(LOSSES)}")
    with processes(arguments.precision) as fabric:
        try:
            path = run(task, losses, seeds, arguments.output, fabric, arguments.workers)
        except KeyboardInterrupt as interruption:
            print(f"lal-triton: {str(interruption) or 'interrupted'}", file=sys.stderr)
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
        from lal_triton.benchmarks.training import deeplab_voc

        task = deeplab_voc.make_task(arguments.voc, arguments.backbone, arguments.head)
    else:
        from lal_triton.benchmarks.training import small_tasks

        task = small_tasks.make_digits() if name == "digits" else small_tasks.make_nuclei()
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


def run(
    task: Task, losses: Sequence[str], seeds: Sequence[int], output: Path, fabric: Fabric, workers: int = 0
) -> Path:
    """Trains what the folder does not hold yet, and returns the path of results.json.

    Writes runs/<loss>-seed<seed>/, results.json, tables.md, results.npz and figures/ to `output`. A finished run is not
    repeated, an interrupted one goes on. ValueError where a run in the folder is of another task or recipe.
    """
    folders = {(loss, seed): output / "runs" / f"{loss}-seed{seed}" for seed in seeds for loss in losses}
    iterations = task.recipe.iterations * len(folders)
    if fabric.is_global_zero:
        announce(f"{len(folders)} runs of {task.recipe.iterations:,} iterations{expected_time(task, iterations)}")
    with start_bar(iterations, shown=fabric.is_global_zero) as bar:
        runs = [train(task, loss, seed, folder, fabric, bar, workers) for (loss, seed), folder in folders.items()]
    path = output / "results.json"
    if fabric.is_global_zero:
        results = {
            "environment": environment.describe(fabric.device),
            "task": task.name,
            "class_names": list(task.class_names),
            "recipe": dataclasses.asdict(task.recipe),
            "titles": {name: loss.title for name, loss in LOSSES.items()},
            "shown_seed": seeds[0],
            "runs": [{name: result[name] for name in result if name not in ("task", "recipe")} for result in runs],
        }
        path.write_text(json.dumps(results, indent=1))
        (output / "tables.md").write_text(report.format_tables(results))
        networks = {
            loss: restore(task, folders[loss, seeds[0]]).to(fabric.device) for loss in masks.COLUMNS if loss in losses
        }
        provenance = {"environment": results["environment"], "shown_seed": results["shown_seed"]}
        arrays = pictures.collect(task.evaluation, networks) | {"provenance": np.array(json.dumps(provenance))}
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        training.draw(path, output / "figures")
    fabric.barrier()
    return path


def expected_time(task: Task, iterations: int) -> str:
    if task.name not in SECONDS:
        return ""
    return f", {about(iterations * SECONDS[task.name])} on two busy cores"
