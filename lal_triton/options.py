"""The options of a loss, checked, as immutable records: of a pixel, of batch pooling, and of all of it."""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lal_triton import process_groups, validation

WINDOWS = ("chessboard", "uniform")
AVERAGES = ("count", "weight")
COSTS = ("cross_entropy", "focal")

KernelSize = int | tuple[int, int]
Window = str | Sequence[Sequence[float]] | torch.Tensor
Alpha = float | Sequence[float] | torch.Tensor


def loss_dtype(logits: torch.Tensor) -> torch.dtype:
    """The dtype of losses and accumulators: float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class LocalLoss(NamedTuple):
    """The merge (Eq. 1-2) and the local cost (Eq. 3-4); the fields are those of the custom ops' schema, in order."""

    window: tuple[float, ...]  # row-major, kernel_height x kernel_width
    kernel_height: int
    kernel_width: int
    stride: int
    average: str
    normalize: bool
    eps: float
    cost: str
    focal_alpha: float
    focal_gamma: float
    label_smoothing: float
    align_corners: bool  # of the bilinear interpolation, where the labels' size is not that of the logits

    def exp_is_bounded(self, num_classes: int, limit: float = 80.0) -> bool:
        """Whether |f_c - f_y| is below the limit; the default keeps its exp inside float32 without a maximum.

        A standard score has norm at most sqrt(C), so two of its entries differ by at most sqrt(2 C); an average over
        `xi` neighbours scales that by at most max(w), or by 1 when it divides by the sum of the weights.
        """
        gain = max(self.window) if self.average == "count" else 1.0
        return self.normalize and gain * (2 * num_classes) ** 0.5 < limit


class Pooling(NamedTuple):
    """The batch pooling (Eq. 5)."""

    reduction: str  # "image" and "batch" (Minkowski means), "mean", "sum", "none"
    p: float  # 1 but for the Minkowski means
    ignore_index: int


def weighs_in_loss(options: LocalLoss, reduction: str) -> bool:
    """Whether class weights stand inside the two terms of the smoothed loss, not before it.

    The reduction is that of a `Request`, or of a `Pooling`.
    """
    return options.label_smoothing > 0 and reduction not in ("minkowski", "image", "batch")


class Request(NamedTuple):
    """A loss with all of its options, checked."""

    local: LocalLoss
    class_alpha: tuple[float, ...] | None  # `[C]`, the focal cost's alpha by class; that of `local` is 1 then
    reduction: str
    p: float  # 1 but for the Minkowski mean
    pool: str
    pooling_ratio: float
    pooling_norm: float
    ignore_index: int
    upsample: str | None
    process_group: Any
    backend: str


def make_request(
    *,
    focal_alpha: Alpha = 0.25,
    reduction: str,
    p: float = 1.0,
    pool: str = "image",
    pooling_ratio: float = 0.25,
    pooling_norm: float = 1.7,
    ignore_index: int,
    upsample: str | None,
    process_group: Any,
    backend: str,
    **local: Any,
) -> Request:
    """The record of checked options; `local` are those of `make_options`."""
    class_alpha = None if isinstance(focal_alpha, numbers.Real) else validation.check_alpha(focal_alpha)
    options = make_options(focal_alpha=focal_alpha if class_alpha is None else 1.0, **local)
    validation.check_pooling(reduction, pool, pooling_ratio, pooling_norm)
    process_groups.check(process_group)
    process_group = None if process_group == process_groups.RANK else process_group
    validation.check_pooling_over_ranks(process_group, reduction, pool)
    validation.check_choice("upsample", upsample, ("bilinear", None))
    validation.check_backend(backend)
    p = validation.check_number("p", p, low=1)
    return Request(
        local=options,
        class_alpha=class_alpha if options.cost == "focal" else None,
        reduction=reduction,
        p=p if reduction == "minkowski" else 1.0,
        pool=pool,
        pooling_ratio=float(pooling_ratio),
        pooling_norm=float(pooling_norm),
        ignore_index=validation.check_integer("ignore_index", ignore_index),
        upsample=upsample,
        process_group=process_group,
        backend=backend,
    )


def make_options(
    *,
    kernel_size: KernelSize = 1,
    window: Window = "uniform",
    stride: int = 1,
    average: str = "count",
    normalize: bool = False,
    eps: float = 1e-5,
    cost: str = "cross_entropy",
    focal_alpha: Any = 0.25,
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> LocalLoss:
    """The record of checked options; the defaults are plain cross-entropy."""
    height, width = validation.check_kernel_size(kernel_size)
    validation.check_choice("average", average, AVERAGES)
    validation.check_choice("cost", cost, COSTS)
    if cost == "focal" and label_smoothing != 0:
        raise ValueError(f'label_smoothing is {label_smoothing!r}, expected 0 with cost="focal"')
    return LocalLoss(
        window=window_weights(window, (height, width)),
        kernel_height=height,
        kernel_width=width,
        stride=validation.check_integer("stride", stride, low=1),
        average=average,
        normalize=validation.check_boolean("normalize", normalize),
        eps=validation.check_number("eps", eps, low=torch.finfo(torch.float32).tiny),
        cost=cost,
        focal_alpha=validation.check_number("focal_alpha", focal_alpha, low=0),
        focal_gamma=validation.check_number("focal_gamma", focal_gamma, low=0),
        label_smoothing=validation.check_number("label_smoothing", label_smoothing, low=0, high=1),
        align_corners=validation.check_boolean("align_corners", align_corners),
    )


def usual_loss(kernel_size: KernelSize) -> tuple[LocalLoss, Pooling]:
    """What is tuned and counted: `cross_entropy` for a single pixel, `locally_adaptive_loss` for windows."""
    if kernel_size in (1, (1, 1)):
        return make_options(), Pooling("mean", 1.0, ignore_index=255)
    return make_options(kernel_size=kernel_size, window="chessboard", normalize=True), Pooling("image", 3.0, 255)


def window_weights(window: Window, kernel_size: tuple[int, int]) -> tuple[float, ...]:
    """Row-major weights w(d) of the window: 2^(1 - chessboard distance), ones, or the caller's own."""
    height, width = kernel_size
    if not isinstance(window, str):
        return validation.check_window(window, kernel_size)
    validation.check_choice("window", window, WINDOWS)
    if window == "uniform":
        return (1.0,) * (height * width)
    rows, columns = range(-(height // 2), height // 2 + 1), range(-(width // 2), width // 2 + 1)
    return tuple(2.0 ** (1 - max(abs(i), abs(j))) for i in rows for j in columns)
