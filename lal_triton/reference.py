"""The loss in plain differentiable torch, in any floating-point dtype: what the other backends must match.

In float64 it is the oracle of the tests. Autograd keeps k^2 tensors of the logits' size. Labels are encoded as in
`labels.encode_labels`.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lal_triton.labels import INVALID, VOID, centre_mask
from lal_triton.options import LocalLoss, loss_dtype


def standard_score(logits: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """z = (x - mean) / sqrt(var + eps) over dimension 1, with the population variance; and 1 / sqrt(var + eps).

    Large logits are scaled by a power of two before they are summed and squared, and eps by its square.
    """
    scale = score_scale(logits.detach().abs().amax(1, keepdim=True))
    scaled = logits * scale
    scaled = scaled - scaled[:, :1].detach()  # equal logits have a mean without rounding then
    centred = scaled - scaled.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    flat = variance == 0  # eps is all that is left where a pixel's logits are equal, and its scaled form can underflow
    rstd = (torch.where(flat, 1, variance) + eps * scale.square()).rsqrt()
    differences = logits - logits[:, :1].detach()  # of equal logits; others are scaled
    unscaled = (differences - differences.mean(1, keepdim=True)) * eps**-0.5
    return torch.where(flat, unscaled, centred * rstd), torch.where(flat, eps**-0.5, rstd * scale)


def score_scale(largest: torch.Tensor) -> torch.Tensor:
    """The power of two that brings the largest |logit| of a pixel to 1, where it is large; else 1."""
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)
    return torch.where((largest > 2.0**40) & largest.isfinite(), scale, 1)


def merge(logits: torch.Tensor, labels: torch.Tensor, options: LocalLoss) -> torch.Tensor:
    """Eq. 1-2: f(p) = 1/xi(p) sum_q mu(p, q) w(q - p) z(q), 0 at void."""
    height, width = logits.shape[-2:]
    valid = labels != VOID
    logits = torch.where(valid[:, None], logits, 0)
    z = standard_score(logits, options.eps)[0] if options.normalize else logits
    rows, columns = options.kernel_height // 2, options.kernel_width // 2
    border = (columns, columns, rows, rows)
    padded, padded_labels = F.pad(z, border), F.pad(labels, border, value=VOID)
    merged = torch.zeros_like(z)
    xi = torch.zeros_like(z[:, 0])
    for tap, w in enumerate(options.window):
        i, j = divmod(tap, options.kernel_width)
        same = valid & (padded_labels[:, i : i + height, j : j + width] == labels)
        merged = torch.addcmul(merged, padded[:, :, i : i + height, j : j + width], same.to(z.dtype)[:, None], value=w)
        xi += same * (w if options.average == "weight" else 1.0)
    return merged / torch.where(valid, xi, 1)[:, None]


def pixel_loss(
    merged: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, options: LocalLoss
) -> torch.Tensor:
    """Eq. 3-4: the per-pixel loss `[N, H, W]` of merged logits, >= 0."""
    num_classes = merged.shape[1]
    own = labels.clamp(min=0).long()
    nlls = -torch.log_softmax(merged, 1)
    nll = nlls.gather(1, own[:, None])[:, 0].clamp(min=0)
    if options.cost == "focal":
        one_minus_p = -torch.expm1(-nll).clamp(max=-torch.finfo(nll.dtype).tiny)  # 0^(gamma - 1) has no finite slope
        return options.focal_alpha * one_minus_p**options.focal_gamma * nll
    weight = merged.new_ones(num_classes) if weight is None else weight.to(merged.dtype)
    loss = (1 - options.label_smoothing) * weight[own] * nll
    if options.label_smoothing > 0:  # else a class of logits -inf has no influence
        loss = loss + options.label_smoothing * (nlls * weight[:, None, None]).sum(1) / num_classes
    return loss.clamp(min=0)


def local_loss(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, options: LocalLoss
) -> torch.Tensor:
    """The map of per-pixel losses `[N, H, W]`: 0 at void and between centres, NaN at labels out of range.

    Logits of another size than the labels are interpolated bilinearly.
    """
    logits = logits.to(loss_dtype(logits))
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=options.align_corners)
    losses = pixel_loss(merge(logits, labels, options), labels, weight, options)
    losses = torch.where(labels == INVALID, torch.nan, losses)
    return torch.where(centre_mask(labels, options.stride), losses, 0)


def local_loss_by_image(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, options: LocalLoss
) -> torch.Tensor:
    """The same, one image at a time and each a second time in the backward: what autograd keeps is one image's."""
    maps = [
        checkpoint(local_loss, logits[i : i + 1], labels[i : i + 1], weight, options, use_reentrant=False)
        for i in range(len(logits))
    ]
    return torch.cat(maps)
