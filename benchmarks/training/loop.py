"""The training loop, on one process or on the ranks of a Fabric, from the last checkpoint in the folder if any."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from lal_triton.benchmarks.training import checkpoints, guards
from lal_triton.benchmarks.training.evaluation import evaluate
from lal_triton.benchmarks.training.losses import make_criterion
from lal_triton.benchmarks.training.optimisation import make_optimizer, make_schedule
from lal_triton.benchmarks.training.stream import Stream, make_loader
from lal_triton.benchmarks.training.task import Task

LOG_EVERY = 10  # iterations


def train(task: Task, loss: str, seed: int, folder: Path, fabric: Fabric, workers: int = 0) -> dict[str, Any]:
    """One run, and its result: what result.json in the folder holds, beside log.csv and checkpoint.pt.

    A run that was interrupted goes on from its checkpoint and ends as if it had not been, to the last bit; one that is
    finished returns its result. All ranks must see the folder.

    Raises:
        ValueError: the checkpoint in the folder is of another task, loss, seed, recipe or precision.
        KeyboardInterrupt: SIGINT or SIGTERM came, and a checkpoint of the iteration that it came in is written.
    """
    recipe = task.recipe
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = task.make_network()
    optimizer = make_optimizer(network, recipe)
    schedule = make_schedule(optimizer, recipe)
    model, stepper = fabric.setup(network, optimizer)
    group = torch.distributed.group.WORLD if fabric.world_size > 1 else None
    criterion = make_criterion(
        loss, len(task.class_names), network.num_features, group, getattr(network, "align_corners", False)
    ).to(fabric.device)
    precision = fabric.strategy.precision
    parts = {
        "network": network,
        "criterion": criterion,
        "optimizer": optimizer,
        "schedule": schedule,
        "precision": precision,
    }
    run = {"task": task.name, "loss": loss, "seed": seed, "recipe": dataclasses.asdict(recipe)}
    run["precision"] = precision.precision
    fabric.barrier()
    state = checkpoints.read_checkpoint(folder, run)
    progress: dict[str, Any] = {"iteration": 0, "seconds": 0.0, "rows": [], "curve": [], "scores": {}}
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        progress = state["progress"]

    def save() -> None:
        if fabric.is_global_zero:
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoints.write_checkpoint(folder, {"run": run, "progress": progress, **states})
            checkpoints.write_log(folder, progress["rows"])

    loader = make_loader(
        Stream(task.training, recipe, seed),
        recipe,
        progress["iteration"],
        fabric.global_rank,
        fabric.world_size,
        workers,
    )
    bar = tqdm(
        total=recipe.iterations,
        initial=progress["iteration"],
        desc=f"{task.name}, {loss}, seed {seed}",
        disable=None if fabric.is_global_zero else True,
    )
    model.train()
    with bar, guards.deterministic(), guards.caught_interruption() as interrupted:
        started = time.perf_counter() - progress["seconds"]
        for batch in loader:
            iteration = progress["iteration"] = progress["iteration"] + 1
            rate = schedule.get_last_lr()[0]
            value = criterion(model(batch.image.to(fabric.device)), batch.target.to(fabric.device))
            fabric.backward(fabric.world_size * value)  # of which the ranks' gradients are the mean
            stepper.step()
            stepper.zero_grad()
            schedule.step()
            bar.update()
            if iteration % LOG_EVERY == 0:
                progress["rows"].append({"iteration": iteration, "loss": value.item(), "learning_rate": rate})
                bar.set_postfix(loss=f"{value.item():.3f}")
            last = iteration == recipe.iterations
            if iteration % recipe.evaluate_every == 0 or last:
                scores = evaluate(network, task.evaluation, len(task.class_names), fabric, workers)
                progress["scores"] = scores
                progress["curve"].append({"iteration": iteration, "miou": scores["miou"]})
            progress["seconds"] = time.perf_counter() - started
            stop = fabric.strategy.reduce_boolean_decision(interrupted.is_set(), all=False)
            if iteration % recipe.checkpoint_every == 0 or last or stop:
                save()
            if stop:
                raise KeyboardInterrupt(f"stopped after iteration {iteration}; the same command goes on from there")
    result = {
        **run,
        "iterations": recipe.iterations,
        "curve": progress["curve"],
        **progress["scores"],
        "seconds": progress["seconds"],
    }
    if fabric.is_global_zero:
        checkpoints.write_result(folder, result)
    return result
