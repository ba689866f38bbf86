"""Losses of other libraries: their focal losses and cross-entropies, as near to ours as their options allow.

Each function takes labels `[N, H, W]`, imports its library and gives a loss of logits `[N, C, H, W]`. What is said of
the libraries was read in MONAI 1.6.1, kornia 0.9.0, segmentation_models_pytorch 0.6.0 and Liger 0.8.5. MONAI and
kornia have no cross-entropy of their own.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from lal_triton.benchmarks.scenes import VOID

ALPHA, GAMMA = 0.25, 2.0  # of our focal loss
Loss = Callable[[Tensor], Tensor]


def monai_focal(target: Tensor) -> Loss:
    """Our focal loss. MONAI's own `alpha` would weigh class 0 by 1 - alpha; it computes in float32."""
    from monai.losses import FocalLoss

    loss = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=GAMMA, ignore_index=VOID)
    return lambda logits: ALPHA * loss(logits, target[:, None])


def kornia_focal(target: Tensor) -> Loss:
    """Our focal loss. kornia's `alpha` would weigh class 0 by 1 - alpha, and its mean would count void pixels."""
    from kornia.losses import focal_loss

    def loss(logits: Tensor) -> Tensor:
        total: Tensor = focal_loss(logits, target, alpha=None, gamma=GAMMA, reduction="sum", ignore_index=VOID)
        return ALPHA * total / (target != VOID).sum()

    return loss


def smp_focal(target: Tensor) -> Loss:
    """Another function than ours: the mean over the classes of a binary focal loss on each one's sigmoid."""
    from segmentation_models_pytorch.losses import FocalLoss

    loss = FocalLoss("multiclass", alpha=ALPHA, gamma=GAMMA, ignore_index=VOID)
    return lambda logits: loss(logits, target)


def smp_cross_entropy(target: Tensor) -> Loss:
    """Cross-entropy whose mean divides by all pixels, the void ones included."""
    from segmentation_models_pytorch.losses import SoftCrossEntropyLoss

    loss = SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=VOID)
    return lambda logits: loss(logits, target)


def liger_cross_entropy(target: Tensor) -> Loss:
    """Cross-entropy. Liger writes the gradient over its argument, which here is a copy of the logits."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss(ignore_index=VOID)
    return lambda logits: loss(as_rows(logits), target.flatten())


def flat_cross_entropy(target: Tensor) -> Loss:
    """Cross-entropy on a row per pixel, as language models have it."""
    return lambda logits: F.cross_entropy(as_rows(logits), target.flatten(), ignore_index=VOID)


def as_rows(logits: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N H W, C]`."""
    return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])


LOSSES: dict[str, Callable[[Tensor], Loss]] = {
    "monai_focal": monai_focal,
    "kornia_focal": kornia_focal,
    "smp_focal": smp_focal,
    "smp_cross_entropy": smp_cross_entropy,
    "liger_cross_entropy": liger_cross_entropy,
    "flat_cross_entropy": flat_cross_entropy,
}
