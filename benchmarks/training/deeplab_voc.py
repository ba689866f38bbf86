"""The paper's task: DeepLabV2 with a ResNet, on VOC 2012 with the annotations of SBD, known as "trainaug"."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig

from lal_triton.benchmarks.training.task import Example, Output, Recipe, Task
from lal_triton.benchmarks.voc import CLASS_NAMES, find_root, read_list, read_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the backbone is trained on
RATES = (6, 12, 18, 24)
STRIDE = 8
HEADS = ("bilinear", "deconv")
RESNET_101 = ResNetConfig(
    embedding_size=64, hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 23, 3], layer_type="bottleneck"
)


class DeepLabV2(nn.Module):
    """Images `[N, 3, H, W]` in [0, 1] to logits and the features of the last stage, at every 8th pixel from the first.

    Logits `[N, C, h, w]` and features `[N, D, h, w]` with h = ceil(H / 8). With the head "deconv" the logits are
    upsampled to 8 h - 7 rows by a transposed convolution for each class, which starts as bilinear interpolation.
    Batch norm is frozen: its statistics and affine parameters stay those of the backbone, in training mode too.

    Args:
        backbone: a file (safetensors, or of torch.save) with the state of a transformers ResNet with or without its
            classifier, a folder or a name at the Hugging Face hub ("microsoft/resnet-101") to load it from, or "none"
            for random weights.
        head: "bilinear" leaves the upsampling to the loss, "deconv" learns it.
        config: of the ResNet, whose strides of stages 3 and 4 become dilations.

    Raises:
        FileNotFoundError: the backbone is neither here nor at the hub, or the hub is out of reach; HF_HUB_OFFLINE=1 in
            the environment spares the minutes of retries.
        ValueError: the backbone's state is not that of the configured ResNet.
    """

    mean: Tensor
    std: Tensor
    align_corners = True
    output_stride = STRIDE

    def __init__(
        self, num_classes: int, backbone: str = "none", head: str = "bilinear", config: ResNetConfig = RESNET_101
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head = {head!r}, expected one of {', '.join(HEADS)}")
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.backbone = make_backbone(backbone, config)
        self.num_features: int = self.backbone.channels[-1]
        for stage, dilation in zip(self.backbone.encoder.stages[-2:], (2, 4), strict=True):
            dilate(stage, dilation)
        for norm in self._norms():
            norm.requires_grad_(False)
        self.head = nn.ModuleList(make_classifier(self.num_features, num_classes, rate) for rate in RATES)
        self.upsample = make_deconvolution(num_classes) if head == "deconv" else nn.Identity()
        self.train()

    def forward(self, images: Tensor) -> Output:
        features = self.backbone((images - self.mean) / self.std).feature_maps[-1]
        logits: Tensor = sum(classifier(features) for classifier in self.head)  # type: ignore[assignment]
        return Output(self.upsample(logits), features)

    def train(self, mode: bool = True) -> "DeepLabV2":
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]


def dilate(stage: nn.Module, dilation: int) -> None:
    """Turns the stage's stride 2 into a dilation.

    What is computed at every position that the strided stage has stays the same: the first 3 x 3 convolution, which
    had the stride (transformers puts it there, as ResNet v1.5 does, and not into the 1 x 1 before it), keeps the
    dilation of the stage before. The shortcut's 1 x 1 convolution loses its stride, too.
    """
    first = True
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                rate = dilation // 2 if first else dilation
                module.dilation = module.padding = (rate, rate)
                first = False


def make_classifier(num_features: int, num_classes: int, rate: int) -> nn.Conv2d:
    classifier = nn.Conv2d(num_features, num_classes, 3, padding=rate, dilation=rate)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return classifier


def make_deconvolution(num_classes: int) -> nn.ConvTranspose2d:
    deconvolution = nn.ConvTranspose2d(
        num_classes, num_classes, 2 * STRIDE - 1, STRIDE, padding=STRIDE - 1, groups=num_classes, bias=False
    )
    tent = 1 - torch.arange(1 - STRIDE, STRIDE).abs() / STRIDE
    with torch.no_grad():
        deconvolution.weight.copy_(tent[:, None] * tent)
    return deconvolution


def make_backbone(source: str, config: ResNetConfig) -> ResNetBackbone:
    if source == "none":
        return ResNetBackbone(config)
    path = Path(source)
    weights: dict[str, Any] = {"pretrained_model_name_or_path": source}
    if path.is_file():
        weights = {"pretrained_model_name_or_path": None, "state_dict": read_state(path)}
    loaded: Any
    try:
        loaded = ResNetBackbone.from_pretrained(**weights, config=config, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(
            f"backbone {source!r} is no file or folder of weights here, nor could it be had from the Hugging Face hub "
            f"({error}); expected the state of a transformers ResNet, a name such as microsoft/resnet-101, or none"
        ) from error
    except RuntimeError as error:  # whose report is in transformers' log
        raise ValueError(f"backbone {source} has tensors of other sizes than the configured ResNet") from error
    backbone, report = loaded
    unknown = {name for name in report["unexpected_keys"] if not name.startswith("classifier.")}
    for names, problem in ((report["missing_keys"], "lacks the tensor"), (unknown, "has the unknown tensor")):
        if names:
            raise ValueError(
                f"backbone {source} {problem} {min(names)} and {len(names) - 1} others; "
                f"expected those of a transformers ResNet with the depths {config.depths}"
            )
    return backbone  # type: ignore[no-any-return]


def read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever it stumbles over
        raise ValueError(f"backbone {path} is neither a safetensors file nor one that torch.save wrote") from error
    if not isinstance(state, dict) or not all(isinstance(values, Tensor) for values in state.values()):
        raise ValueError(f"backbone {path} holds no state_dict, expected tensors by name")
    return state


# ---- the data

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


def make_task(path: Path, backbone: str, head: str = "bilinear") -> Task:
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
        Recipe(),
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
