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

ROWS = 4
ZOOM = 64  # side of the part that loss and gradient are shown of, in pixels


def collect(examples: Sequence[Example], networks: Mapping[str, nn.Module]) -> dict[str, np.ndarray]:
    """Arrays by name, of the first examples and the networks by loss.

    `image_0` `[H, W, 3]`, `truth_0` and `<loss>_0` `[H, W]`, uint8, and so on for each row; and the maps of `zoom_in`
    for the network trained with cross-entropy, if there is one.
    """
    shown = [examples[row] for row in range(min(ROWS, len(examples)))]
    arrays = {}
    for row, example in enumerate(shown):
        arrays[f"image_{row}"] = to_bytes(example.image)
        arrays[f"truth_{row}"] = example.target.numpy().astype(np.uint8)
        for loss, network in networks.items():
            arrays[f"{loss}_{row}"] = predict(network, example.image).cpu().numpy().astype(np.uint8)
    if "ce" in networks:
        inner = [up_to_last_logit(example, networks["ce"]) for example in shown]
        arrays |= {f"zoom_{name}": array for name, array in zoom_in(inner, networks["ce"]).items()}
    return arrays


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
        most_errors((labels != example.target) & (example.target != VOID))
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


def most_errors(errors: Tensor) -> tuple[float, int, int]:
    """Count, top and left of the square of side `ZOOM` (or of the image) that holds most of the errors `[H, W]`."""
    window = tuple(min(ZOOM, side) for side in errors.shape)
    counts = F.avg_pool2d(errors[None].double(), window, stride=1, divisor_override=1)[0]
    best = int(counts.argmax())
    return float(counts.max()), best // counts.shape[1], best % counts.shape[1]


def relative_gradient(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Norm `[H, W]` of the loss's gradient at every pixel, as a multiple of the mean over the valid pixels."""
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad is not None
    norms = leaf.grad.norm(dim=1)[0]
    return norms / norms[target[0] != VOID].mean()
