"""VOC 2012 with the annotations of SBD (Hariharan et al. 2011), known as "trainaug", as a task."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lal_triton.benchmarks.training.deeplab import DeepLabV2
from lal_triton.benchmarks.training.recipe import Recipe
from lal_triton.benchmarks.training.task import Example, Task
from lal_triton.benchmarks.voc import CLASS_NAMES, find_root, read_list, read_scene

AUGMENTED, ORIGINAL = "SegmentationClassAug", "SegmentationClass"
LISTS = "ImageSets/Segmentation"
TRAINING, EVALUATION = ("trainaug.txt", "train_aug.txt"), ("val.txt",)
COUNTS = {TRAINING: 10_582, EVALUATION: 1_449}
ORIGINS = {
    "JPEGImages": "the images of VOC 2012 (VOCtrainval_11-May-2012.tar)",
    ORIGINAL: "the labels of VOC 2012 (VOCtrainval_11-May-2012.tar)",
    AUGMENTED: "PNG labels of 0 to 20 and 255 made from SBD's .mat files",
    LISTS: "val.txt is VOC's, trainaug.txt comes with SegmentationClassAug",
}
REQUIRED = ("JPEGImages", AUGMENTED, LISTS)


class VocFolder(Sequence[Example]):
    """Examples that are read from disk when indexed.

    FileNotFoundError, before any is read, where an image or its labels are missing; ValueError, when an example is
    read, where its labels are not those of VOC.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: str) -> None:
        self.root, self.names, self.labels = root, names, labels
        for folder, suffix in (("JPEGImages", ".jpg"), (labels, ".png")):
            there = {path.name for path in (root / folder).iterdir()}
            missing = [f"{name}{suffix}" for name in names if f"{name}{suffix}" not in there]
            if missing:
                raise FileNotFoundError(
                    f"{root / folder} lacks {len(missing):,} of {len(names):,} images, the first being {missing[0]}: "
                    f"{ORIGINS[folder]}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        name = self.names[index]
        scene = read_scene(self.root, name, self.labels)
        return Example(name, torch.from_numpy(scene.image).permute(2, 0, 1), torch.from_numpy(scene.labels))


def make_task(path: Path, backbone: str, head: str = "bilinear", recipe: Recipe | None = None) -> Task:
    """`path` is the folder VOC2012 or the VOCdevkit that holds it; `backbone` and `head` are those of `DeepLabV2`.

    Evaluation is against SegmentationClass where that is there. FileNotFoundError names what is missing.
    """
    root = find_root(path)
    for part in REQUIRED:
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root} holds no {part}: {ORIGINS[part]}; expected a folder VOC2012 with {', '.join(REQUIRED)}"
            )
    labels = ORIGINAL if (root / ORIGINAL).is_dir() else AUGMENTED
    return Task(
        "voc",
        CLASS_NAMES,
        VocFolder(root, read_names(root, TRAINING), AUGMENTED),
        VocFolder(root, read_names(root, EVALUATION), labels),
        partial(DeepLabV2, len(CLASS_NAMES), backbone, head),
        recipe or Recipe(),
    )


def read_names(root: Path, files: tuple[str, ...]) -> list[str]:
    """Of the first of the lists that is there.

    Warns where their number is not the published one.
    """
    found = [root / LISTS / file for file in files if (root / LISTS / file).is_file()]
    if not found:
        raise FileNotFoundError(f"{root / LISTS} holds no {' or '.join(files)}: {ORIGINS[LISTS]}")
    names = read_list(found[0])
    if len(names) != COUNTS[files]:
        warnings.warn(
            f"{found[0]} lists {len(names):,} images, the published number is {COUNTS[files]:,}", stacklevel=3
        )
    return names
