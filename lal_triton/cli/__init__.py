"""The console script `lal-triton`, with a file for each of its commands.

Their options are parsed without torch, which a command imports when it runs.
"""

import argparse
import re
import sys
from collections.abc import Sequence

import lal_triton
from lal_triton.cli import bench, info, plot, train, tune

EXTRAS = {  # and what they bring
    "bench": ("matplotlib", "PIL"),
    "train": ("lightning_fabric", "monai", "sklearn", "torchmetrics", "transformers"),
}
WORKERS_TRACEBACK = re.compile(r"Caught \w+ in DataLoader worker.*\n\w+: ", re.DOTALL)  # stands before the message


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments, unknown = make_parser().parse_known_args(argv)
        if unknown:
            arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        arguments.argv = sys.argv[1:] if argv is None else argv
        return int(arguments.run(arguments))
    except KeyboardInterrupt as interruption:
        print(f"lal-triton: {str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        message = f'{package} is missing, install it in the checkout by: pip install ".[{extra}]"'
    except (OSError, ValueError) as error:
        message = re.sub(WORKERS_TRACEBACK, "", str(error).rstrip())
    print(f"lal-triton: error: {message}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lal-triton", description="Losses for semantic segmentation in PyTorch.")
    parser.add_argument("--version", action="version", version=f"lal_triton {lal_triton.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (bench, plot, train, tune, info):
        name = command.__name__.rpartition(".")[2]
        of_command = commands.add_parser(name, help=command.HELP)
        command.add_arguments(of_command)
        of_command.set_defaults(run=command.run, parser=of_command)
    return parser
