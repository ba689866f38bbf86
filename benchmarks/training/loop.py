"""The training loop, on one process or on the ranks of a Fabric, from the last checkpoint in the folder if any."""

import csv
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lal_triton.benchmarks.training.evaluation import evaluate
from lal_triton.benchmarks.training.losses import Criterion
from lal_triton.benchmarks.training.samples import Stream, make_loader
from lal_triton.benchmarks.training.task import Recipe, Task

LOG_EVERY = 10  # iterations


def train(
    task: Task, loss: str, seed: int, folder: Path, fabric: Fabric, bar: tqdm, workers: int = 0
) -> dict[str, Any]:
    """One run, and its result: what result.json in the folder holds, beside log.csv and checkpoint.pt.

    A run that was interrupted goes on from its checkpoint and ends as if it had not been, to the last bit; one that is
    finished returns its result. All ranks must see the folder. `bar` counts the iterations.

    Raises:
        ValueError: the checkpoint in the folder is of another task, loss, seed, recipe or precision.
        KeyboardInterrupt: SIGINT or SIGTERM came, and a checkpoint of the iteration that it came in is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe, ranks, num_classes = task.recipe, fabric.world_size, len(task.class_names)

    torch.manual_seed(seed)
    network: Any = task.make_network()
    optimizer = make_optimizer(network, recipe)
    schedule = LambdaLR(optimizer, lambda iteration: (1 - iteration / recipe.iterations) ** recipe.poly_power)
    model, model_optimizer = fabric.setup(network, optimizer)  # wrapped for the ranks and the precision
    group = torch.distributed.group.WORLD if ranks > 1 else None
    align_corners = getattr(network, "align_corners", False)
    criterion = Criterion(loss, num_classes, network.num_features, group, align_corners).to(fabric.device)

    precision = fabric.strategy.precision  # with the scaler of float16
    run = {  # what tells it from others
        "task": task.name,
        "loss": loss,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "precision": precision.precision,
    }
    parts: dict[str, Any] = {  # what is needed to go on with it
        "network": network,
        "criterion": criterion,
        "optimizer": optimizer,
        "schedule": schedule,
        "precision": precision,
    }
    progress: dict[str, Any] = {"iteration": 0, "seconds": 0.0, "rows": [], "curve": [], "scores": {}}  # to report
    fabric.barrier()
    saved = read_checkpoint(folder, run)
    if saved is not None:
        progress = saved["progress"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    stream = Stream(task.training, recipe, seed)
    loader = make_loader(stream, recipe, progress["iteration"], fabric.global_rank, ranks, workers)
    bar.total -= progress["iteration"]
    bar.set_postfix_str("", refresh=False)
    bar.set_description_str(f"{loss}, seed {seed}")
    model.train()
    with deterministic(), caught_interruption() as interrupted:
        started = time.perf_counter() - progress["seconds"]
        for _, images, target in loader:
            rate = schedule.get_last_lr()[0]
            value = criterion(model(images.to(fabric.device)), target.to(fabric.device))
            fabric.backward(ranks * value)  # the gradients become their mean over the ranks
            model_optimizer.step()
            model_optimizer.zero_grad()
            schedule.step()
            bar.update()

            iteration = progress["iteration"] = progress["iteration"] + 1
            last = iteration == recipe.iterations
            if iteration % LOG_EVERY == 0:
                progress["rows"].append({"iteration": iteration, "loss": value.item(), "learning_rate": rate})
                bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
            if iteration % recipe.evaluate_every == 0 or last:
                progress["scores"] = evaluate(network, task.evaluation, num_classes, fabric, workers)
                progress["curve"].append({"iteration": iteration, "miou": progress["scores"]["miou"]})
            progress["seconds"] = time.perf_counter() - started
            stop = fabric.strategy.reduce_boolean_decision(interrupted.is_set(), all=False)
            if (iteration % recipe.checkpoint_every == 0 or last or stop) and fabric.is_global_zero:
                state = {name: part.state_dict() for name, part in parts.items()}
                with replacing(folder / "checkpoint.pt") as path:
                    torch.save({"run": run, "progress": progress, **state}, path)
                with replacing(folder / "log.csv") as path, path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, ["iteration", "loss", "learning_rate"])
                    writer.writeheader()
                    writer.writerows(progress["rows"])
            if stop:
                raise KeyboardInterrupt(f"stopped after iteration {iteration}; the same command goes on from there")

    result = {
        **run,
        "iterations": progress["iteration"],
        "curve": progress["curve"],
        **progress["scores"],
        "seconds": progress["seconds"],
    }
    if fabric.is_global_zero:
        with replacing(folder / "result.json") as path:
            path.write_text(json.dumps(result, indent=1))
    return result


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over the parameters that are not frozen; those of the network's `head` have rates of their own."""
    body: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    head_biases: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            group = body if not name.startswith("head.") else head_biases if name.endswith(".bias") else head
            group.append(parameter)
    rate = recipe.learning_rate
    groups = [
        {"params": body, "lr": rate},
        {"params": head, "lr": recipe.head_lr_factor * rate},
        {"params": head_biases, "lr": recipe.head_bias_lr_factor * rate, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def read_checkpoint(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The state in the folder, if there is one. ValueError where it is of another `run`: task, loss, seed, recipe."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in run.items():
        found = state["run"][name]
        if found != value:
            raise ValueError(f"{path} is of a run with {name} {found}, expected {value}: choose another output folder")
    return state


def restore(task: Task, folder: Path) -> nn.Module:
    """The trained network of the run in `folder`, on the CPU, for inference."""
    network = task.make_network()
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return network.eval()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` at the end: `path` is there as a whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    yield unfinished
    os.replace(unfinished, path)


@contextmanager
def deterministic() -> Iterator[None]:
    """Operations that have no deterministic form on a GPU warn, and run. Enter it before cuBLAS is first called."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextmanager
def caught_interruption() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, which do nothing else: torchrun passes on what a terminal sends, too."""
    interrupted = threading.Event()
    handlers = {
        number: signal.signal(number, lambda *_: interrupted.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
