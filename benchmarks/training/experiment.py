"""Every loss with every seed, and then the tables and figures of what came out."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from lal_triton.benchmarks import environment
from lal_triton.benchmarks.training import pictures, report
from lal_triton.benchmarks.training.checkpoints import restore
from lal_triton.benchmarks.training.loop import train
from lal_triton.benchmarks.training.losses import LOSSES
from lal_triton.benchmarks.training.task import Task
from lal_triton.plots import masks, training


def run(
    task: Task, losses: Sequence[str], seeds: Sequence[int], output: Path, fabric: Fabric, workers: int = 0
) -> Path:
    """Trains what the folder does not hold yet, and returns the path of results.json.

    Writes runs/<loss>-seed<seed>/, results.json, tables.md, masks.npz and figures/ to `output`. A finished run is not
    repeated, an interrupted one goes on. ValueError where a run in the folder is of another task or recipe.
    """
    folders = {(loss, seed): output / "runs" / f"{loss}-seed{seed}" for seed in seeds for loss in losses}
    runs = [train(task, loss, seed, folder, fabric, workers) for (loss, seed), folder in folders.items()]
    path = output / "results.json"
    if fabric.is_global_zero:
        results = summarise(task, runs, seeds[0], fabric.device)
        path.write_text(json.dumps(results, indent=1))
        (output / "tables.md").write_text(report.format_tables(results))
        networks = {
            loss: restore(task, folders[loss, seeds[0]]).to(fabric.device) for loss in masks.COLUMNS if loss in losses
        }
        np.savez_compressed(output / "masks.npz", **pictures.collect(task.evaluation, networks))
        training.draw(path, output / "figures")
    fabric.barrier()
    return path


def summarise(task: Task, runs: Sequence[dict[str, Any]], shown_seed: int, device: torch.device) -> dict[str, Any]:
    return {
        "environment": environment.describe(device),
        "task": task.name,
        "class_names": list(task.class_names),
        "recipe": dataclasses.asdict(task.recipe),
        "titles": {name: loss.title for name, loss in LOSSES.items()},
        "shown_seed": shown_seed,
        "runs": [{name: value for name, value in result.items() if name not in ("task", "recipe")} for result in runs],
    }
