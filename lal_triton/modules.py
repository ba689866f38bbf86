"""The losses as modules: the options of the functions as constructor arguments, checked once."""

from typing import Any

from torch import Tensor, nn

from lal_triton import functional, validation
from lal_triton.options import KernelSize, Window, make_options


class _Loss(nn.Module):
    """`local` holds the arguments of `make_options`, `pooled` those of `functional.evaluate`."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, local: dict[str, Any], pooled: dict[str, Any]) -> None:
        super().__init__()
        validation.check_weight(weight)
        validation.check_weight_values("weight", weight)
        validation.check_pooling(
            pooled["reduction"],
            pooled.get("pool", "image"),
            pooled.get("pooling_ratio", 1.0),
            pooled.get("pooling_norm", 2.0),
            pooled["process_group"],
        )
        validation.check_number("p", pooled.get("p", 1.0), low=1)
        validation.check_integer("ignore_index", pooled["ignore_index"])
        validation.check_choice("backend", pooled["backend"], validation.BACKENDS)
        validation.check_choice("upsample", pooled["upsample"], ("bilinear", None))
        if isinstance(local.get("window"), Tensor):
            local["window"] = local["window"].tolist()
        self.register_buffer("weight", weight)
        self.options = make_options(**local)
        self.pooled = pooled
        self._shown = {name: value for name, value in (local | pooled).items() if value is not None}

    def forward(self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """The loss of `[N, C, h, w]` logits and a `[N, H, W]` integer target, with optional `[N, H, W]` weights."""
        return functional.evaluate(
            logits, target, self.options, weight=self.weight, pixel_weight=pixel_weight, **self.pooled
        )

    def extra_repr(self) -> str:
        weight = "" if self.weight is None else f"weight=[{len(self.weight)}], "
        return weight + ", ".join(f"{name}={value!r}" for name, value in self._shown.items())


class LocallyAdaptiveLoss(_Loss):
    """`functional.locally_adaptive_loss` as a module; `weight` is a buffer, saved in the `state_dict`."""

    def __init__(
        self,
        kernel_size: KernelSize = 5,
        *,
        window: Window = "chessboard",
        stride: int = 1,
        average: str = "count",
        normalize: bool = True,
        eps: float = 1e-5,
        cost: str = "cross_entropy",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        weight: Tensor | None = None,
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
    ) -> None:
        local = {
            "kernel_size": kernel_size,
            "window": window,
            "stride": stride,
            "average": average,
            "normalize": normalize,
            "eps": eps,
            "cost": cost,
            "focal_alpha": focal_alpha,
            "focal_gamma": focal_gamma,
            "label_smoothing": label_smoothing,
            "align_corners": align_corners,
        }
        pooled = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "p": p,
            "pool": pool,
            "pooling_ratio": pooling_ratio,
            "pooling_norm": pooling_norm,
            "upsample": upsample,
            "process_group": process_group,
            "backend": backend,
        }
        super().__init__(weight, local, pooled)


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` as a module; `weight` is a buffer, saved in the `state_dict`."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        ignore_index: int = 255,
        upsample: str | None = "bilinear",
        align_corners: bool = False,
        process_group: Any = None,
        backend: str = "auto",
    ) -> None:
        local = {"label_smoothing": label_smoothing, "align_corners": align_corners}
        pooled = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "upsample": upsample,
            "process_group": process_group,
            "backend": backend,
        }
        super().__init__(weight, local, pooled)


class FocalLoss(_Loss):
    """`functional.focal_loss` as a module; `weight` is a buffer, saved in the `state_dict`."""

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = 255,
        upsample: str | None = "bilinear",
        align_corners: bool = False,
        process_group: Any = None,
        backend: str = "auto",
    ) -> None:
        local = {"cost": "focal", "focal_alpha": alpha, "focal_gamma": gamma, "align_corners": align_corners}
        pooled = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "upsample": upsample,
            "process_group": process_group,
            "backend": backend,
        }
        super().__init__(weight, local, pooled)
