"""Optimiser and schedule of a recipe."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lal_triton.benchmarks.training.recipe import Recipe


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


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """DeepLab's "poly": iteration t of T, from 0, has the rate times (1 - t / T)^power."""
    return LambdaLR(optimizer, lambda iteration: (1 - iteration / recipe.iterations) ** recipe.poly_power)
