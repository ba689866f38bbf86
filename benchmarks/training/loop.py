"""The training loop, on one process or on the ranks of a Fabric, from the last checkpoint in the folder if any."""

import time
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from tqdm import tqdm

from lal_triton.benchmarks.training import checkpoints, guards
from lal_triton.benchmarks.training.evaluation import evaluate
from lal_triton.benchmarks.training.state import State
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
    folder.mkdir(parents=True, exist_ok=True)
    state = State(task, loss, seed, fabric)
    fabric.barrier()
    saved = checkpoints.read_checkpoint(folder, state.run)
    if saved is not None:
        state.load_state_dict(saved)
    go_on(state, task, folder, workers)
    progress = state.progress
    result = {
        **state.run,
        "iterations": progress["iteration"],
        "curve": progress["curve"],
        **progress["scores"],
        "seconds": progress["seconds"],
    }
    if fabric.is_global_zero:
        checkpoints.write_result(folder, result)
    return result


def go_on(state: State, task: Task, folder: Path, workers: int) -> None:
    """The iterations that are left, with evaluations and checkpoints."""
    recipe, fabric, progress = task.recipe, state.fabric, state.progress
    stream = Stream(task.training, recipe, state.run["seed"])
    loader = make_loader(stream, recipe, progress["iteration"], fabric.global_rank, fabric.world_size, workers)
    bar = tqdm(
        total=recipe.iterations,
        initial=progress["iteration"],
        desc=f"{task.name}, {state.run['loss']}, seed {state.run['seed']}",
        disable=None if fabric.is_global_zero else True,
    )
    state.model.train()
    with bar, guards.deterministic(), guards.caught_interruption() as interrupted:
        started = time.perf_counter() - progress["seconds"]
        for batch in loader:
            rate = state.schedule.get_last_lr()[0]
            loss = state.step(batch)
            bar.update()
            iteration = progress["iteration"]
            last = iteration == recipe.iterations
            if iteration % LOG_EVERY == 0:
                row = {"iteration": iteration, "loss": loss.item(), "learning_rate": rate}
                progress["rows"].append(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}")
            if iteration % recipe.evaluate_every == 0 or last:
                progress["scores"] = evaluate(state.network, task.evaluation, len(task.class_names), fabric, workers)
                progress["curve"].append({"iteration": iteration, "miou": progress["scores"]["miou"]})
            progress["seconds"] = time.perf_counter() - started
            stop = fabric.strategy.reduce_boolean_decision(interrupted.is_set(), all=False)
            if (iteration % recipe.checkpoint_every == 0 or last or stop) and fabric.is_global_zero:
                checkpoints.write_checkpoint(folder, state.state_dict())
                checkpoints.write_log(folder, progress["rows"])
            if stop:
                raise KeyboardInterrupt(f"stopped after iteration {iteration}; the same command goes on from there")
