"""The losses as functions. Equation numbers are those of Guo et al., arXiv 1802.08290.

Shared by all of them: `logits` `[N, C, h, w]` in float32, float16, bfloat16 or float64; `target` `[N, H, W]` in uint8,
int8, int16, int32 or int64, with labels in [0, C) or `ignore_index`; `weight` `[C]` and `pixel_weight` `[N, H, W]` are
non-negative constants. The loss is float32 (float64 for float64 logits), the gradient has the dtype of the logits.

Where (h, w) is not (H, W) the logits are interpolated inside the loss, by default: value and gradient are those of
`F.interpolate(logits, (H, W), mode="bilinear", align_corners=align_corners)` and then the loss, at any ratio, but the
upsampled logits never exist as a whole. Pass a network's stride-4 or stride-8 logits as they are.

Bad input raises a ValueError or TypeError that names the argument. Values (labels, weights) are checked on the CPU; on
a GPU, where reading them would stall the device, a label out of range makes its pixel's loss NaN. Weights that require
a gradient are refused. A batch may be empty, and its loss is 0.

Autocast has no effect. Derivatives are first ones by backward, with torch.func.grad and vmap, too; others raise a
NotImplementedError but with backend="reference", which backend="auto" takes for forward mode. A DTensor whose batch is
sharded is pooled over the group of its mesh, as with `process_group`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lal_triton import center, derivatives, max_pooling, pooling, reference, subclasses, triton_ops, validation
from lal_triton.dispatch import backend_for
from lal_triton.kernels.configs import upsampling_is_served
from lal_triton.labels import centre_mask, encode_labels
from lal_triton.ops import differentiable_local_loss, differentiable_power_norms, prepare
from lal_triton.options import KernelSize, LocalLoss, Pooling, Window, loss_dtype, make_options


def locally_adaptive_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize = 5,
    window: Window = "chessboard",
    stride: int = 1,
    average: str = "count",
    normalize: bool = True,
    eps: float = 1e-5,
    cost: str = "cross_entropy",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "minkowski",
    p: float = 3.0,
    pool: str = "image",
    pooling_ratio: float = 0.25,
    pooling_norm: float = 1.7,
    ignore_index: int = 255,
    upsample: str | None = "bilinear",
    align_corners: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Locally Adaptive Learning loss: cost(merged logits) per pixel, pooled by a Minkowski mean per image.

    1. Standard score over the classes: z = (x - mean) / sqrt(var + eps).
    2. Merge (Eq. 2): f(p) = 1/xi(p) sum_q mu(p, q) w(q - p) z(q), over the window's pixels q that are inside the image,
       not void, and share the label of p (mu = 1).
    3. Local cost (Eq. 3-4): L(p) = -log softmax(f(p))[y(p)], or its focal form.
    4. Pooling (Eq. 5): ((1/M) sum_p L(p)^p)^(1/p) per image, then the mean over images with a valid pixel.

    Args:
        logits: `[N, C, h, w]`.
        target: `[N, H, W]`, integer labels.
        kernel_size: odd, or a pair of odd numbers (height, width).
        window: "chessboard" (w = 2^(1 - D8)), "uniform" (w = 1), or `[Kh, Kw]` weights >= 0 with a positive centre. A
            tensor is read on the host: keep it on the CPU, and pass nested lists under torch.compile.
        stride: loss centres sit at rows and columns 0, s, 2s, ...; it costs what stride 1 costs.
        average: xi(p) is the "count" of merged pixels (the paper's) or the sum of their "weight".
        normalize: whether to take the standard score; without it z = x.
        eps: > 0, added to the variance.
        cost: "cross_entropy" or "focal", alpha (1 - q)^gamma (-ln q) with q the softmax at the label.
        weight: `[C]`, class weights. With "minkowski" omega = weight[y] x pixel_weight weighs the power mean; with
            "mean", "sum" and "none" it acts as in F.cross_entropy.
        pixel_weight: `[N, H, W]`.
        label_smoothing: in [0, 1), as in F.cross_entropy; not with the focal cost.
        reduction: "minkowski" | "max_pooling" | "mean" | "sum" | "none"; "mean" and "sum" are over the batch, "none" is
            the map `[N, ceil(H / stride), ceil(W / stride)]`, 0 at void. "max_pooling" is loss max-pooling (Bulo et
            al., arXiv 1704.02966), which weighs the pixels of an image so that its loss is largest under two bounds on
            the weights; class and pixel weights multiply the losses before, and the gradient holds its weights fixed.
        p: Minkowski exponent in [1, inf).
        pool: of "minkowski" and "max_pooling": "image", or "batch" to pool the pixels of all images at once.
        pooling_ratio: of "max_pooling", in (0, 1]: the share of the pixels that at least have to carry the loss.
        pooling_norm: of "max_pooling", > 1: which norm of the weights is bounded; towards infinity it is the mean.
        ignore_index: the void label; it takes no part in any window. With C > 255 the default is a class, too, whose
            pixels are void: a UserWarning says so.
        upsample: "bilinear" interpolates logits of another size than the target's, None refuses them.
        align_corners: of that interpolation, as in F.interpolate.
        process_group: a torch.distributed group over whose ranks' batches, of any sizes (0, too), the loss is pooled.
            Every rank returns the loss of the global batch, and the sum over the ranks of the gradients is that of one
            process that holds it: DistributedDataParallel averages them, so multiply the loss by the number of ranks
            there. No part of "none"; "max_pooling" needs pool="image" with it.
        backend: "auto" ("triton" on a GPU, "cpu" on a CPU), "cpu" (compiled by numba) or "triton" (both raise where
            they cannot run), or "reference" (plain differentiable torch, slow, for checking).

    Returns:
        The loss, a scalar (a map with reduction="none"); 0 with a zero gradient, never NaN, where no pixel is valid.
    """
    options = make_options(
        kernel_size=kernel_size,
        window=window,
        stride=stride,
        average=average,
        normalize=normalize,
        eps=eps,
        cost=cost,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
        align_corners=align_corners,
    )
    return evaluate(
        logits,
        target,
        options,
        ignore_index=ignore_index,
        weight=weight,
        pixel_weight=pixel_weight,
        reduction=reduction,
        p=p,
        pool=pool,
        pooling_ratio=pooling_ratio,
        pooling_norm=pooling_norm,
        upsample=upsample,
        process_group=process_group,
        backend=backend,
    )


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = 255,
    upsample: str | None = "bilinear",
    align_corners: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax cross-entropy, equal to F.cross_entropy on the options that they share.

    It differs from it where no pixel is valid (0 instead of NaN), in the default `ignore_index`, and in that the loss
    of half-precision logits is float32. Arguments and errors are those of `locally_adaptive_loss`.
    """
    options = make_options(label_smoothing=label_smoothing, align_corners=align_corners)
    return evaluate(
        logits,
        target,
        options,
        ignore_index=ignore_index,
        weight=weight,
        pixel_weight=pixel_weight,
        reduction=reduction,
        upsample=upsample,
        process_group=process_group,
        backend=backend,
    )


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = 255,
    upsample: str | None = "bilinear",
    align_corners: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Focal loss over softmax probabilities, alpha (1 - q)^gamma (-ln q) with q the probability of the label.

    Lin et al., arXiv 1708.02002, in its multi-class form. Arguments and errors are those of `locally_adaptive_loss`.
    """
    options = make_options(cost="focal", focal_alpha=alpha, focal_gamma=gamma, align_corners=align_corners)
    return evaluate(
        logits,
        target,
        options,
        ignore_index=ignore_index,
        weight=weight,
        pixel_weight=pixel_weight,
        reduction=reduction,
        upsample=upsample,
        process_group=process_group,
        backend=backend,
    )


def center_loss(
    features: Tensor, target: Tensor, centers: Tensor, *, ignore_index: int = 255, process_group: Any = None
) -> Tensor:
    """Center loss (Wen et al., ECCV 2016) over dense features: the mean of |x - c_y|^2 / 2 over the valid pixels.

    Args:
        features: `[N, D, H, W]` in float32, float16, bfloat16 or float64.
        target: `[N, H, W]`, integer labels; resample them by their nearest neighbours to the size of the features.
        centers: `[C, D]`, one centre a class. `CenterLoss` keeps and moves them.
        ignore_index: the void label.
        process_group: as in `locally_adaptive_loss`: the mean is over the pixels of all its ranks.

    Returns:
        A scalar, float32 (float64 for float64 features); 0 with a zero gradient where no pixel is valid.
    """
    validation.check_center(features, target, centers, ignore_index, process_group)
    return center.evaluate(features, target, centers, ignore_index, process_group)[0]


def merge(
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize = 5,
    window: Window = "chessboard",
    average: str = "count",
    normalize: bool = True,
    eps: float = 1e-5,
    ignore_index: int = 255,
) -> Tensor:
    """The merged logits f of Eq. 1-2 alone, `[N, C, H, W]`, 0 at void; float32 for half-precision logits.

    For looking and for research: differentiable (twice, too), in plain torch, at k^2 times the memory of the logits.
    """
    options = make_options(
        kernel_size=kernel_size,
        window=window,
        average=average,
        normalize=normalize,
        eps=eps,
    )
    validation.check_integer("ignore_index", ignore_index)
    validation.check_tensors(logits, target, None, None)
    validation.check_sizes(logits, target, upsample=None)
    _warn_of_two_classes(logits, options)
    if target.device.type == "cpu":
        validation.check_labels(target, logits.shape[1], ignore_index)
    labels = encode_labels(target, logits.shape[1], ignore_index)
    return reference.merge(logits.to(loss_dtype(logits)), labels, options)


def evaluate(
    logits: Tensor,
    target: Tensor,
    options: LocalLoss,
    *,
    ignore_index: int,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    reduction: str,
    p: float = 1.0,
    pool: str = "image",
    pooling_ratio: float = 0.25,
    pooling_norm: float = 1.7,
    upsample: str | None,
    process_group: Any,
    backend: str,
) -> Tensor:
    """What every loss of the package does once its options are a record: check, weigh, evaluate, pool."""
    numbers = ignore_index, type(ignore_index), p, type(p)  # True equals 1, but is refused
    request = (options, numbers, reduction, pool, pooling_ratio, pooling_norm, upsample, process_group, backend)
    value = triton_ops.repeat(logits, target, weight, pixel_weight, request)
    if value is not None:
        return _at_centres(value, options) if reduction == "none" else value

    p = validation.check_number("p", p, low=1)
    ignore_index = validation.check_integer("ignore_index", ignore_index)
    given = logits
    inputs = subclasses.Inputs(logits, target, weight, pixel_weight, process_group)
    logits, target, weight, pixel_weight, process_group = subclasses.unwrap(inputs)
    logits = logits.resolve_neg() if isinstance(logits, Tensor) else logits
    validation.check_pooling(reduction, pool, pooling_ratio, pooling_norm, process_group)
    validation.check_tensors(logits, target, weight, pixel_weight)
    validation.check_sizes(logits, target, upsample)
    if torch.compiler.is_compiling() and derivatives.transforms():
        backend = derivatives.backend_in_graph(backend, weight, pixel_weight)
    _warn_of_two_classes(logits, options)
    _warn_of_void_class(logits, ignore_index)
    whole = logits
    size = target.shape[1:]
    logits = _shrink(logits, size, options.align_corners)
    backend = backend_for(backend, logits)
    if backend == "triton" and logits.shape[2:] != size and not upsampling_is_served(logits.shape[2:], size, options):
        logits = _interpolate(logits, size, options.align_corners)

    if reduction != "minkowski":
        p = 1.0
    if backend == "triton" and reduction != "max_pooling" and process_group is None:
        batch_pooling = Pooling(pool if reduction == "minkowski" else reduction, p, ignore_index)
        repeatable = request if logits is whole else None
        value = triton_ops.pooled_loss(logits, target, weight, pixel_weight, options, batch_pooling, repeatable)
        return _at_centres(value, options) if reduction == "none" else value

    detached = [None if weights is None else weights.detach() for weights in (weight, pixel_weight)]
    rest = logits.shape[1], options.stride, ignore_index, loss_dtype(logits)
    labels, omega, mass = prepare(target, *detached, *rest)
    class_weight = None
    if reduction != "minkowski" and weight is not None and options.label_smoothing > 0:
        class_weight = detached[0]  # the weights stand inside the cost's two terms
        omega = prepare(target, None, detached[1], *rest)[1]

    pooled_by_norm = reduction not in ("none", "max_pooling")
    if backend == "cpu" and pooled_by_norm:
        total = torch.ones_like(mass[0])
        if reduction == "mean" and process_group is None:
            # The sum of losses that are weighted by omega / total: the forward's gradient is complete.
            total, reduction = pooling.or_one(mass.sum()), "sum"
        origin, derive = derivatives.origin(logits), logits.requires_grad and torch.is_grad_enabled()
        norms = differentiable_power_norms(logits, labels, class_weight, omega, total, origin, p, derive, *options)[0]
        return pooling.pool_norms(norms, mass, reduction, p, pool, process_group)

    if backend == "triton":
        losses = triton_ops.local_loss(logits, target, class_weight, options, ignore_index)
    elif backend == "cpu":
        losses = differentiable_local_loss(logits, labels, class_weight, *options)
    elif backend == "by image":
        losses = reference.local_loss_by_image(logits, labels, class_weight, options)
    else:
        losses = reference.local_loss(logits, labels, class_weight, options)
    if pooled_by_norm:
        norms = pooling.power_norm(losses, omega, p)
        return pooling.pool_norms(norms, mass, reduction, p, pool, process_group)
    losses = losses * omega
    if reduction == "none":
        return subclasses.like_logits(_at_centres(losses, options), given)
    valid = centre_mask(labels, options.stride)
    if pool == "batch":
        losses, valid, mass = losses.flatten()[None], valid.flatten()[None], mass.sum()[None]
    maxima = max_pooling.max_pool(losses.flatten(1), valid.flatten(1), pooling_ratio, pooling_norm)
    return pooling.mean_over_images(maxima, mass > 0, process_group)


def _at_centres(losses: Tensor, options: LocalLoss) -> Tensor:
    return losses[:, :: options.stride, :: options.stride]


def _shrink(logits: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    """The logits at a size that nowhere exceeds `size`; what is left to do is upsampling, in the backends.

    Bilinear interpolation goes axis by axis, so that those that shrink can go first, into less memory than the logits.
    """
    smaller = [min(low, high) for low, high in zip(logits.shape[2:], size, strict=True)]
    if smaller == list(logits.shape[2:]):
        return logits
    return _interpolate(logits, smaller, align_corners)


def _interpolate(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(logits.to(loss_dtype(logits)), size, mode="bilinear", align_corners=align_corners)


def _warn_of_two_classes(logits: Tensor, options: LocalLoss) -> None:
    if logits.shape[1] == 2 and options.normalize and not torch.compiler.is_compiling():
        warnings.warn(
            "with C = 2 classes the standard score is +-1 whatever the logits, so that the loss sees only their sign "
            "and its gradient nearly vanishes; normalize=False avoids it",
            UserWarning,
            stacklevel=4,
        )


def _warn_of_void_class(logits: Tensor, ignore_index: int) -> None:
    if ignore_index == 255 and logits.shape[1] > 255 and not torch.compiler.is_compiling():
        warnings.warn(
            f"with C = {logits.shape[1]} classes the ignore_index 255 is a class, too, whose pixels are void; pass "
            "another ignore_index",
            UserWarning,
            stacklevel=4,
        )
