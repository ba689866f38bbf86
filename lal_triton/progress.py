"""How far a command has come: tqdm's bar on a terminal, elsewhere lines with the time that is left."""

import math
import sys

from tqdm import tqdm

SECONDS = 20  # between two lines of one part


class _Lines:
    """A file that gets what tqdm would draw over its last bar, at the end the same once more."""

    last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self.last:
            print(line, file=sys.stderr)
            self.last = line

    def flush(self) -> None:
        sys.stderr.flush()


def start_bar(total: float, *, shown: bool = True) -> tqdm:
    """A bar whose description says what is done, and whose total is in any unit of work.

    Where standard error is no terminal, each new description is a line, and so is each update that comes `SECONDS`
    after the last one.
    """
    if sys.stderr.isatty() or not shown:
        bar_format = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        return tqdm(total=total, bar_format=bar_format, dynamic_ncols=True, disable=not shown)
    return tqdm(
        total=total,
        bar_format="{desc}: {percentage:.0f} % done, {elapsed} so far, about {remaining} left{postfix}",
        file=_Lines(),  # type: ignore[arg-type]
        mininterval=SECONDS,
        miniters=1,  # or tqdm chooses one by the time that iterations take
        smoothing=0,
        delay=1e-9,  # nothing is drawn before the first description
    )


def announce(text: str) -> None:
    print(f"lal-triton: {text}", file=sys.stderr)


def about(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} minutes" if minutes > 1 else "about a minute"
