"""VOC 2012 with SBD's annotations, read from the layouts that it comes in."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from lal_triton.benchmarks.training import deeplab_voc
from lal_triton.benchmarks.training.deeplab_voc import DeepLabV2
from lal_triton.benchmarks.training.task import Recipe

TRAINING, EVALUATION = ["2007_000001", "2008_000002", "2009_000003"], ["2007_000004"]
LABELS = {"SegmentationClass": 7, "SegmentationClassAug": 20}  # of the lower half: tells which one was read
pytestmark = pytest.mark.filterwarnings("ignore:.*the published number is:UserWarning")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", *LABELS, "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for grey, name in enumerate(TRAINING + EVALUATION):
        image = np.full((40, 50, 3), (0, 60 * grey, 255), np.uint8)
        Image.fromarray(image).save(folder / f"JPEGImages/{name}.jpg", quality=100, subsampling=0)
        for part, label in LABELS.items():
            labels = np.repeat([[0], [255], [label], [label]], 10, axis=0).repeat(50, axis=1).astype(np.uint8)
            Image.fromarray(labels).save(folder / f"{part}/{name}.png")
    write_list(folder, "trainaug", TRAINING)
    write_list(folder, "val", EVALUATION)
    return folder


def write_list(root, name, lines):
    (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def make_task(path):
    return deeplab_voc.make_task(path, "none")


@pytest.mark.parametrize("below", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_examples_are_read_from_any_of_the_folders(tmp_path, root, below):
    task = make_task(tmp_path / below)
    assert [example.name for example in task.training] == TRAINING
    assert [example.name for example in task.evaluation] == EVALUATION
    for grey, example in enumerate(task.training):
        assert (example.image.dtype, example.target.dtype) == (torch.float32, torch.int64)
        assert (example.image.shape, example.target.shape) == ((3, 40, 50), (40, 50))
        means = torch.tensor([0, 60 * grey, 255]) / 255
        torch.testing.assert_close(example.image.mean((1, 2)), means, rtol=0, atol=3 / 255)  # JPEG rounds colours
        assert example.target[::10, 0].tolist() == [0, 255, 20, 20]


def test_the_task_is_deeplabs(root):
    task = deeplab_voc.make_task(root, "none", "deconv")
    assert task.name == "voc"
    assert task.recipe == Recipe()
    assert (len(task.class_names), task.class_names[0], task.class_names[20]) == (21, "background", "tv monitor")
    with torch.device("meta"):
        network = task.make_network()
    assert isinstance(network, DeepLabV2)
    assert isinstance(network.upsample, torch.nn.ConvTranspose2d)
    assert network.head[0].out_channels == 21


def test_nothing_is_read_before_it_is_asked_for(root):
    task = make_task(root)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        for path in (root / folder).iterdir():
            path.write_bytes(b"")
    assert len(task.training) == 3
    with pytest.raises(ValueError, match=r"2007_000001\.jpg is broken"):
        task.training[0]


def test_evaluation_is_against_vocs_own_labels_where_they_are(root):
    assert make_task(root).evaluation[0].target[30, 0] == LABELS["SegmentationClass"]
    (root / "SegmentationClass").rename(root / "elsewhere")
    assert make_task(root).evaluation[0].target[30, 0] == LABELS["SegmentationClassAug"]


def test_lists_of_paths_and_another_name_are_accepted(root):
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    write_list(root, "train_aug", [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in TRAINING])
    write_list(root, "val", [f"{name}  " for name in EVALUATION] + [""])
    task = make_task(root)
    assert task.training.names == TRAINING
    assert task.evaluation.names == EVALUATION


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("JPEGImages", r"holds no JPEGImages: the images of VOC 2012 .*VOCtrainval_11-May-2012\.tar"),
        ("SegmentationClassAug", "holds no SegmentationClassAug: PNG labels .* made from SBD's"),
        ("ImageSets/Segmentation", "holds no ImageSets/Segmentation"),
        ("ImageSets/Segmentation/trainaug.txt", "holds no trainaug.txt or train_aug.txt: .* comes with Segment"),
        ("ImageSets/Segmentation/val.txt", "holds no val.txt: val.txt is VOC's"),
        ("JPEGImages/2008_000002.jpg", r"JPEGImages lacks 1 of 3 images, the first being 2008_000002\.jpg: the images"),
        ("SegmentationClassAug/2009_000003.png", r"ClassAug lacks 1 of 3 .* 2009_000003\.png: .* SBD's"),
        ("SegmentationClass/2007_000004.png", r"Class lacks 1 of 1 .* 2007_000004\.png: the labels of VOC 2012"),
    ],
)
def test_errors_name_what_is_missing_and_where_it_comes_from(root, missing, message):
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message) as error:
        make_task(root)
    assert str(root) in str(error.value)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no JPEGImages"):
        make_task(tmp_path / "nowhere")


def test_an_empty_list_is_an_error(root):
    write_list(root, "val", [])
    with pytest.raises(ValueError, match=r"val\.txt is empty, expected one image a line"):
        make_task(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((40, 50), 21, np.uint8), r"2007_000001\.png has the label 21, expected 0 to 20 or 255"),
        (np.zeros((50, 40), np.uint8), r"2007_000001\.png has the size \(50, 40\)"),
        (np.zeros((40, 50, 3), np.uint8), r"2007_000001\.png has the mode RGB"),
    ],
)
def test_labels_that_are_not_vocs_are_an_error(root, labels, message):
    Image.fromarray(labels).save(root / f"SegmentationClassAug/{TRAINING[0]}.png")
    task = make_task(root)
    with pytest.raises(ValueError, match=message):
        task.training[0]
    assert task.training[1].name == TRAINING[1]


@pytest.mark.filterwarnings("error:.*the published number is")
def test_other_numbers_of_images_than_the_published_ones_are_warned_of(root, monkeypatch):
    with pytest.warns(UserWarning, match="the published number is") as caught:
        make_task(root)
    trainaug, val = (str(warning.message) for warning in caught)
    assert trainaug.endswith("trainaug.txt lists 3 images, the published number is 10,582")
    assert val.endswith("val.txt lists 1 images, the published number is 1,449")
    monkeypatch.setattr(deeplab_voc, "COUNTS", {deeplab_voc.TRAINING: 3, deeplab_voc.EVALUATION: 1})
    make_task(root)
