"""The shipped fluorescence image as a task of three classes: one side of it for training, the other held out."""

from functools import partial

import numpy as np
import torch
from PIL import Image

from lal_triton.benchmarks.scenes import NUCLEI, VOID, outline
from lal_triton.benchmarks.training.small_network import RECIPE, SmallNetwork
from lal_triton.benchmarks.training.task import Example, Task

CLASS_NAMES = ("background", "nucleus", "boundary")
SPLIT = 320  # columns to the left of it are for training, the others are held out
HEIGHT = 128  # rows of an example


def make_task() -> Task:
    """Training on four images of 128 x 320 pixels, evaluation on four of 128 x 192."""
    image = np.asarray(Image.open(NUCLEI / "image.png").convert("RGB"), dtype=np.float32) / 255
    instances = np.asarray(Image.open(NUCLEI / "instances.png"), dtype=np.int64)
    whole = Example("nuclei", torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label(instances)))
    training, evaluation = cut(whole, slice(SPLIT)), cut(whole, slice(SPLIT, None))
    pixels = torch.stack([example.image for example in training])
    make_network = partial(SmallNetwork, len(CLASS_NAMES), pixels.mean().item(), pixels.std().item())
    return Task("nuclei", CLASS_NAMES, training, evaluation, make_network, RECIPE)


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
