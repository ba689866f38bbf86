"""Launch configurations: pinned, chosen by compiling so that nothing spills on sm_80, sm_90 and gfx942."""

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


def state_planes(options: LocalLoss, num_classes: int) -> int:
    """How many `[N, H, W]` planes the forward leaves for the backward: [mean, rstd,] [top,] total."""
    return 2 * options.normalize + (not options.exp_is_bounded(num_classes)) + 1
