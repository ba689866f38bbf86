"""Every check of the arguments: each message names the argument, the value found and what was expected."""

import math
import numbers
import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

BACKENDS = ("auto", "cpu", "triton", "reference")
REDUCTIONS = ("minkowski", "mean", "sum", "none", "max_pooling")
LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TARGET_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_choice(name: str, value: object, known: Sequence[str | None]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}")


def check_backend(backend: object) -> None:
    if backend != "torch":  # deprecated
        check_choice("backend", backend, BACKENDS)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, strict: bool = False) -> float:
    """A finite real number in [low, high), or in (low, high) when `strict`, of Python or of numpy."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, expected a number{_item_hint(value)}")
    if not low <= value < high or (strict and value == low):  # false of NaN, too
        raise ValueError(f"{name} is {value!r}, expected a finite number in {'(' if strict else '['}{low}, {high})")
    return float(value)


def check_integer(name: str, value: Any, low: int | None = None) -> int:
    """An integer of Python or of numpy."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}, expected an integer{_item_hint(value)}")
    if low is not None and value < low:
        raise ValueError(f"{name} is {value!r}, expected an integer >= {low}")
    return operator.index(value)


def check_boolean(name: str, value: Any) -> bool:
    """True or False of Python or of numpy: bool("false") is True."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected True or False{_item_hint(value)}")
    return bool(value)


def _item_hint(value: Any) -> str:
    return "; pass its .item()" if isinstance(value, (torch.Tensor, np.ndarray)) else ""


def check_kernel_size(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, numbers.Integral) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"kernel_size is {value!r}, expected an odd integer >= 1 or a pair of them")
    height, width = (check_integer("kernel_size", size) for size in pair)
    if height < 1 or width < 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"kernel_size is {value!r}, expected odd and >= 1 (a window has a centre)")
    return height, width


def check_window(window: Any, kernel_size: tuple[int, int]) -> tuple[float, ...]:
    """The row-major weights of a `[Kh, Kw]` tensor, array or nested sequence."""
    height, width = kernel_size
    check_constant("window", window)
    try:
        rows = [list(row) for row in (window.tolist() if isinstance(window, torch.Tensor) else window)]
    except TypeError:
        raise TypeError(f"window is {window!r}, expected 'chessboard', 'uniform' or [Kh, Kw] weights") from None
    if len(rows) != height or any(len(row) != width for row in rows):
        raise ValueError(f"window is {rows!r}, expected the shape [{height}, {width}] of kernel_size")
    weights = [value for row in rows for value in row]
    if not all(isinstance(value, numbers.Real) for value in weights):
        raise TypeError(f"window holds {rows!r}, expected numbers")
    if not all(math.isfinite(value) and value >= 0 for value in weights):
        raise ValueError(f"window holds {rows!r}, expected finite weights >= 0")
    if weights[len(weights) // 2] <= 0:
        raise ValueError(f"window has the centre {weights[len(weights) // 2]!r}, expected a positive weight")
    return tuple(float(value) for value in weights)


def check_alpha(alpha: Any) -> tuple[float, ...]:
    """The focal weights `[C]` of a tensor, array or sequence."""
    check_constant("focal_alpha", alpha)
    values = alpha.tolist() if isinstance(alpha, (torch.Tensor, np.ndarray)) else alpha
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"focal_alpha is {alpha!r}, expected a number or [C] of them{_item_hint(alpha)}")
    return tuple(check_number("focal_alpha", value, low=0) for value in values)


def check_alpha_size(alpha: tuple[float, ...] | None, num_classes: int) -> None:
    if alpha is not None and len(alpha) != num_classes:
        raise ValueError(f"focal_alpha has {len(alpha)} values, expected a number or [C = {num_classes}]")


def check_pooling(reduction: str, pool: str, pooling_ratio: Any, pooling_norm: Any) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("pool", pool, ("image", "batch"))
    if check_number("pooling_ratio", pooling_ratio, low=0, strict=True) > 1:
        raise ValueError(f"pooling_ratio is {pooling_ratio!r}, expected a number in (0, 1]")
    check_number("pooling_norm", pooling_norm, low=1, strict=True)


def check_pooling_over_ranks(process_group: object, reduction: str, pool: str) -> None:
    if process_group is not None and (reduction, pool) == ("max_pooling", "batch"):
        raise ValueError(
            'pool is "batch" with reduction="max_pooling" and a process_group, expected "image": the losses of one '
            "rank cannot be weighed without those of the others"
        )


def check_tensors(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, pixel_weight: torch.Tensor | None
) -> None:
    """Types, ranks, sizes, dtypes and devices: all that can be known without reading a value."""
    check_dense("logits", logits, 2)
    check_target(target, logits, "logits")
    check_weight(weight, logits.shape[1])
    if pixel_weight is not None:
        _check_real("pixel_weight", pixel_weight)
        check_constant("pixel_weight", pixel_weight)
        if pixel_weight.shape != target.shape:
            raise ValueError(
                f"pixel_weight has the shape {list(pixel_weight.shape)}, expected that of target, {list(target.shape)}"
            )
    check_devices(logits, "logits", target=target, weight=weight, pixel_weight=pixel_weight)


def check_dense(name: str, planes: torch.Tensor, least: int) -> None:
    """Logits, with at least two classes, or features: `[N, C, H, W]`, floating-point."""
    _check_tensor(name, planes)
    if planes.layout != torch.strided:
        raise TypeError(f"{name} has the layout {planes.layout}, expected torch.strided")
    if planes.dim() != 4:
        raise ValueError(f"{name} has the shape {list(planes.shape)}, expected [N, C, H, W]")
    if planes.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} has the dtype {planes.dtype}, expected one of {_names(LOGIT_DTYPES)}")
    if 0 in planes.shape[1:]:
        raise ValueError(f"{name} has the shape {list(planes.shape)}, expected no empty dimension but the batch")
    if planes.shape[1] < least:
        raise ValueError(
            f"{name} has C = {planes.shape[1]} classes, expected at least {least} (binary logits: stack [0, x])"
        )


def check_target(target: torch.Tensor, planes: torch.Tensor, name: str) -> None:
    """Of these logits or features."""
    _check_tensor("target", target)
    if target.dim() != 3:
        shape = list(target.shape)
        raise ValueError(f"target has the shape {shape}, expected [N, H, W]{_argmax_hint(shape, list(planes.shape))}")
    if target.dtype not in TARGET_DTYPES:
        raise TypeError(
            f"target has the dtype {target.dtype}, expected one of {_names(TARGET_DTYPES)}; pass target.long()"
        )
    if 0 in target.shape[1:]:
        raise ValueError(f"target has the shape {list(target.shape)}, expected no empty dimension but the batch")
    if target.shape[1] * target.shape[2] >= 2**31:
        raise ValueError(f"target has the shape {list(target.shape)}, expected fewer than 2^31 pixels in an image")
    if target.shape[0] != planes.shape[0]:
        raise ValueError(f"target has N = {target.shape[0]}, expected the N = {planes.shape[0]} of {name}")


def _argmax_hint(shape: list[int], logits: list[int]) -> str:
    """For one-hot labels and probabilities, with the classes where torch's losses or `F.one_hot` have them."""
    num_classes = logits[1]
    if len(shape) != 4 or num_classes not in (shape[1], shape[3]):
        return ""
    last = shape[1] != num_classes or (shape[3] == num_classes and shape[1:3] == logits[2:])
    return f" labels, not probabilities; pass target.argmax({-1 if last else 1})"


def check_devices(planes: torch.Tensor, name: str, **others: torch.Tensor | None) -> None:
    for other, tensor in others.items():
        if tensor is not None and tensor.device != planes.device:
            raise ValueError(f"{other} is on {tensor.device}, expected the device of {name}, {planes.device}")


def check_center(features: torch.Tensor, target: torch.Tensor, centers: torch.Tensor, ignore_index: int) -> None:
    check_integer("ignore_index", ignore_index)
    _check_real("centers", centers)
    if centers.dim() != 2 or 0 in centers.shape:
        raise ValueError(f"centers has the shape {list(centers.shape)}, expected [C, D]")
    check_dense("features", features, 1)
    check_target(target, features, "features")
    if features.shape[1] != centers.shape[1]:
        raise ValueError(f"features has D = {features.shape[1]}, expected the D = {centers.shape[1]} of centers")
    if target.shape[1:] != features.shape[2:]:
        raise ValueError(
            f"target has the size {list(target.shape[1:])}, expected that of features, {list(features.shape[2:])}; "
            "resample the labels by their nearest neighbours"
        )
    check_devices(features, "features", target=target, centers=centers)


def check_weight(weight: torch.Tensor | None, num_classes: int | None = None) -> None:
    if weight is None:
        return
    _check_real("weight", weight)
    check_constant("weight", weight)
    if weight.dim() != 1 or (num_classes is not None and weight.shape[0] != num_classes):
        raise ValueError(f"weight has the shape {list(weight.shape)}, expected [C = {num_classes or 'num_classes'}]")


def check_constant(name: str, value: Any) -> None:
    """Refuse a tensor that asks for a derivative, which it would not get."""
    if isinstance(value, torch.Tensor) and is_differentiable(value):
        raise ValueError(f"{name} requires a gradient, expected a constant: the loss has none for it; detach it")


def is_differentiable(tensor: torch.Tensor) -> bool:
    """Whether a backward or a forward-mode derivative may follow the tensor."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or has_tangent(tensor)


def has_tangent(tensor: torch.Tensor) -> bool:
    """Whether the tensor carries a forward-mode derivative, of a dual level or of torch.func.jvp."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    if torch._C._are_functorch_transforms_active():
        return _is_tracked(tensor)
    return forward_ad.unpack_dual(tensor).tangent is not None


def _is_tracked(tensor: torch.Tensor) -> bool:
    """Whether torch.func differentiates by the tensor, at any of its levels."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")


def _check_real(name: str, tensor: Any) -> None:
    _check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has the dtype {tensor.dtype}, expected a floating-point one")


def check_sizes(logits: torch.Tensor, target: torch.Tensor, upsample: str | None) -> None:
    found, expected = list(target.shape[-2:]), list(logits.shape[-2:])
    if upsample is None and found != expected:
        raise ValueError(f"target has the size {found}, expected that of logits, {expected}, since upsample=None")


def check_weight_values(name: str, weight: torch.Tensor | None) -> None:
    """Reads the values: for tensors on the CPU, where reading does not stall a device."""
    if weight is None:
        return
    bad = ~(torch.isfinite(weight) & (weight >= 0))
    if bool(bad.any()):
        raise ValueError(f"{name} holds {weight[bad][0].item()}, expected finite values >= 0")


def check_values(
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pixel_weight: torch.Tensor | None,
    num_classes: int,
    ignore_index: int,
) -> None:
    """Reads the values: for tensors on the CPU, where reading does not stall a device."""
    check_labels(target, num_classes, ignore_index)
    check_weight_values("weight", weight)
    check_weight_values("pixel_weight", pixel_weight)


def check_labels(target: torch.Tensor, num_classes: int, ignore_index: int) -> None:
    """Reads the labels: for tensors on the CPU. On a GPU a label out of range makes its pixel's loss NaN instead."""
    labels = target.to(torch.int64)  # before comparing: uint8(156) == -100 in torch
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if bool(bad.any()):
        expected = f"[0, {num_classes}) or ignore_index = {ignore_index}"
        raise ValueError(f"target holds the label {labels[bad][0].item()}, expected {expected}")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def warn_of_classes(num_classes: int, normalize: bool, ignore_index: int) -> None:
    """Warns of two classes, whose standard score hides the logits, and of a class that is the void label."""
    if torch.compiler.is_compiling():
        return
    if num_classes == 2 and normalize:
        warn(
            "with C = 2 classes the standard score is +-1 whatever the logits, so that the loss sees only their sign "
            "and its gradient nearly vanishes; normalize=False avoids it"
        )
    if ignore_index == 255 and num_classes > 255:
        warn(
            f"with C = {num_classes} classes the ignore_index 255 is a class, too, whose pixels are void; pass "
            "another ignore_index"
        )


def warn_of_sizes(size: Sequence[int], labels: Sequence[int]) -> None:
    """Warns where the logits' height and width fit the labels' only in the other order."""
    if torch.compiler.is_compiling():  # to compare the sizes would be to compile for them
        return
    if not _are_of_one_stride(size, labels) and _are_of_one_stride(size[::-1], labels):
        (h, w), (height, width) = size, labels
        warn(
            f"logits of {h} x {w} are interpolated to a target of {height} x {width}, by {height / h:.4g} in height "
            f"and by {width / w:.4g} in width: is one of them transposed?"
        )


def _are_of_one_stride(size: Sequence[int], labels: Sequence[int]) -> bool:
    """Whether one ratio serves both axes, if the smaller size of each is off by less than a pixel, down or up."""
    axes = list(zip(size, labels, strict=True))
    least = max(min(high / (low + 1), (high - 1) / low) for low, high in axes)
    most = min(max(high / (low - 1) if low > 1 else math.inf, (high + 1) / low) for low, high in axes)
    return least < most


def warn(message: str) -> None:
    """Names the line that called the package, by a function or by a module's forward."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("lal_triton", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, level)
