"""PASCAL VOC 2012 as the benchmark's data: 21 classes, palette PNGs, void = 255."""

import re
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
FORMATS = ("JPEG", "PNG")
SPLIT = "ImageSets/Segmentation/val.txt"


def read_voc(path: Path, count: int) -> list[Scene]:
    """The first `count` images of the validation set in `path`, the folder VOC2012 or the VOCdevkit that holds it."""
    root = find_root(path)
    for part in (*FOLDERS, SPLIT):
        if not (root / part).exists():
            raise FileNotFoundError(
                f"{root} holds no {part}; expected the folder VOC2012 with {', '.join(FOLDERS)}, {SPLIT}"
            )
    return [read_scene(root, name) for name in read_list(root / SPLIT)[:count]]


def read_list(path: Path) -> list[str]:
    """The images that a list names: the first field of each line, a name or a path.

    ValueError, with the list's path, where it is not UTF-8 (a byte-order mark is let pass), or names no image.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has another encoding, expected UTF-8: {error}") from error
    if "\0" in text:
        raise ValueError(f"{path} has NUL bytes, as UTF-16 does, expected UTF-8")
    fields = (line.split()[0] for line in text.splitlines() if line.strip())
    names = [re.sub(r"\.(jpe?g|png)$", "", re.split(r"[/\\]", field)[-1]) for field in fields]
    if not names:
        raise ValueError(f"{path} is empty, expected one image a line")
    return names


def find_root(path: Path) -> Path:
    """The folder VOC2012 in `path`, or `path` itself."""
    return next((folder for folder in (path / "VOC2012", path / "VOCdevkit" / "VOC2012") if folder.is_dir()), path)


def read_scene(root: Path, name: str, labels_folder: str = "SegmentationClass") -> Scene:
    """ValueError, with the file's path, where a file is no image, or the labels are not those of VOC in its size."""
    image = read_image(root / "JPEGImages" / f"{name}.jpg")
    path = root / labels_folder / f"{name}.png"
    segmentation = open_image(path)
    if segmentation.mode not in ("P", "L"):
        raise ValueError(f"{path} has the mode {segmentation.mode}, expected a palette (P) or grey (L) label image")
    labels = np.asarray(segmentation, dtype=np.int64)
    if labels.shape != image.shape[:2]:
        raise ValueError(f"{path} has the size {labels.shape}, expected that of {name}.jpg, {image.shape[:2]}")
    strange = labels[(labels >= NUM_CLASSES) & (labels != VOID)]
    if strange.size:
        raise ValueError(f"{path} has the label {strange[0]}, expected 0 to {NUM_CLASSES - 1} or {VOID} (void)")
    if segmentation.mode == "P":
        check_palette(path, segmentation, labels)
    return Scene(image, labels)


def read_image(path: Path) -> np.ndarray:
    """Red, green and blue from 0 to 1; ValueError where it is of 16 bits, which Pillow would cut off at 255."""
    image = open_image(path)
    if image.mode.startswith("I"):
        raise ValueError(f"{path} has the mode {image.mode}, expected 8 bits for each colour")
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def open_image(path: Path) -> Image.Image:
    """The decoded image; ValueError, with its path, where it is broken or cut short."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.verify()  # the checksums of a PNG, some of which loading lets pass; leaves nothing to load
        with Image.open(path, formats=FORMATS) as image:
            image.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is broken, expected a whole JPEG or PNG image: {error}") from error
    return image


def check_palette(path: Path, segmentation: Image.Image, labels: np.ndarray) -> None:
    """ValueError, with the label image's path, where a colour that it uses is neither VOC's nor the index as grey."""
    colours = np.zeros(3 * 256, dtype=np.int64)
    stored = segmentation.getpalette("RGB") or []
    colours[: len(stored)] = stored
    for label in np.unique(labels).tolist():
        found, expected = tuple(colours[3 * label : 3 * label + 3].tolist()), voc_colour(label)
        if found not in (expected, (label, label, label)):
            raise ValueError(f"{path} has the colour {found} for index {label}, expected VOC's palette, {expected}")


def voc_colour(label: int) -> tuple[int, ...]:
    """Of VOC's colour map: the bits of the label go to red, green and blue in turn, the lowest to the highest bits."""
    bits = [label >> bit & 1 for bit in range(8)]
    return tuple(sum(bit << 7 - i for i, bit in enumerate(bits[channel::3])) for channel in range(3))
