"""The local cost of the torch backend (Eq. 3-4), on merged logits `[P, C]`, and its gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from lal_triton.options import LocalLoss


class Cost(NamedTuple):
    losses: Tensor  # [P]
    exp: Tensor  # [P, C], softmax x total
    total: Tensor
    own: Tensor  # [P, 1], the label's class
    slope: Tensor  # dL/df = slope (softmax - onehot) + smoothing (sum(weight) softmax - weight)
    smoothing: float


def local_cost(f: Tensor, labels: Tensor, weight: Tensor, options: LocalLoss) -> Cost:
    """Of merged logits `[P, C]`, which it overwrites, and their pixels' labels."""
    num_classes = f.shape[1]
    own = labels.clamp(min=0).long()[:, None]
    own_logit = f.gather(1, own)
    shift = own_logit if options.exp_is_bounded(num_classes) else f.amax(1, keepdim=True)
    f.sub_(shift)
    own_shifted = (own_logit - shift)[:, 0]
    smoothing = options.label_smoothing / num_classes
    linear = f.mv(weight) if smoothing else None
    exp = f.exp_()
    total = exp.mv(torch.ones_like(weight))
    log_total = total.log()
    nll = (log_total - own_shifted).clamp_(min=0)
    if options.cost == "focal":
        miss = -torch.expm1(-nll)
        ratio = torch.where(miss > 0, nll / miss, 1)
        power = options.focal_alpha * miss**options.focal_gamma
        losses, slope = power * nll, power * (1 + options.focal_gamma * (1 - miss) * ratio)
    else:
        slope = (1 - options.label_smoothing) * weight[own[:, 0]]
        losses = slope * nll
        if linear is not None:
            losses = (losses + smoothing * (weight.sum() * log_total - linear)).clamp_(min=0)
    return Cost(losses, exp, total, own, slope, smoothing)


def cost_gradient(cost: Cost, coefficient: Tensor, weight: Tensor, out: Tensor) -> None:
    slope = coefficient * cost.slope
    softmax = slope + coefficient * (cost.smoothing * weight.sum()) if cost.smoothing else slope
    torch.mul(cost.exp, (softmax / cost.total)[:, None], out=out)
    if cost.smoothing:
        out.addr_(coefficient, weight, alpha=-cost.smoothing)
    out.scatter_add_(1, cost.own, -slope[:, None])
