"""The shipped fluorescence image as a task of three classes: one side of it for training, the other held out."""

from functools import partial

import numpy as np
import torch
from PIL import Image

from lal_triton.benchmarks.scenes import NUCLEI, VOID, outline
from lal_triton.benchmarks.training.recipe import Recipe
from lal_triton.benchmarks.training.small_network import SmallNetwork
from lal_triton.benchmarks.training.task import Example, Task

CLASS_NAMES = ("background", "nucleus", "boundary")
SPLIT = 320  # columns to the left of it are for training, the others are held out
HELD_OUT = 128  # rows of each example that is held out
RECIPE = Recipe(iterations=300, batch_size=2, crop_size=96, scales=(0.8, 1.25), flip=True)


def make_task() -> Task:
    """Training on 512 x 320 pixels, evaluation on four images of the remaining 512 x 192."""
    image = np.asarray(Image.open(NUCLEI / "image.png").convert("RGB"), dtype=np.float32) / 255
    instances = np.asarray(Image.open(NUCLEI / "instances.png"), dtype=np.int64)
    pixels, target = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label(instances))
    left = Example("left", pixels[:, :, :SPLIT], target[:, :SPLIT])
    right = [
        Example(
            f"right, rows from {top}", pixels[:, top : top + HELD_OUT, SPLIT:], target[top : top + HELD_OUT, SPLIT:]
        )
        for top in range(0, len(target), HELD_OUT)
    ]
    make_network = partial(SmallNetwork, len(CLASS_NAMES), left.image.mean().item(), left.image.std().item())
    return Task("nuclei", CLASS_NAMES, [left], right, make_network, RECIPE)


def label(instances: np.ndarray) -> np.ndarray:
    """Classes `[H, W]` of instances `[H, W]`, 0 = background.

    The boundary is the two outermost pixels of a nucleus, also where nuclei touch. The background's pixels that touch
    a nucleus are void, as the rim around VOC's objects is: no annotation is better than a pixel.
    """
    rim = outline(instances)
    rim |= outline(np.where(rim, 0, instances))
    labels = np.where(rim, 2, np.minimum(instances, 1))
    labels[outline((instances == 0).astype(np.int64))] = VOID
    return labels
