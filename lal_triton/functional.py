"""The losses as functions. Equation numbers are those of Guo et al., arXiv 1802.08290.

Shared by all of them: `logits` `[N, C, h, w]` in float32, float16, bfloat16 or float64; `target` `[N, H, W]` in uint8,
int8, int16, int32 or int64, with labels in [0, C) or `ignore_index`; `weight` `[C]` and `pixel_weight` `[N, H, W]` are
non-negative constants. `target` and `pixel_weight` may be `[N, 1, H, W]`, too. The loss is float32 (float64 for float64
logits), the gradient has the dtype of the logits.

Where (h, w) is not (H, W) the logits are interpolated inside the loss, by default: value and gradient are those of
`F.interpolate(logits, (H, W), mode="bilinear", align_corners=align_corners)` and then the loss, at any ratio, but the
upsampled logits never exist as a whole. Pass a network's stride-4 or stride-8 logits as they are.

Bad input raises a ValueError or TypeError that names the argument. Values (labels, weights) are checked on the CPU; on
a GPU, where reading them would stall the device, a label out of range makes its pixel's loss NaN. Weights that require
a gradient are refused, and so are probabilities as targets. A batch may be empty, and its loss is 0. A warning comes at
the first call on tensors of a kind (shapes, strides, dtypes): of two classes with a standard score, of a class that is
`ignore_index`, and of logits whose height and width fit the target's in the other order alone. With a `process_group`
it may come again, and under torch.compile never.

Autocast has no effect. Derivatives are first ones by backward, with torch.func.grad and vmap, too; others raise a
NotImplementedError but with backend="reference", which backend="auto" takes for forward mode. A DTensor whose batch is
sharded is pooled over the group of its mesh, as with `process_group`.
"""

from typing import Any

from torch import Tensor

from lal_triton import center, process_groups, reference, validation
from lal_triton.evaluation import evaluate
from lal_triton.labels import encode_labels, without_channel
from lal_triton.options import Alpha, KernelSize, Window, loss_dtype, make_options, make_request


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
    focal_alpha: Alpha = 0.25,
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
    process_group: Any = "rank",
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
        focal_alpha: a number >= 0, or `[C]` of them, of which a pixel takes that of its label. They multiply the losses
            before the pooling. A tensor is read on the host: pass a list under torch.compile.
        focal_gamma: >= 0.
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
        process_group: over whose ranks' batches, of any sizes (0, too), the loss is pooled: "rank" (or None) for this
            one alone, "world" for all (of one process, too), a torch.distributed group, or a callable that returns one.
            Every rank returns the loss of the global batch, and the sum over the ranks of the gradients is that of one
            process that holds it: DistributedDataParallel averages them, so multiply the loss by the number of ranks
            there. No part of "none"; "max_pooling" needs pool="image" with it.
        backend: "auto" ("triton" on a GPU, "cpu" on a CPU), "cpu" (compiled by numba) or "triton" (both raise where
            they cannot run), or "reference" (plain differentiable torch, slow, for checking).

    Returns:
        The loss, a scalar (a map with reduction="none"); 0 with a zero gradient, never NaN, where no pixel is valid.

    Raises:
        ValueError: an option, a shape, a device or, on the CPU, a label or weight is out of its range.
        TypeError: an option, or the dtype of a tensor, is of another type.
        NotImplementedError: a second or forward-mode derivative but of backend="reference".
    """
    request = make_request(
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
        reduction=reduction,
        p=p,
        pool=pool,
        pooling_ratio=pooling_ratio,
        pooling_norm=pooling_norm,
        ignore_index=ignore_index,
        upsample=upsample,
        align_corners=align_corners,
        process_group=process_group,
        backend=backend,
    )
    return evaluate(logits, target, weight, pixel_weight, request)


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
    process_group: Any = "rank",
    backend: str = "auto",
) -> Tensor:
    """Softmax cross-entropy, equal to F.cross_entropy on the options that they share.

    It differs from it where no pixel is valid (0 instead of NaN), in the default `ignore_index`, and in that the loss
    of half-precision logits is float32. Arguments and errors are those of `locally_adaptive_loss`.
    """
    request = make_request(
        label_smoothing=label_smoothing,
        reduction=reduction,
        ignore_index=ignore_index,
        upsample=upsample,
        align_corners=align_corners,
        process_group=process_group,
        backend=backend,
    )
    return evaluate(logits, target, weight, pixel_weight, request)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = 255,
    upsample: str | None = "bilinear",
    align_corners: bool = False,
    process_group: Any = "rank",
    backend: str = "auto",
) -> Tensor:
    """Focal loss over softmax probabilities, alpha (1 - q)^gamma (-ln q) with q the probability of the label.

    Lin et al., arXiv 1708.02002, in its multi-class form. Arguments and errors are those of `locally_adaptive_loss`;
    `alpha` and `gamma` are its `focal_alpha` and `focal_gamma`.
    """
    request = make_request(
        cost="focal",
        focal_alpha=alpha,
        focal_gamma=gamma,
        reduction=reduction,
        ignore_index=ignore_index,
        upsample=upsample,
        align_corners=align_corners,
        process_group=process_group,
        backend=backend,
    )
    return evaluate(logits, target, weight, pixel_weight, request)


def center_loss(
    features: Tensor, target: Tensor, centers: Tensor, *, ignore_index: int = 255, process_group: Any = "rank"
) -> Tensor:
    """Center loss (Wen et al., ECCV 2016) over dense features: the mean of `|x - c_y|^2 / 2` over the valid pixels.

    Args:
        features: `[N, D, H, W]` in float32, float16, bfloat16 or float64.
        target: `[N, H, W]` or `[N, 1, H, W]`, integer labels; resample them by their nearest neighbours to the size of
            the features.
        centers: `[C, D]`, one centre a class. `CenterLoss` keeps and moves them.
        ignore_index: the void label.
        process_group: as in `locally_adaptive_loss`: the mean is over the pixels of all its ranks.

    Returns:
        A scalar, float32 (float64 for float64 features); 0 with a zero gradient where no pixel is valid.
    """
    process_groups.check(process_group)
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
    target = without_channel(target)
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
    validation.warn_of_classes(logits.shape[1], normalize, ignore_index)
    if target.device.type == "cpu":
        validation.check_labels(target, logits.shape[1], ignore_index)
    labels = encode_labels(target, logits.shape[1], ignore_index)
    return reference.merge(logits.to(loss_dtype(logits)), labels, options)
