"""Per-pixel arrays for the figures: predictions of several networks, and loss and gradient of CE and LAL."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss
from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.training.evaluation import predict, upsampled_logits
from lal_triton.benchmarks.training.task import Example

ROWS = 3
CANDIDATES = 40  # the first examples, of which those are shown where the networks disagree most
MASK = 40  # side of the part that predictions are shown of, in pixels
ZOOM = 64  # that loss and gradient are shown of


def collect(examples: Sequence[Example], networks: Mapping[str, nn.Module]) -> dict[str, np.ndarray]:
    """Arrays by name, of the examples where the networks, by their loss, disagree at most pixels.

    `image_0` `[h, w, 3]`, `truth_0` and `<loss>_0` `[h, w]`, uint8, of the square with the most disagreement, and so on
    for each row; and the maps of `zoom_in` for the network trained with cross-entropy, if there is one.
    """
    candidates = [examples[index] for index in range(min(CANDIDATES, len(examples)))]
    predictions = [
        {loss: predict(network, example.image).cpu() for loss, network in networks.items()} for example in candidates
    ]
    places = [
        densest(disagreement(list(labels.values()) or [example.target]) & (example.target != VOID), MASK)
        for labels, example in zip(predictions, candidates, strict=True)
    ]
    shown = sorted(range(len(candidates)), key=lambda index: -places[index][0])[:ROWS]
    arrays = {}
    for row, index in enumerate(shown):
        _, top, left = places[index]
        part = slice(top, top + MASK), slice(left, left + MASK)
        arrays[f"image_{row}"] = to_bytes(candidates[index].image)[part]
        for name, labels in {"truth": candidates[index].target, **predictions[index]}.items():
            arrays[f"{name}_{row}"] = labels[part].numpy().astype(np.uint8)
    if "ce" in networks:
        inner = [up_to_last_logit(candidates[index], networks["ce"]) for index in shown]
        arrays |= {f"zoom_{name}": array for name, array in zoom_in(inner, networks["ce"]).items()}
    return arrays


def disagreement(predictions: Sequence[Tensor]) -> Tensor:
    """Whether any two of the label images `[H, W]` differ, `[H, W]`."""
    return (torch.stack(tuple(predictions)) != predictions[0]).any(0)


def to_bytes(image: Tensor) -> np.ndarray:
    return (255 * image.permute(1, 2, 0)).round().numpy().astype(np.uint8)


def up_to_last_logit(example: Example, network: nn.Module) -> Example:
    """Without what lies beyond the last logits of a network whose logits lie at every `output_stride`-th pixel."""
    if not getattr(network, "align_corners", False):
        return example
    height, width = ((side - 1) // network.output_stride * network.output_stride + 1 for side in example.target.shape)
    return Example(example.name, example.image[:, :height, :width], example.target[:height, :width])


def zoom_in(examples: Sequence[Example], network: nn.Module) -> dict[str, np.ndarray]:
    """Loss and gradient of every pixel, where the network is wrong at most pixels.

    `loss_ce` and `loss_lal` `[h, w]` in nats. `gradient_ce` (mean cross-entropy), `gradient_lal_p1` and `gradient_lal`
    (K = 5, p = 1 and 3) `[h, w]`: norms over the classes, by their mean over the valid pixels of the example.
    """
    scores = [upsampled_logits(network, example.image).float().cpu() for example in examples]
    predictions = [logits.argmax(0) for logits in scores]
    places = [
        densest((labels != example.target) & (example.target != VOID), ZOOM)
        for labels, example in zip(predictions, examples, strict=True)
    ]
    worst = max(range(len(places)), key=lambda index: places[index][0])
    example, (_, top, left) = examples[worst], places[worst]
    logits, target = scores[worst][None], example.target[None]
    maps = {
        "image": torch.from_numpy(to_bytes(example.image)),
        "truth": example.target.to(torch.uint8),
        "prediction": predictions[worst].to(torch.uint8),
        "loss_ce": CrossEntropyLoss(reduction="none")(logits, target)[0],
        "loss_lal": LocallyAdaptiveLoss(5, reduction="none")(logits, target)[0],
        "gradient_ce": relative_gradient(CrossEntropyLoss(), logits, target),
        "gradient_lal_p1": relative_gradient(LocallyAdaptiveLoss(5, p=1), logits, target),
        "gradient_lal": relative_gradient(LocallyAdaptiveLoss(5, p=3), logits, target),
    }
    return {name: values[top : top + ZOOM, left : left + ZOOM].numpy() for name, values in maps.items()}


def densest(pixels: Tensor, side: int) -> tuple[float, int, int]:
    """Count, top and left of the square of that side (or of the image's) that holds most of the pixels `[H, W]`."""
    window = tuple(min(side, whole) for whole in pixels.shape)
    counts = F.avg_pool2d(pixels[None].double(), window, stride=1, divisor_override=1)[0]
    best = int(counts.argmax())
    return float(counts.max()), best // counts.shape[1], best % counts.shape[1]


def relative_gradient(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Norm `[H, W]` of the loss's gradient at every pixel, as a multiple of the mean over the valid pixels."""
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad is not None
    norms = leaf.grad.norm(dim=1)[0]
    return norms / norms[target[0] != VOID].mean()
