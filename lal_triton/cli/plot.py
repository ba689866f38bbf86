"""`lal-triton plot`."""

import argparse
from pathlib import Path

HELP = "draw the plots of a results file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="a results.json of `lal-triton bench` or `lal-triton train`")
    parser.add_argument("--output", type=Path, help="folder for the plots (default: that of the results)")


def run(arguments: argparse.Namespace) -> int:
    from lal_triton.plots import draw

    output = arguments.output or arguments.results.parent
    output.mkdir(parents=True, exist_ok=True)
    print("wrote", *draw(arguments.results, output), sep="\n  ")
    return 0
