"""PASCAL VOC 2012 as the benchmark's data: 21 classes, palette PNGs, void = 255."""

from pathlib import Path

import numpy as np
from PIL import Image

from lal_triton.benchmarks.scenes import VOID, Scene

CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
NUM_CLASSES = len(CLASS_NAMES)
FOLDERS = ("JPEGImages", "SegmentationClass")
SPLIT = "ImageSets/Segmentation/val.txt"


def read_voc(path: Path, count: int) -> list[Scene]:
    """The first `count` images of the validation set in `path`, the folder VOC2012 or the VOCdevkit that holds it."""
    root = find_root(path)
    for part in (*FOLDERS, SPLIT):
        if not (root / part).exists():
            raise FileNotFoundError(
                f"{root} holds no {part}; expected the folder VOC2012 with {', '.join(FOLDERS)}, {SPLIT}"
            )
    names = (root / SPLIT).read_text().split()[:count]
    if not names:
        raise ValueError(f"{root / SPLIT} is empty, expected one image name per line")
    return [read_scene(root, name) for name in names]


def find_root(path: Path) -> Path:
    """The folder VOC2012 in `path`, or `path` itself."""
    return next((folder for folder in (path / "VOC2012", path / "VOCdevkit" / "VOC2012") if folder.is_dir()), path)


def read_scene(root: Path, name: str, labels_folder: str = "SegmentationClass") -> Scene:
    """ValueError, with the image's name, where the labels are not those of VOC in the size of the image."""
    image = np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB"), dtype=np.float32) / 255
    segmentation = Image.open(root / labels_folder / f"{name}.png")
    if segmentation.mode not in ("P", "L"):
        raise ValueError(f"{name}.png has the mode {segmentation.mode}, expected a palette (P) or grey (L) label image")
    labels = np.asarray(segmentation, dtype=np.int64)
    if labels.shape != image.shape[:2]:
        raise ValueError(f"{name}.png has the size {labels.shape}, expected that of {name}.jpg, {image.shape[:2]}")
    strange = labels[(labels >= NUM_CLASSES) & (labels != VOID)]
    if strange.size:
        raise ValueError(f"{name}.png has the label {strange[0]}, expected 0 to {NUM_CLASSES - 1} or {VOID} (void)")
    return Scene(image, labels)
