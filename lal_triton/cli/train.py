"""`lal-triton train`."""

import argparse
from pathlib import Path

from lal_triton.cli.values import not_negative, positive

HELP = "train a network with each of the losses, and compare what they reach"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        choices=("nuclei", "digits", "voc"),
        help="nuclei: the shipped image (default); digits: scenes of scikit-learn's; voc: with --voc. The first two "
        "take 19 and 21 minutes on two busy cores",
    )
    parser.add_argument("--voc", type=Path, help="PASCAL VOC 2012 with SBD: its folder VOC2012, or the VOCdevkit")
    parser.add_argument(
        "--backbone",
        default="microsoft/resnet-101",
        help="of VOC's network: a file of weights, a name on the hub (microsoft/resnet-101), or none",
    )
    parser.add_argument(
        "--head", choices=("bilinear", "deconv"), default="bilinear", help="of VOC's network: what upsamples the logits"
    )
    parser.add_argument("--loss", nargs="+", metavar="NAME", help="default: all; docs/training.md lists them")
    parser.add_argument("--seeds", nargs="+", type=not_negative, help="default: 0 1 2; with voc 0")
    parser.add_argument("--iterations", type=positive, help="default: the recipe's (VOC: 20,000)")
    parser.add_argument("--batch-size", type=positive, help="over all processes; default: the recipe's (VOC: 2)")
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="default: 32-true"
    )
    parser.add_argument(
        "--workers", type=not_negative, default=0, help="processes that load images, for each GPU; default: 0"
    )
    parser.add_argument("--output", type=Path, default=Path("train_results"), help="folder to write (train_results)")


def run(arguments: argparse.Namespace) -> int:
    from lal_triton.benchmarks.training import experiment

    return experiment.main(arguments)
