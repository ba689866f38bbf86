"""Checkpoints, result and log of a run in its folder; a file is there as a whole or not at all."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lal_triton.benchmarks.training.task import Task

CHECKPOINT, LOG, RESULT = "checkpoint.pt", "log.csv", "result.json"


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Has `save` write another file, which then takes the place of `path`."""
    unfinished = path.with_name(path.name + ".part")
    save(unfinished)
    os.replace(unfinished, path)


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    write(folder / CHECKPOINT, lambda path: torch.save(state, path))


def read_checkpoint(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The state in the folder, if there is one. ValueError where it is of another `run`: task, loss, seed, recipe."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in run.items():
        if state["run"][name] != value:
            found = state["run"][name]
            raise ValueError(f"{path} is of a run with {name} {found}, expected {value}: choose another output folder")
    return state


def write_log(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    def save(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["iteration", "loss", "learning_rate"])
            writer.writeheader()
            writer.writerows(rows)

    write(folder / LOG, save)


def write_result(folder: Path, result: dict[str, Any]) -> None:
    write(folder / RESULT, lambda path: path.write_text(json.dumps(result, indent=1)))


def restore(task: Task, folder: Path) -> nn.Module:
    """The trained network of the run in `folder`, on the CPU, for inference."""
    network = task.make_network()
    state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return network.eval()
