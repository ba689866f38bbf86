"""The shipped fluorescence image as a task of three classes: one side of it for training, the other held out."""

import numpy as np
import torch

from lal_triton.benchmarks.scenes import VOID, outline, read_instances
from lal_triton.benchmarks.training import small_network
from lal_triton.benchmarks.training.task import Example, Task

CLASS_NAMES = ("background", "nucleus", "boundary")
SPLIT = 320  # columns to the left of it are for training, the others are held out
HEIGHT = 128  # rows of an example


def make_task() -> Task:
    """Training on four images of 128 x 320 pixels, evaluation on four of 128 x 192."""
    image, instances = read_instances()
    whole = Example("nuclei", torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label(instances)))
    training, evaluation = cut(whole, slice(SPLIT)), cut(whole, slice(SPLIT, None))
    return small_network.make_task("nuclei", CLASS_NAMES, training, evaluation)


def cut(whole: Example, columns: slice) -> list[Example]:
    rows = [slice(top, top + HEIGHT) for top in range(0, len(whole.target), HEIGHT)]
    return [Example(f"rows from {r.start}", whole.image[:, r, columns], whole.target[r, columns]) for r in rows]


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
