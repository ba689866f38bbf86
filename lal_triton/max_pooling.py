"""Loss max-pooling: the weighting of an image's pixels that a bounded adversary would choose.

Bulo, Neuhold and Kontschieder, arXiv 1704.02966. Of n pixels with losses L >= 0 it takes
    max sum w L   over w >= 0 with ||w||_P <= n^(-1/Q) and ||w||_inf <= n^(-1/Q) m^(-1/P),   1/P + 1/Q = 1, m = ratio n.
Divided by their bound the weights are v = min(1, (L / lambda)^(Q/P)), with the lambda for which sum v^P = m. If the k
largest losses reach the bound and S_k is the sum of L^Q over the others, then lambda^Q = S_k / (m - k); k is the first
for which the next loss does not exceed that lambda.
"""

import torch

from lal_triton.pooling import or_one


def max_pool(losses: torch.Tensor, valid: torch.Tensor, ratio: float, norm: float) -> torch.Tensor:
    """The largest weighted sum of each row's valid losses, `[N, M]` (>= 0, 0 where not valid) to `[N]`; P = `norm`.

    The gradient holds the optimal weights fixed, which makes it a subgradient of this convex function.
    """
    if losses.numel() == 0:
        return losses.sum(1)
    count = valid.sum(1)
    with torch.no_grad():
        weights = _bounded_weights(losses.detach(), ratio * count.double(), norm)
    return (weights * losses).sum(1) * ratio ** (-1 / norm) / or_one(count)


def _bounded_weights(losses: torch.Tensor, mass: torch.Tensor, norm: float) -> torch.Tensor:
    """v in [0, 1] with sum v^P = `mass` (less where too few losses are positive)."""
    powers = losses.double().log() * (norm / (norm - 1))  # as logarithms: Q grows without bound as P nears 1
    ascending = powers.sort(1).values
    # beside another row, since torch's scan of a single one may round differently each time on a GPU
    others = torch.cat([ascending, ascending[:1]]).logcumsumexp(1)[:-1]
    larger = torch.arange(losses.shape[1] - 1, -1, -1, device=losses.device)  # how many are
    room = mass[:, None] - larger
    bounded = ((room > 0) & (ascending + room.log() > others)).sum(1, keepdim=True)
    last = losses.shape[1] - 1 - bounded
    level = others.gather(1, last) - room.gather(1, last).log()
    weights = torch.where(powers > level, 1, ((powers - level) / norm).exp())
    return torch.where(losses == 0, 0, weights).to(losses.dtype)
