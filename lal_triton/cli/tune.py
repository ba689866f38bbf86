"""`lal-triton tune`."""

import argparse
import os
import sys
from pathlib import Path

from lal_triton.cli.values import KERNEL_DTYPES, positive

SHAPE = {False: (16, 21, 512, 512), True: (1, 3, 16, 16)}  # by --dry-run
INTERPRETED = {
    "TRITON_INTERPRET": "1",
    # without numpy's remarks on what the kernels compute in lanes that are masked out
    "PYTHONWARNINGS": "ignore::RuntimeWarning:triton.runtime.interpreter",
}

HELP = "find the fastest launch configurations on this GPU and keep them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel-size", nargs="+", type=int, help="default: 3 5 7; with --dry-run 3")
    parser.add_argument(
        "--shape",
        nargs=4,
        type=positive,
        metavar=("N", "C", "H", "W"),
        help="images, classes, size of the labels; 16 21 512 512; with --dry-run 1 3 16 16",
    )
    parser.add_argument(
        "--upsample", nargs="+", type=positive, metavar="RATIO", default=[1], help="labels to logits; default: 1"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=KERNEL_DTYPES, metavar="DTYPE", default=["float32"], help="default: float32"
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="folder to write; LAL_TRITON_CACHE_DIR must name it where it is to be used"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="rehearse with few candidates in Triton's interpreter; writes nothing without --cache-dir",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 where there is no GPU to tune for."""
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":  # which is read when Triton is imported
        command = [sys.executable, "-m", "lal_triton.cli", *arguments.argv]
        os.execve(sys.executable, command, {**os.environ, **INTERPRETED})
    import torch

    if not arguments.dry_run and not torch.cuda.is_available():
        print("lal-triton: error: PyTorch finds no GPU to tune for; --dry-run rehearses without one", file=sys.stderr)
        return 1
    from lal_triton.tuning import search

    results = search.tune(
        arguments.kernel_size or ([3] if arguments.dry_run else [3, 5, 7]),
        arguments.shape or SHAPE[arguments.dry_run],
        [getattr(torch, name) for name in arguments.dtype],
        arguments.upsample,
        "cpu" if arguments.dry_run else "cuda",
        cache_dir=arguments.cache_dir,
    )
    print(search.format_table(results))
    print(f"\nwrote {results[0].file or 'nothing'}")
    return 0
