"""Through which files a call of the loss goes, and how often it comes back to one.

    python -m lal_triton.benchmarks.call_path

Traced is `LocallyAdaptiveLoss(5)(logits, target).backward()`: the first call on tensors of a kind, and a repetition of
a module's call. A return is a call of a function in a file that the trace has left before. What is compiled at the
first call of a process is compiled beforehand. For the GPU stands one that drops launches.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

import lal_triton
from lal_triton import LocallyAdaptiveLoss, kernels
from lal_triton.kernels.host.stand_in import standing_in

FOLDERS = {
    Path(package.__file__).parent: name
    for package, name in ((lal_triton, "lal_triton"), (kernels, "kernels"))
    if package.__file__
}
SIZES = (24, 32)  # of the images: one compiles, the other is traced


class Trace(NamedTuple):
    files: tuple[str, ...]  # in the order in which they are entered
    returns: int


def trace(call: Callable[[], object]) -> Trace:
    """The package's files that a call goes through."""
    entered: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        folder = next((folder for folder in FOLDERS if event == "call" and path.is_relative_to(folder)), None)
        if folder is not None:
            name = f"{FOLDERS[folder]}/{path.relative_to(folder)}"
            if entered[-1:] != [name]:
                entered.append(name)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = tuple(dict.fromkeys(entered))
    return Trace(files, len(entered) - len(files))


def call_of(size: int, backend: str, loss: LocallyAdaptiveLoss | None = None) -> Callable[[], None]:
    """A loss, forward and backward; of a new module where none is given."""
    logits = torch.randn(1, 5, size, size, requires_grad=True)
    target = torch.randint(0, 5, (1, size, size))

    def call() -> None:
        (loss or LocallyAdaptiveLoss(5, backend=backend))(logits, target).backward()

    return call


def measure(backend: str) -> dict[str, Trace]:
    warm, traced = SIZES
    call_of(warm, backend)()
    first = trace(call_of(traced, backend))
    repeated = call_of(traced, backend, LocallyAdaptiveLoss(5, backend=backend))
    repeated()
    return {"first call": first, "repeated": trace(repeated)}


def drop(*launch: Any) -> None:
    """The stand-in's driver."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The files that a call of the loss goes through.")
    parser.add_argument("--files", action="store_true", help="print them, too")
    arguments = parser.parse_args()
    from triton.backends.compiler import GPUTarget

    found = {"CPU": measure("cpu")}
    with standing_in(drop, GPUTarget("cuda", 90, 32)):
        found["GPU"] = measure("triton")
    for device, traces in found.items():
        for name, (files, returns) in traces.items():
            print(f"{device}, {name}: {len(files)} files, {returns} returns")
            if arguments.files:
                print("\n".join(f"  {file}" for file in files))


if __name__ == "__main__":
    main()
