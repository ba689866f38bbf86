"""The loss in plain differentiable torch, in any floating-point dtype: what the other backends must match.

In float64 it is the oracle of the tests. Autograd keeps k^2 tensors of the logits' size. Labels are encoded as in
`labels.encode_labels`.
"""

import torch
import torch.nn.functional as F

from lal_triton.labels import INVALID, VOID, centre_mask
from lal_triton.options import LocalLoss, loss_dtype


def standard_score(logits: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) over the classes, with the population variance."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + eps).rsqrt()


def merge(logits: torch.Tensor, labels: torch.Tensor, options: LocalLoss) -> torch.Tensor:
    """Eq. 1-2: f(p) = 1/xi(p) sum_q mu(p, q) w(q - p) z(q), 0 at void."""
    height, width = logits.shape[-2:]
    z = standard_score(logits, options.eps) if options.normalize else logits
    rows, columns = options.kernel_height // 2, options.kernel_width // 2
    border = (columns, columns, rows, rows)
    padded, padded_labels = F.pad(z, border), F.pad(labels, border, value=VOID)
    valid = labels != VOID
    merged = torch.zeros_like(z)
    xi = torch.zeros_like(z[:, 0])
    for tap, w in enumerate(options.window):
        i, j = divmod(tap, options.kernel_width)
        same = valid & (padded_labels[:, i : i + height, j : j + width] == labels)
        merged = torch.addcmul(merged, padded[:, :, i : i + height, j : j + width], same.to(z.dtype)[:, None], value=w)
        xi += same * (w if options.average == "weight" else 1.0)
    return merged / torch.where(valid, xi, 1)[:, None]


def local_cost(
    merged: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, options: LocalLoss
) -> torch.Tensor:
    """Eq. 3-4: the per-pixel cost `[N, H, W]` of merged logits, >= 0."""
    num_classes = merged.shape[1]
    own = labels.clamp(min=0).long()
    surprise = -torch.log_softmax(merged, 1)
    nll = surprise.gather(1, own[:, None])[:, 0].clamp(min=0)
    if options.cost == "focal":
        miss = -torch.expm1(-nll).clamp(max=-torch.finfo(nll.dtype).tiny)  # 0^(gamma - 1) has no finite slope
        return options.focal_alpha * miss**options.focal_gamma * nll
    weight = merged.new_ones(num_classes) if weight is None else weight.to(merged.dtype)
    smooth = torch.einsum("nchw,c->nhw", surprise, weight) / num_classes
    return ((1 - options.label_smoothing) * weight[own] * nll + options.label_smoothing * smooth).clamp(min=0)


def local_loss(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, options: LocalLoss
) -> torch.Tensor:
    """The map of per-pixel losses `[N, H, W]`: 0 at void and between centres, NaN at labels out of range.

    Logits of another size than the labels are interpolated bilinearly.
    """
    logits = logits.to(loss_dtype(logits))
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=options.align_corners)
    cost = local_cost(merge(logits, labels, options), labels, weight, options)
    cost = torch.where(labels == INVALID, torch.nan, cost)
    return torch.where(centre_mask(labels, options.stride), cost, 0)
