"""Launch configurations: pinned, chosen by compiling so that nothing spills on sm_80, sm_90 and gfx942."""

from collections.abc import Sequence
from typing import NamedTuple

from lal_triton.options import LocalLoss


class Strips(NamedTuple):
    """A program is `strips` x `columns` lanes; each lane owns `rows` output rows of one column."""

    rows: int
    columns: int
    strips: int

    @property
    def lanes(self) -> int:
        return self.columns * self.strips


# The float weights of a strip, rows x Kh x Kw, live in registers through the class loop.
WEIGHTS_IN_REGISTERS = 100


def choose_strips(kernel_height: int, kernel_width: int) -> Strips | None:
    """The configuration of a window, or None where its weights do not fit in registers."""
    taps = kernel_height * kernel_width
    for rows in (8, 4, 2, 1):
        if rows * taps <= WEIGHTS_IN_REGISTERS:
            return Strips(rows=rows, columns=64, strips=2)
    return None


LARGE_WINDOW = Strips(rows=1, columns=64, strips=2)
MOMENTS_BLOCK = 128

SCRATCH_BYTES = 64 * 2**20  # of a backward, which takes as many images, or rows of tiles, at once as fit

# The loss through an upsampling: the tiles of pixels to choose from, and the slots of a frame of low-resolution pixels,
# which is the depth of the products on the tensor cores.
TILES = ((8, 8), (4, 4))
MOST_SLOTS = 64
CLASSES_FORWARD = 32
CLASSES_BACKWARD = 16
LANES_PER_SLOT = 4
LOW_RESOLUTION_BLOCK = 32
LOW_RESOLUTION_CLASSES = 16
LOW_RESOLUTION_LANES = 128


def padded_span(span: int) -> int:
    """Slots of a frame along an axis: a power of two; 16 slots are the fewest that tensor cores multiply."""
    return max(4, 1 << (span - 1).bit_length())


def upsampling_is_served(low: Sequence[int], high: Sequence[int], options: LocalLoss) -> bool:
    """Whether some tile surely has a frame of few enough slots: all ratios from 2 on, and windows not too large."""
    kernel = options.kernel_height, options.kernel_width
    slots = 1
    for size, full, reach, tile in zip(low, high, kernel, TILES[-1], strict=True):
        slots *= padded_span(min(size, (tile + reach - 2) * size // full + 3))
    return slots <= MOST_SLOTS


def state_planes(options: LocalLoss, num_classes: int, upsampled: bool) -> int:
    """How many `[N, H, W]` planes the forward leaves for the backward: [mean, rstd,] [top,] total.

    Through an upsampling the mean is not among them.
    """
    score = options.normalize * (1 if upsampled else 2)
    return score + (not options.exp_is_bounded(num_classes)) + 1
