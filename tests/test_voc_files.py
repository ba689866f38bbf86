"""The files of a VOC folder as they are found in the wild: every reader takes them, or names the one that it cannot."""

import io

import numpy as np
import pytest
from PIL import Image

from lal_triton import cli
from lal_triton.benchmarks import voc

LISTS = {
    "names": b"2007_000001\n2007_000002\n",
    "flags": b"2007_000001 -1\n2007_000002  1\n",
    "pairs of paths": b"/JPEGImages/2007_000001.jpg /Labels/2007_000001.png\nJPEGImages/2007_000002.jpg x\n",
    "carriage returns": b"2007_000001\r\n\r\n2007_000002\r\n",
    "byte-order mark": b"\xef\xbb\xbf2007_000001\n2007_000002",
    "backslashes": b"JPEGImages\\2007_000001.jpg\n..\\..\\2007_000002.jpg\n",
    "outside": b"../../2007_000001\n/etc/2007_000002\n",
}


@pytest.fixture
def folder(tmp_path):
    """One image of 20 x 30 pixels, half class 15, half class 20, in VOC's palette."""
    root = tmp_path / "VOC2012"
    for part in (*voc.FOLDERS, "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(image_of(root))
    write_labels(root, [channel for label in range(256) for channel in voc.voc_colour(label)])
    (root / voc.SPLIT).write_text("one\n")
    return root


def image_of(root):
    return root / "JPEGImages/one.jpg"


def labels_of(root):
    return root / "SegmentationClass/one.png"


def write_labels(root, palette):
    labels = Image.fromarray(np.repeat([[15], [20]], 10, axis=0).repeat(30, axis=1).astype(np.uint8))
    if palette is not None:
        labels.putpalette(palette)
    labels.save(labels_of(root))


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_lists(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert voc.read_list(path) == ["2007_000001", "2007_000002"]


def test_a_name_keeps_its_dots(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("scene.v2\nscene.v3.png\n")
    assert voc.read_list(path) == ["scene.v2", "scene.v3"]


@pytest.mark.parametrize(
    "content",
    ["one\n".encode("utf-16"), "one\n".encode("utf-16-le"), "caf\xe9\n".encode("latin-1"), b" \n\r\n"],
    ids=["UTF-16", "UTF-16 without a mark", "latin-1", "empty"],
)
def test_lists_that_cannot_be_read_are_named(folder, content, capsys):
    path = folder / voc.SPLIT
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*expected"):
        voc.read_list(path)
    assert cli.main(["bench", "--quick", "--voc", str(folder)]) == 2
    assert str(path) in capsys.readouterr().err


def test_labels_in_the_palette_of_voc(folder):
    assert voc.voc_colour(1) == (128, 0, 0)
    assert voc.voc_colour(20) == (0, 64, 128)
    assert voc.voc_colour(255) == (224, 224, 192)
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


@pytest.mark.parametrize("palette", [[i // 3 for i in range(768)], None], ids=["grey palette", "no palette"])
def test_grey_labels(folder, palette):
    write_labels(folder, palette)
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


def test_another_palette_is_named(folder):
    write_labels(folder, [255 - i // 3 for i in range(768)])
    with pytest.raises(ValueError, match=r"one\.png has the colour .* for index 15, expected VOC's palette"):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize("file", [image_of, labels_of], ids=["image", "labels"])
@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty", "of another kind"])
def test_broken_images_are_named(folder, file, damage, capsys):
    path = file(folder)
    content = path.read_bytes()
    damaged = {"cut short": content[: len(content) * 2 // 3], "garbage": b"no image", "empty": b""}
    path.write_bytes(damaged.get(damage, b"\x89PNG\r\n\x1a\n" + content[8:20]))
    with pytest.raises(ValueError, match=f"{path} is no whole image"):
        voc.read_scene(folder, "one")
    assert cli.main(["bench", "--quick", "--voc", str(folder)]) == 2
    assert str(path) in capsys.readouterr().err


def test_an_image_that_is_a_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"one\.jpg is no whole image"):
        voc.read_scene(folder, "one")


def test_labels_of_sixteen_bits_are_named(folder):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(buffer, "png")
    labels_of(folder).write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"one\.png has the mode I;16, expected"):
        voc.read_scene(folder, "one")
