"""Steps that together launch every kernel, each once against the float64 reference by the criterion of criterion.py.

    python tests/kernel_checks.py NAME...

A line tells of each how far the loss and the gradient are from the reference, and how far they may be. The launch
configurations are those that ship. As in `make gpu QUICK=1` a process may run one check alone: what a kernel does to
its process is then no other's trouble.
"""

import argparse
import sys
import traceback
from typing import Any, NamedTuple

import torch
from poison import poisoning
from problems import DEVICE, compare_with_reference, make_problem, value_and_gradient

SIZES = {"cuda": (40, 136), "cpu": (8, 16)}  # of the labels; on a GPU tiles at all borders, some of them not full
IMAGES = 3
BLOCK = 3  # side of the patches of one label

CROSS_ENTROPY = {"kernel_size": 1, "window": "uniform", "normalize": False, "reduction": "mean"}
FOCAL = {**CROSS_ENTROPY, "cost": "focal"}
LAL_3, LAL_5, LAL_7 = ({"kernel_size": size} for size in (3, 5, 7))


class Check(NamedTuple):
    options: dict[str, Any]  # of locally_adaptive_loss
    classes: int = 21
    ratio: int = 1  # of the labels' size to that of the logits
    dtype: torch.dtype = torch.float32
    size: tuple[int, int] = SIZES[DEVICE]

    def make(self) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = self.size
        logits = make_problem((IMAGES, self.classes, height // self.ratio, width // self.ratio))[0]
        patches = make_problem((IMAGES, self.classes, -(-height // BLOCK), -(-width // BLOCK)), labels=self.classes)[1]
        target = patches.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :height, :width]
        return logits, target.contiguous()


CHECKS = {  # what takes longest to compile comes first
    "LAL 7, x4": Check(LAL_7, ratio=4),
    "LAL 7": Check(LAL_7),
    "LAL 5, x4": Check(LAL_5, ratio=4),
    "LAL 5, x4, C = 150": Check(LAL_5, ratio=4, classes=150),
    "LAL 5": Check(LAL_5),
    "LAL 5, C = 150": Check(LAL_5, classes=150),
    "LAL 5, bfloat16": Check(LAL_5, dtype=torch.bfloat16),
    "LAL 3, x4": Check(LAL_3, ratio=4),
    "LAL 3": Check(LAL_3),
    "LAL 3, not normalized": Check({**LAL_3, "normalize": False}),
    "cross-entropy, x4": Check(CROSS_ENTROPY, ratio=4),
    "cross-entropy, x4, C = 150": Check(CROSS_ENTROPY, ratio=4, classes=150),
    "focal, x4": Check(FOCAL, ratio=4),
    "focal, x4, C = 150": Check(FOCAL, ratio=4, classes=150),
    "cross-entropy, x2": Check(CROSS_ENTROPY, ratio=2),
    "cross-entropy, x8": Check(CROSS_ENTROPY, ratio=8),
    "cross-entropy, x4, align_corners": Check({**CROSS_ENTROPY, "align_corners": True}, ratio=4),
    "cross-entropy, x4, bfloat16": Check(CROSS_ENTROPY, ratio=4, dtype=torch.bfloat16),
    "cross-entropy, x4, smoothing": Check({**CROSS_ENTROPY, "label_smoothing": 0.1}, ratio=4),
    "cross-entropy": Check(CROSS_ENTROPY),
    "focal": Check(FOCAL),
    "cross-entropy, smoothing": Check({**CROSS_ENTROPY, "label_smoothing": 0.1}),
}


def run(check: Check, compares: bool) -> tuple[bool, str]:
    """Whether it passes, and its errors."""
    logits, target = check.make()
    with poisoning():
        if not compares:
            value_and_gradient(logits.to(check.dtype), target, check.dtype, backend="triton", **check.options)
            return True, "launched"
        comparisons = compare_with_reference(logits, target, "triton", check.dtype, **check.options)
    errors = [comparison.errors() for comparison in comparisons]
    texts = [f"{error:.1e} of {allowed:.1e}" for error, allowed in errors]
    return all(error <= allowed for error, allowed in errors), "loss {}, gradient {}".format(*texts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kernels against the float64 reference.")
    parser.add_argument("names", nargs="+", choices=CHECKS, metavar="NAME", help=", ".join(map(repr, CHECKS)))
    parser.add_argument("--launch-only", action="store_true", help="compare nothing, as for a tool that watches")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.names:
        try:
            passes, text = run(CHECKS[name], compares=not arguments.launch_only)
        except Exception as error:  # whatever stops one, the others can still be tried
            traceback.print_exc()
            passes, text = False, f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        print(f"{name}: {text}: {'ok' if passes else 'FAILED'}", flush=True)
        failed |= not passes
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
