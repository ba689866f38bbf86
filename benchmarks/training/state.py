"""What a run consists of, and all that it takes to go on with it elsewhere."""

import dataclasses
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lal_triton.benchmarks.training.losses import make_criterion
from lal_triton.benchmarks.training.optimisation import make_optimizer, make_schedule
from lal_triton.benchmarks.training.task import Example, Task


class State:
    """Network, criterion, optimiser and schedule after so many iterations.

    `run` says which run it is, and `progress` holds what is to be reported of it.
    """

    def __init__(self, task: Task, loss: str, seed: int, fabric: Fabric) -> None:
        torch.manual_seed(seed)
        self.fabric = fabric
        self.network = task.make_network()
        optimizer = make_optimizer(self.network, task.recipe)
        self.schedule = make_schedule(optimizer, task.recipe)
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        group = torch.distributed.group.WORLD if fabric.world_size > 1 else None
        align_corners = getattr(self.network, "align_corners", False)
        criterion = make_criterion(loss, len(task.class_names), self.network.num_features, group, align_corners)
        self.criterion = criterion.to(fabric.device)
        precision = fabric.strategy.precision  # with the scaler of float16
        self.parts = {
            "network": self.network,
            "criterion": criterion,
            "optimizer": optimizer,
            "schedule": self.schedule,
            "precision": precision,
        }
        self.run = {
            "task": task.name,
            "loss": loss,
            "seed": seed,
            "recipe": dataclasses.asdict(task.recipe),
            "precision": precision.precision,
        }
        self.progress: dict[str, Any] = {"iteration": 0, "seconds": 0.0, "rows": [], "curve": [], "scores": {}}

    def step(self, batch: Example) -> Tensor:
        """One iteration on this rank's share of the global batch, whose loss it returns."""
        images, target = batch.image.to(self.fabric.device), batch.target.to(self.fabric.device)
        loss: Tensor = self.criterion(self.model(images), target)
        self.fabric.backward(self.fabric.world_size * loss)  # the gradients become their mean over the ranks
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.progress["iteration"] += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {"run": self.run, "progress": self.progress, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.progress = state["progress"]
