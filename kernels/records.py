"""What the host tells a kernel, as records: each is one argument of the kernel.

Runtime records have the values of one launch. Of these the compiler knows nothing but a stride of 1 along a row. Specs
have what a kernel is compiled for.
"""

from typing import Any, NamedTuple


class Strides(NamedTuple):
    """Of a tensor `[N, C, H, W]`, in elements."""

    n: Any
    c: Any
    h: Any
    w: Any


class PlaneStrides(NamedTuple):
    """Of a tensor `[N, H, W]`, in elements; all 0 where there is no tensor."""

    n: int = 0
    h: int = 0
    w: int = 0


class Size(NamedTuple):
    """Of logits `[N, C, H, W]`, and the elements of each `[N, H, W]` plane of the workspace."""

    H: int
    W: int
    C: int
    plane: int


class UpsampledSize(NamedTuple):
    """Of logits `[N, C, h, w]` and of labels `[N, H, W]`."""

    h: int
    w: int
    H: int
    W: int
    C: int
    plane: int  # elements of each `[N, H, W]` plane of the workspace


class LossOptions(NamedTuple):
    """The numbers in the loss of a pixel, and the stride of the pixels whose loss is taken."""

    centre_stride: int
    smoothing: float
    alpha: float
    gamma: float


class LossSpec(NamedTuple):
    """Which loss of a pixel a kernel is compiled for."""

    FOCAL: bool
    HAS_CLASS_WEIGHT: bool
    HAS_SMOOTHING: bool
    BOUNDED: bool  # exp(f_c - f_y) stays inside float32
    STRIDED: bool  # whether the loss is taken of some pixels only, `centre_stride` apart


class WindowSpec(NamedTuple):
    """Which window and which tiles a full-resolution kernel is compiled for."""

    WEIGHTS: tuple[float, ...] | None  # None where the window is LARGE: its weights are in memory
    KH: int
    KW: int
    ROWS: int  # of the pixels that a lane owns, one below the other
    COLUMNS: int  # of a tile, a lane each
    STRIPS: int  # of ROWS rows of a tile
    NORMALIZE: bool
    BY_WEIGHT: bool  # whether xi is the sum of the weights, not the count
    LARGE: bool
    SAVES_EXP: bool  # whether the forward saves exp(f_c - f_y) for the backward
    PLANES: tuple[int, ...]  # see `planes.find_plane`
    GROUPS: int = 1  # of classes, which a tile works on at the same time
    BAND_COLUMNS: int = 0  # of the pixels that one element of the plane `offsets` is of


class PreparationSpec(NamedTuple):
    """What `prepare_fwd_kernel` writes, and for how many pixels in a program."""

    ROWS: int
    COLUMNS: int
    HAS_OWN_LOGIT: bool
    HAS_MOMENTS: bool
    HAS_VOID_CHECK: bool
    PLANES: tuple[int, ...]


class PoolingSpec(NamedTuple):
    """Which pooling a kernel is compiled for, and its pixels in a program."""

    BLOCK: int
    REDUCTION: str
    HAS_POWER: bool  # whether p is not 1
    HAS_CLASS_WEIGHT: bool
    HAS_PIXEL_WEIGHT: bool
    STRIDED: bool  # see `LossSpec`
    WEIGHTS_IN_LOSS: bool  # class weights stand inside the smoothed loss of a pixel
    PLANES: tuple[int, ...]
    SLOPES: str = ""  # of which exponentials the backward makes slopes: "saved", "cells", or none


class AxisTables(NamedTuple):
    """The interpolation along an axis, as pointers, and its tiles: see `footprint`."""

    lower: Any
    fraction: Any
    base: Any
    lead: int  # pixels of the first tile that lie before the image


class FootprintSpec(NamedTuple):
    """Which window, tiles and footprints an upsampled kernel is compiled for."""

    KH: int
    KW: int
    TY: int  # pixels of a tile
    TX: int
    ROWS: int  # pixels of a lane
    COLUMNS: int
    SY: int  # low-resolution pixels of a footprint
    SX: int
    LANES: int  # of a program
    NORMALIZE: bool
    BY_WEIGHT: bool
    HAS_INTERIOR: bool  # whether programs whose windows lie inside the image have code of their own


class Band(NamedTuple):
    """Rows of tiles of some images."""

    first_tile: int
    tiles_y: int
    tiles: int  # of all these images


class PartsAxis(NamedTuple):
    """Along an axis: where the parts of a low-resolution pixel's gradient are."""

    first: Any  # [low], the first tile whose windows reach it
    base: Any  # [tiles], where a footprint begins
    begin: int  # the first tile that has a part
    tiles: int  # that have one
    span: int


class GatherSpec(NamedTuple):
    """Which tiles and blocks the gather of a gradient is compiled for."""

    NORMALIZE: bool
    TILES: int  # whose parts lie together
    MOST_Y: int  # tiles whose windows reach the same low-resolution pixel
    MOST_X: int
    BLOCK: int


class CellAxis(NamedTuple):
    """Along an axis: the cells, and what a pixel adds to the place in its cell. See `cells`."""

    start: Any  # pointer to [low + 2], the first pixel of each cell, and the end of the last
    fraction: Any  # pointer to [low + 1], where that pixel lies between the corners
    step: float  # from a pixel to the next, in low-resolution pixels


class CellSpec(NamedTuple):
    """Which patches of cells a kernel is compiled for."""

    PY: int  # pixels of a patch
    PX: int
    QY: int  # patches of a cell
    QX: int
    LANES: int
    WIDE: bool  # whether offsets in a plane of the logits, or of their gradient, need 64 bits
    PLANES: tuple[int, ...] = ()
    ROWS: int = 0  # of low-resolution pixels, down which a program of the backward goes
    CLASSES: int = 0  # of such a program
