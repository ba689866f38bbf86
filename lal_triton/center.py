"""Center loss over dense features: distances to the centre of the own class, and what the centres learn from them.

Wen, Zhang, Li and Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016. Differences
of features and centres exist for one image at a time, and are made again in the backward.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lal_triton import derivatives, process_groups, validation
from lal_triton.labels import INVALID, VOID, without_channel
from lal_triton.options import loss_dtype
from lal_triton.pooling import gather_ranks, or_one
from lal_triton.weighing import prepare


def evaluate(
    features: Tensor, target: Tensor, centers: Tensor, ignore_index: int, process_group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of |x - c_y|^2 / 2 over the valid pixels, and by class their counts `[C]` and sums of x - c_y `[C, D]`.

    With a group over the pixels of all its ranks; the gradient is that of this rank's.
    """
    target = without_channel(target)
    validation.check_center(features, target, centers, ignore_index)
    process_group = process_groups.resolve(process_group)
    if validation.has_tangent(features) or validation.has_tangent(centers):
        raise NotImplementedError(derivatives.REFUSAL)
    num_classes, dtype = len(centers), loss_dtype(features)
    labels, *_ = prepare(target, None, None, num_classes, 1, ignore_index, dtype)
    half_squares, counts, sums = _ClassSums.apply(features, labels, centers)
    total = torch.stack([half_squares, (labels != VOID).sum().to(dtype)])
    if process_group is not None:
        total = gather_ranks(total, process_group).sum(0)
        of_all = torch.cat([counts[:, None], sums], 1)
        dist.all_reduce(of_all, group=process_group)
        counts, sums = of_all[:, 0], of_all[:, 1:]
    return total[0] / or_one(total[1]), counts, sums


@torch.library.custom_op("lal_triton::snapshot", mutates_args=())
def snapshot(centers: Tensor) -> Tensor:
    """A copy from before the centres move; of a plain clone a compiled backward makes another one, after they moved."""
    return centers.clone()


snapshot.register_fake(torch.empty_like)


class _ClassSums(torch.autograd.Function):
    """Of features `[N, D, H, W]`, encoded labels and centres `[C, D]`: sum |x - c_y|^2 / 2, counts and sums of x - c_y.

    The sums are matrix products, which give the same bits every time on a GPU, too (in TF32 only where torch is told
    to use it for them). A label out of range makes the first NaN, and takes no part in the others.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels = labels.flatten(1)
        classes = torch.arange(len(centers), device=labels.device)
        half_squares = torch.where((labels == INVALID).any(), torch.nan, 0.0).to(loss_dtype(features))
        counts, sums = half_squares.new_zeros(len(centers)), half_squares.new_zeros(centers.shape)
        for pixels, own in zip(features.flatten(2), labels, strict=True):
            difference = _difference(pixels, own, centers)
            half_squares = half_squares + difference.square().sum() / 2
            member = (own == classes[:, None]).to(difference.dtype)
            counts += member.sum(1)
            with torch.autocast(member.device.type, enabled=False):
                sums += member @ difference.T
        return half_squares, counts, sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, counts, sums = output
        ctx.save_for_backward(*inputs, sums)
        ctx.mark_non_differentiable(counts, sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        features, labels, centers, sums = ctx.saved_tensors

        of_features = of_centers = None
        if ctx.needs_input_grad[0]:
            of_features = derivatives.first_derivative(
                lambda: _gradient(gradient, features, labels, centers), gradient, features, centers
            )
        if ctx.needs_input_grad[2]:
            of_centers = derivatives.first_derivative(
                lambda: (-gradient * sums).to(centers.dtype), gradient, features, centers
            )
        return of_features, None, of_centers


def _gradient(gradient: Tensor, features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Of the features, from that of the sum of squares."""
    gradients = torch.empty_like(features)
    for out, pixels, own in zip(gradients, features.flatten(2), labels.flatten(1), strict=True):
        out.copy_((gradient * _difference(pixels, own, centers)).view(out.shape))
    return gradients


def _difference(pixels: Tensor, own: Tensor, centers: Tensor) -> Tensor:
    """x - c_y `[D, P]` of `[D, P]` features and `[P]` labels, 0 without one."""
    dtype = loss_dtype(pixels)
    nearest = centers.to(dtype).T.index_select(1, own.clamp(min=0))
    return torch.where(own >= 0, pixels.to(dtype) - nearest, 0)
