"""Launch configurations: which one a launch takes, and what is fixed by the kernels' design.

What is tunable is named by a `Setting` and found, in this order, among those forced by `forcing`, by the `sources`, and
in `pinned.json`: the first of its rules that fits. All configurations of a setting compute the same; those of the first
four families, for equal `groups`, the same bits.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lal_triton.bilinear import most_pixels
from lal_triton.kernels.host import stand_in
from lal_triton.options import LocalLoss

Config = dict[str, int]

# What a configuration of a family holds.
#   prepare             columns: of a program, which has BAND_ROWS rows
#   local_loss_fwd,     rows, columns, strips: a program is strips x columns lanes, each owns `rows` pixels of a column;
#   local_cost_bwd      rows x strips is a power of two and at most BAND_ROWS
#   merge_bwd           and groups: of classes, that as many warps per strip work on at the same time
#   cell_loss_fwd       lanes: of a program, one for each patch of a cell; columns: of a patch's pixels, at most
#   cell_loss_bwd       lanes; columns; rows: of low-resolution pixels, down which a program goes; classes: of a program
#   step                saves_exp: 1 if the forward saves exp(f_c - f_y), 0 if the backward merges again
#   upsampled_loss_fwd, lanes: of a program
#   upsampled_loss_bwd
FAMILIES = {
    "prepare": ("columns",),
    "local_loss_fwd": ("rows", "columns", "strips"),
    "local_cost_bwd": ("rows", "columns", "strips"),
    "merge_bwd": ("rows", "columns", "strips", "groups"),
    "step": ("saves_exp",),
    "cell_loss_fwd": ("lanes", "columns"),
    "cell_loss_bwd": ("lanes", "columns", "rows", "classes"),
    "upsampled_loss_fwd": ("lanes",),
    "upsampled_loss_bwd": ("lanes",),
}
CLASS_BUCKETS = (32, 64, 256)


class Setting(NamedTuple):
    """A family of kernels, and what its configuration depends on."""

    family: str
    kernel_size: tuple[int, int]
    dtype: str  # of the logits, such as "float32"
    classes: int  # the bucket: no more than this many; 0: more than all buckets
    ratio: int  # of the labels' height to that of the logits, rounded; 1 at full resolution

    @classmethod
    def of(cls, family: str, logits: Any, labels_height: int, options: LocalLoss) -> "Setting":
        """For `[N, C, h, w]` logits, of which shape and dtype are read."""
        classes = next((bucket for bucket in CLASS_BUCKETS if logits.shape[1] <= bucket), 0)
        kernel_size = (options.kernel_height, options.kernel_width)
        ratio = round(labels_height / logits.shape[2])
        return cls(family, kernel_size, str(logits.dtype).removeprefix("torch."), classes, ratio)


_forced: dict[str, Config] = {}


@contextlib.contextmanager
def forcing(configs: Mapping[str, Config]) -> Iterator[dict[str, Config]]:
    """Every setting of these families takes these configurations, until the end; plans that exist keep theirs."""
    before = dict(_forced)
    _forced.update(configs)
    try:
        yield _forced
    finally:
        _forced.clear()
        _forced.update(before)


_asked: dict[Setting, None] | None = None


@contextlib.contextmanager
def asking() -> Iterator[dict[Setting, None]]:
    """The settings that `find` is asked for, in order."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before


sources: list[Callable[[Setting, torch.device], Config | None]] = []  # asked in order; None: the next one is asked


def find(setting: Setting, device: torch.device) -> Config:
    if _asked is not None:
        _asked[setting] = None
    if setting.family in _forced:
        return _forced[setting.family]
    for source in sources:
        if config := source(setting, device):
            return config
    return pinned(setting, device_class(device))


def pinned(setting: Setting, device_class: str) -> Config:
    """What ships with the package, for a class of devices as `device_class` names it."""
    for rule in _pinned_rules():
        if _fits(rule, setting, device_class):
            return dict(rule["config"])
    raise LookupError(f"pinned.json has no rule for {setting}")


def _fits(rule: Mapping[str, Any], setting: Setting, device_class: str) -> bool:
    height, width = setting.kernel_size
    classes = setting.classes or math.inf
    return (
        setting.family in rule["families"]
        and rule.get("device", device_class) == device_class
        and rule.get("dtype", setting.dtype) == setting.dtype
        and rule.get("ratio", setting.ratio) == setting.ratio
        and rule.get("most_taps", math.inf) >= height * width
        and rule.get("more_classes_than", 0) < classes
    )


@functools.cache
def _pinned_rules() -> list[dict[str, Any]]:
    return json.loads(Path(__file__).with_name("pinned.json").read_text())["rules"]


def device_class(device: torch.device) -> str:
    """A GPU's architecture, such as "sm_90" or "gfx942", also of what a stand-in compiles for; "any" for no GPU."""
    if stand_in.current:
        target = stand_in.current.target
        return f"sm_{target.arch}" if target.backend == "cuda" else target.arch
    if device.type != "cuda":
        return "any"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


# The float weights of a strip, rows x Kh x Kw, live in registers through the class loop; larger windows are walked.
WEIGHTS_IN_REGISTERS = 100


def is_large(options: LocalLoss) -> bool:
    return options.kernel_height * options.kernel_width > WEIGHTS_IN_REGISTERS


BAND_ROWS = 16  # of the pixels of a `prepare` program, which no strips of another kernel straddle
LEAST_BAND_COLUMNS = 32
PIXELS_PER_LANE = 4  # of `prepare`: they share what depends on the class alone
POOL_CHUNK = 2048  # pixels whose losses a program pools
POOL_IMAGES, POOL_CHUNKS = 16, 32  # whose results the last program reduces at once
POOL_LANES = 128
SLOPES_BLOCK = 1024


def offsets_size(shape: Sequence[Any], options: LocalLoss, upsampled: bool) -> Any:
    """Elements of what `prepare_fwd_kernel` calls `offsets`, at most, for labels of this shape."""
    if upsampled or not (options.normalize or len(options.window) > 1):
        return 0
    images, height, width = shape
    return images * (-(-height // BAND_ROWS)) * (-(-width // LEAST_BAND_COLUMNS))


def pooled_size(shape: Sequence[Any], reduction: str) -> Any:
    """Elements of what `pool_fwd_kernel` calls `pooled`, for labels of this shape."""
    if reduction == "none":
        return 1
    images, height, width = shape
    return 4 + 2 * images + 3 * images * (-(-height * width // POOL_CHUNK))


SCRATCH_BYTES = 64 * 2**20  # of a backward, which takes as many images, or rows of tiles, at once as fit

# The loss through an upsampling: the pixels of a tile and of each of its lanes to choose from.
TILES = (
    ((8, 8), (4, 2)),
    ((4, 4), (4, 2)),
    ((8, 8), (4, 1)),
    ((4, 4), (4, 1)),
    ((2, 4), (2, 1)),
    ((2, 2), (2, 1)),
)
MOST_VALUES = 145  # of a lane, in registers: see `footprint_fits`
MOST_FOOTPRINT = 25  # beyond, the slopes of a footprint's variance take more registers than there are
MOST_CODE = 400  # of what is compiled twice, with border tests and without: taps times footprint; its cube takes time
LOW_RESOLUTION_LANES = 128  # of a program of `low_resolution`, each with one low-resolution pixel or cell
PATCH_ROWS = 5  # at most, of the pixels of a patch
MOST_CELL_COLUMNS = 64  # of pixels, whose patches one program holds
MOST_OFFSET = 2**31 - 1  # in 32 bits


def footprint_fits(footprint: Sequence[int], lane: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """Whether the registers of a lane hold what it knows of a footprint of so many rows and columns.

    For each of its pixels a weight of each low-resolution one and of the window's columns; and the planes of T.
    """
    height, width = footprint
    values = math.prod(lane) * (height * width + kernel[1]) + (2 * height - 1) * (2 * width - 1)
    return height * width <= MOST_FOOTPRINT and values <= MOST_VALUES


def is_on_cells(options: LocalLoss) -> bool:
    """Whether `cell_loss` serves it through an upsampling: a loss without a window or a standard score."""
    return len(options.window) == 1 and not options.normalize


def upsampling_is_served(low: Sequence[int], high: Sequence[int], options: LocalLoss) -> bool:
    """Whether the kernels take these sizes: `high` is at least `low`.

    On cells all ratios up to MOST_CELL_COLUMNS; else where some tile surely has a small enough footprint: ratios from
    2 on, with K = 7 from 3 on.
    """
    if is_on_cells(options):
        most = most_pixels(low[1], high[1], options.align_corners)
        return most <= MOST_CELL_COLUMNS
    kernel = options.kernel_height, options.kernel_width
    tile, lane = TILES[-1]
    footprint = [
        min(part, (pixels + reach - 2) * part // full + 3)
        for part, full, reach, pixels in zip(low, high, kernel, tile, strict=True)
    ]
    return footprint_fits(footprint, lane, kernel)


def saves_exp(kernel_size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the forward shall save exp(f_c - f_y), which spares the backward a merge: for any number of classes."""
    name = str(dtype).removeprefix("torch.")
    return bool(find(Setting("step", kernel_size, name, 0, 1), device)["saves_exp"])


def may_save_exp(options: LocalLoss, num_classes: int, upsampled: bool) -> bool:
    """Whether it is safe: a gradient is divided by 1 + the sum of what is saved, and must not vanish."""
    return options.exp_is_bounded(num_classes, limit=40.0) and options.label_smoothing == 0 and not upsampled


PLANES = (
    "losses",
    "total",  # the sum over c != y of exp(f_c - top)
    "own_logit",  # of the label; through an upsampling it is f_y, in units of ln 2 where exp is bounded
    "mean",
    "rstd",
    "top",  # the highest f_c; where exp is bounded f_y, through an upsampling 0; 0 where a cell is close
    "inverse",  # 1 / xi
    "top_minus_own",  # top - f_y
)


def workspace_planes(options: LocalLoss, num_classes: int, upsampled: bool, saves_exp: bool) -> tuple[str, ...]:
    """Which PLANES, `[N, H, W]` each, the forward leaves for the backward."""
    on_cells = upsampled and is_on_cells(options)
    there = {
        "own_logit": not on_cells,
        "mean": options.normalize and not upsampled,
        "rstd": options.normalize,
        "top": not options.exp_is_bounded(num_classes),
        "inverse": saves_exp,
        "top_minus_own": on_cells,
    }
    return tuple(name for name in PLANES if there.get(name, True))
