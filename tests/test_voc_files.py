"""The files of a VOC folder as they are found in the wild: every reader takes them, or names the one that it cannot."""

import re
import zlib

import numpy as np
import pytest
from PIL import Image

from lal_triton import cli
from lal_triton.benchmarks import voc

pytestmark = pytest.mark.filterwarnings("ignore:.*the published number is:UserWarning")
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
    for part in (*voc.FOLDERS, "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(image_of(root))
    write_labels(root, [channel for label in range(256) for channel in voc.voc_colour(label)])
    (root / "SegmentationClassAug").symlink_to("SegmentationClass")
    for split in (voc.SPLIT, "ImageSets/Segmentation/trainaug.txt"):
        (root / split).write_text("one\n")
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


def cut_image(root):
    image_of(root).write_bytes(image_of(root).read_bytes()[:-100])


def change_palette(root):
    write_labels(root, [255 - i // 3 for i in range(768)])


def remove_labels(root):
    labels_of(root).unlink()


def commands(folder):
    """The two that read VOC."""
    output = str(folder / "results")
    yield ["bench", "--quick", "--device", "cpu", "--voc", str(folder), "--output", output]
    pytest.importorskip("transformers")
    quick = ["--backbone", "none", "--loss", "ce", "--iterations", "1", "--batch-size", "1"]
    yield ["train", "--voc", str(folder), *quick, "--output", output]


def check_error(command, capsys, message):
    """A command ends with one line that holds the message."""
    assert cli.main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lal-triton: error")]
    assert re.match(f"lal-triton: error: {message}", line)


def rewrite_chunks(path, change):
    """Replaces what `change(kind, data)` returns of a PNG's chunks, with right checksums."""
    content, place = path.read_bytes(), 8
    written = content[:place]
    while place < len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        kind, data = content[place + 4 : place + 8], change(content[place + 4 : place + 8], content[place + 8 : end])
        written += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        place = end + 4
    path.write_bytes(written)


def test_the_error_of_a_worker_is_one_line(folder, capsys):
    cut_image(folder)
    *_, train = commands(folder)
    check_error([*train, "--workers", "1"], capsys, f"{image_of(folder)} ")


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
    ("content", "expected"),
    [
        pytest.param("one\n".encode("utf-16"), "UTF-8", id="UTF-16"),
        pytest.param("one\n".encode("utf-16-le"), "UTF-8", id="UTF-16 without a mark"),
        pytest.param("caf\xe9\n".encode("latin-1"), "UTF-8", id="latin-1"),
        pytest.param(b" \n\r\n", "one image a line", id="empty"),
    ],
)
def test_lists_that_cannot_be_read_are_named(folder, content, expected, capsys):
    path = folder / voc.SPLIT
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*expected {expected}"):
        voc.read_list(path)
    for command in commands(folder):
        check_error(command, capsys, f"{path} .*expected {expected}")


def test_labels_in_the_palette_of_voc(folder):
    assert voc.voc_colour(1) == (128, 0, 0)
    assert voc.voc_colour(20) == (0, 64, 128)
    assert voc.voc_colour(255) == (224, 224, 192)
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


@pytest.mark.parametrize("palette", [[i // 3 for i in range(768)], None], ids=["grey palette", "no palette"])
def test_grey_labels(folder, palette):
    write_labels(folder, palette)
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


def test_a_palette_need_not_have_whole_colours(folder):
    rewrite_chunks(labels_of(folder), lambda kind, data: data[:64] if kind == b"PLTE" else data)
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


def test_colours_that_no_pixel_has_are_not_asked_for(folder):
    colours = {15: voc.voc_colour(15), 20: (20, 20, 20)}
    write_labels(folder, [channel for label in range(21) for channel in colours.get(label, (1, 2, 3))])
    assert np.unique(voc.read_scene(folder, "one").labels).tolist() == [15, 20]


def test_a_palette_that_is_too_short_is_named(folder):
    rewrite_chunks(labels_of(folder), lambda kind, data: data[: 3 * 20] if kind == b"PLTE" else data)
    with pytest.raises(
        ValueError, match=r"one\.png has the colour \(0, 0, 0\) for index 20, expected .*\(0, 64, 128\)"
    ):
        voc.read_scene(folder, "one")


def test_another_palette_is_named(folder):
    change_palette(folder)
    with pytest.raises(ValueError, match=r"one\.png has the colour .* for index 15, expected VOC's palette"):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize("file", [image_of, labels_of], ids=["image", "labels"])
@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty", "of another kind"])
def test_broken_images_are_named(folder, file, damage):
    path = file(folder)
    content = path.read_bytes()
    damaged = {"cut short": content[: len(content) * 2 // 3], "garbage": b"no image", "empty": b""}
    path.write_bytes(damaged.get(damage, b"\x89PNG\r\n\x1a\n" + content[8:20]))
    with pytest.raises(ValueError, match=f"{path} is broken, expected a whole JPEG or PNG image") as error:
        voc.read_scene(folder, "one")
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("kept", [20, -20, -6], ids=["header", "pixels", "end"])
def test_labels_cut_anywhere_are_named(folder, kept):
    path = labels_of(folder)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is broken"):
        voc.read_scene(folder, "one")


def test_labels_with_a_wrong_checksum_are_named(folder):
    path = labels_of(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the pixels' checksum
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is broken"):
        voc.read_scene(folder, "one")


def test_labels_with_a_header_of_another_length_are_named(folder):
    rewrite_chunks(labels_of(folder), lambda kind, data: data[:5] if kind == b"IHDR" else data)
    with pytest.raises(ValueError, match=r"one\.png is broken"):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize("file", [image_of, labels_of], ids=["image", "labels"])
def test_images_of_another_format_are_named(folder, file):
    Image.new("L", (30, 20)).save(file(folder), "bmp")
    with pytest.raises(ValueError, match=f"{file(folder)} is broken, expected a whole JPEG or PNG image"):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize("file", [image_of, labels_of], ids=["image", "labels"])
def test_missing_images_are_named(folder, file):
    file(folder).unlink()
    with pytest.raises(FileNotFoundError, match=str(file(folder))):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_image, r"JPEGImages/one\.jpg is broken, expected a whole"),
        (change_palette, r"SegmentationClass(Aug)?/one\.png has the colour"),
        (remove_labels, r"SegmentationClass(Aug lacks .*|/)one\.png"),
    ],
)
def test_commands_end_with_the_name_of_the_file(folder, damage, message, capsys):
    damage(folder)
    for command in commands(folder):
        check_error(command, capsys, f".*{folder}/{message}")


def test_an_image_that_is_a_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"one\.jpg is broken"):
        voc.read_scene(folder, "one")


@pytest.mark.parametrize("file", [image_of, labels_of], ids=["image", "labels"])
def test_sixteen_bits_are_named(folder, file):
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(file(folder), "png")
    with pytest.raises(ValueError, match=f"{file(folder)} has the mode I;16, expected"):
        voc.read_scene(folder, "one")
