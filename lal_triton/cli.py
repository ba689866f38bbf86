"""The console script `lal-triton`."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import lal_triton
from lal_triton import validation
from lal_triton.dispatch import choose_backend

if TYPE_CHECKING:
    from lal_triton.benchmarks import cases

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
EXTRAS = {  # and what they bring
    "bench": ("matplotlib", "PIL"),
    "train": ("lightning_fabric", "monai", "sklearn", "torchmetrics", "transformers"),
}
SWEEP = {  # by --upsample and --quick
    (False, False): (65, 129, 513),
    (False, True): (65, 129),
    (True, False): (256, 512, 1024, 2048),
    (True, True): (256, 512),
}
RATIOS = {False: (4, 8), True: (4,)}  # by --quick
WORKERS_TRACEBACK = re.compile(r"Caught \w+ in DataLoader worker.*\n\w+: ", re.DOTALL)  # stands before the message
TUNED_DTYPES = ("float32", "float16", "bfloat16")
TUNED_SHAPE = {False: (16, 21, 512, 512), True: (1, 3, 16, 16)}  # by --dry-run


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv
    try:
        return int(arguments.run(arguments))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        message = f'{package} is missing, install it by: pip install "lal_triton[{extra}]"'
    except (OSError, ValueError) as error:
        message = re.sub(WORKERS_TRACEBACK, "", str(error).rstrip())
    print(f"lal-triton: error: {message}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lal-triton", description="Locally Adaptive Learning loss for PyTorch.")
    parser.add_argument("--version", action="version", version=f"lal_triton {lal_triton.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bench = commands.add_parser(
        "bench",
        help="measure time and memory of the loss against its peers",
    )
    bench.add_argument("--output", type=Path, default=Path("bench_results"), help="folder to write (bench_results)")
    bench.add_argument("--quick", action="store_true", help="fewer repeats, sizes and compiled peers (below a minute)")
    bench.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    bench.add_argument(
        "--dtype", nargs="+", choices=DTYPES, metavar="DTYPE", help="default: float32; on a GPU float32 bfloat16"
    )
    bench.add_argument("--backend", nargs="+", choices=("cpu", "triton"), help="default: triton on a GPU, else cpu")
    bench.add_argument("--kernel-size", nargs="+", type=int, default=[3, 5, 7], help="default: 3 5 7")
    bench.add_argument("--batch-size", type=_positive, help="default: 2; on a GPU 16")
    bench.add_argument(
        "--num-classes", nargs="+", type=_positive, help="default: 21; with --upsample 21 150; always 21 with --voc"
    )
    bench.add_argument("--size", type=_positive, help="side of the crops, all kernel sizes; 321; with --upsample 512")
    bench.add_argument("--sweep", nargs="*", type=_positive, help="sides for one kernel size; 65 129 513")
    bench.add_argument("--voc", type=Path, help="use PASCAL VOC: its folder VOC2012, or the VOCdevkit that holds it")
    bench.add_argument(
        "--upsample", nargs="*", type=_positive, metavar="RATIO", help="compare on logits smaller than the labels; 4 8"
    )
    bench.add_argument("--memory-limit", type=float, metavar="GIB", help="leave out peers that need more; all of it")
    bench.add_argument("--peers", action="store_true", help="compare with MONAI's, kornia's, smp's and Liger's losses")
    bench.set_defaults(run=run_bench)

    plot = commands.add_parser("plot", help="draw the plots of a results file")
    plot.add_argument("results", type=Path, help="a results.json of `lal-triton bench` or `lal-triton train`")
    plot.add_argument("--output", type=Path, help="folder for the plots (default: that of the results)")
    plot.set_defaults(run=run_plot)

    train = commands.add_parser("train", help="train a network with each of the losses, and compare what they reach")
    train.add_argument(
        "--data",
        choices=("nuclei", "digits", "voc"),
        help="nuclei: the shipped image, minutes on a CPU (default); digits: scenes of scikit-learn's; voc: with --voc",
    )
    train.add_argument("--voc", type=Path, help="PASCAL VOC 2012 with SBD: its folder VOC2012, or the VOCdevkit")
    train.add_argument(
        "--backbone",
        default="microsoft/resnet-101",
        help="of VOC's network: a file of weights, a name on the hub (microsoft/resnet-101), or none",
    )
    train.add_argument(
        "--head", choices=("bilinear", "deconv"), default="bilinear", help="of VOC's network: what upsamples the logits"
    )
    train.add_argument("--loss", nargs="+", metavar="NAME", help="default: all; docs/training.md lists them")
    train.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; with voc 0")
    train.add_argument("--iterations", type=_positive, help="default: the recipe's (VOC: 20,000)")
    train.add_argument("--batch-size", type=_positive, help="over all processes; default: the recipe's (VOC: 2)")
    train.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="default: 32-true"
    )
    train.add_argument("--workers", type=int, default=0, help="processes that load images, for each GPU; default: 0")
    train.add_argument("--output", type=Path, default=Path("train_results"), help="folder to write (train_results)")
    train.set_defaults(run=run_train)

    tune = commands.add_parser("tune", help="find the fastest launch configurations on this GPU and keep them")
    tune.add_argument("--kernel-size", nargs="+", type=int, help="default: 3 5 7; with --dry-run 3")
    tune.add_argument(
        "--shape",
        nargs=4,
        type=_positive,
        metavar=("N", "C", "H", "W"),
        help="images, classes, size of the labels; 16 21 512 512; with --dry-run 1 3 16 16",
    )
    tune.add_argument(
        "--upsample", nargs="+", type=_positive, metavar="RATIO", default=[1], help="labels to logits; default: 1"
    )
    tune.add_argument(
        "--dtype", nargs="+", choices=TUNED_DTYPES, metavar="DTYPE", default=["float32"], help="default: float32"
    )
    tune.add_argument(
        "--cache-dir", type=Path, help="folder to write; LAL_TRITON_CACHE_DIR must name it where it is to be used"
    )
    tune.add_argument(
        "--dry-run",
        action="store_true",
        help="rehearse with few candidates in Triton's interpreter; writes nothing without --cache-dir",
    )
    tune.set_defaults(run=run_tune)

    info = commands.add_parser("info", help="print versions, the device and the backends")
    info.add_argument("--cost", action="store_true", help="print what the kernels cost instead, told by compiling them")
    info.add_argument("--json", action="store_true", help="print the costs as JSON")
    info.add_argument("--kernel-size", nargs="+", type=int, default=[1, 3, 5, 7], help="of the costs; default: 1 3 5 7")
    info.add_argument("--num-classes", nargs="+", type=_positive, default=[21, 150], help="default: 21 150")
    info.add_argument(
        "--dtype",
        nargs="+",
        choices=TUNED_DTYPES,
        metavar="DTYPE",
        default=["float32", "bfloat16"],
        help="default: float32 bfloat16",
    )
    info.add_argument(
        "--upsample", nargs="+", type=_positive, metavar="RATIO", default=[1, 4, 8], help="default: 1 4 8"
    )
    info.set_defaults(run=run_info)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def run_bench(arguments: argparse.Namespace) -> int:
    """Exit status 1 where our own loss could not be measured; the peers may be skipped."""
    from lal_triton.benchmarks import runner, scenes, table, voc
    from lal_triton.plots import draw

    settings = _bench_settings(arguments)
    if arguments.voc:
        images = {voc.NUM_CLASSES: voc.read_voc(arguments.voc, settings.batch_size)}
    else:
        images = {num_classes: [scenes.read_nuclei(num_classes)] for num_classes in settings.num_classes}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / ("results_upsampled.json" if settings.ratios else "results.json")
    interrupted = False
    try:
        runner.run(settings, images, path)
    except KeyboardInterrupt:
        interrupted = True
        print("lal-triton: interrupted; this is what was measured until then", file=sys.stderr)
    results = json.loads(path.read_text())
    print(table.format_table(results))
    print("\nwrote", *[path, *draw(path, arguments.output)], sep="\n  ")
    failed = any(row["backend"] and row["skipped"] for row in results["rows"])
    return 130 if interrupted else int(failed)


def _bench_settings(arguments: argparse.Namespace) -> "cases.Settings":
    from lal_triton.benchmarks import capacity, cases, scenes, voc

    on_gpu = arguments.device == "cuda" or (arguments.device is None and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        raise ValueError("--device is cuda, expected cpu: PyTorch finds no GPU")
    for kernel_size in arguments.kernel_size:
        validation.check_kernel_size(kernel_size)
    upsample = arguments.upsample is not None
    classes = arguments.num_classes or ([21, 150] if upsample else [21])
    for num_classes in classes:
        if not 2 <= num_classes < scenes.VOID:
            raise ValueError(f"--num-classes is {num_classes}, expected 2 to {scenes.VOID - 1}")
    if len(classes) > 1 and not upsample:
        raise ValueError(f"--num-classes has {len(classes)} values, expected one without --upsample")
    size = arguments.size or (512 if upsample else 321)
    sweep = arguments.sweep if arguments.sweep is not None else SWEEP[upsample, arguments.quick]
    ratios = (arguments.upsample or RATIOS[arguments.quick]) if upsample else ()
    for ratio in ratios:
        if ratio < 2 or any(side % ratio for side in (size, *sweep)):
            raise ValueError(f"--upsample is {ratio}, expected at least 2 and a divisor of --size and --sweep")
    device = torch.device("cuda" if on_gpu else "cpu")
    limit = arguments.memory_limit
    return cases.Settings(
        device=device,
        dtypes=tuple(DTYPES[name] for name in arguments.dtype or (["float32", "bfloat16"] if on_gpu else ["float32"])),
        backends=tuple(arguments.backend or ["triton" if on_gpu else "cpu"]),
        kernel_sizes=tuple(arguments.kernel_size),
        batch_size=arguments.batch_size or (16 if on_gpu else 2),
        num_classes=(voc.NUM_CLASSES,) if arguments.voc else tuple(classes),
        size=size,
        sweep=tuple(sweep),
        quick=arguments.quick,
        ratios=tuple(ratios),
        memory_limit=capacity.available_bytes(device) if limit is None else int(limit * capacity.GIB),
        peers=arguments.peers,
    )


def run_plot(arguments: argparse.Namespace) -> int:
    from lal_triton.plots import draw

    output = arguments.output or arguments.results.parent
    output.mkdir(parents=True, exist_ok=True)
    print("wrote", *draw(arguments.results, output), sep="\n  ")
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    from lal_triton.benchmarks.training import experiment

    return experiment.main(arguments)


def run_tune(arguments: argparse.Namespace) -> int:
    """Exit status 1 where there is no GPU to tune for."""
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":  # which is read when Triton is imported
        command = [sys.executable, "-m", "lal_triton.cli", *arguments.argv]
        # without numpy's remarks on what the kernels compute in lanes that are masked out
        environment = {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning:triton.runtime.interpreter"}
        return subprocess.call(command, env={**os.environ, **environment})
    if not arguments.dry_run and not torch.cuda.is_available():
        print("lal-triton: error: PyTorch finds no GPU to tune for; --dry-run rehearses without one", file=sys.stderr)
        return 1
    from lal_triton.tuning import search

    results = search.tune(
        arguments.kernel_size or ([3] if arguments.dry_run else [3, 5, 7]),
        arguments.shape or TUNED_SHAPE[arguments.dry_run],
        [DTYPES[name] for name in arguments.dtype],
        arguments.upsample,
        "cpu" if arguments.dry_run else "cuda",
        cache_dir=arguments.cache_dir,
    )
    print(search.format_table(results))
    print(f"\nwrote {results[0].file or 'nothing'}")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    if arguments.cost:
        return _print_costs(arguments)
    if arguments.json:
        raise ValueError("--json is given without --cost")
    from lal_triton.benchmarks import environment

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    described = environment.describe(torch.device(device_type))
    for name in ("lal_triton", "torch", "triton", "numpy", "numba", "python", "device"):
        print(f"{name:12} {described[name] or 'not installed'}")
    automatic = choose_backend("auto", device_type, torch.float32)
    print(f"{'backends':12} {', '.join(available_backends(device_type))}; auto chooses {automatic}")
    return 0


def _print_costs(arguments: argparse.Namespace) -> int:
    from lal_triton.benchmarks.cost_model import model, table

    rows = model.measure(arguments.kernel_size, arguments.num_classes, arguments.dtype, arguments.upsample)
    print(model.format_json(rows) if arguments.json else table.format_table(rows))
    return 0


def available_backends(device_type: str) -> list[str]:
    available = []
    for backend in ("cpu", "triton"):
        try:
            available.append(choose_backend(backend, device_type, torch.float32))
        except ValueError:
            continue
    return available


if __name__ == "__main__":
    sys.exit(main())
