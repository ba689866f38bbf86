"""`lal-triton bench`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lal_triton.cli.values import DTYPES, not_negative_number, positive
from lal_triton.progress import announce

if TYPE_CHECKING:
    import torch

    from lal_triton.benchmarks.cases import Settings

HELP = "measure time and memory of the losses, and of their peers"
SWEEP = {  # by --upsample and --quick
    (False, False): (65, 129, 513),
    (False, True): (65, 129),
    (True, False): (256, 512, 1024, 2048),
    (True, True): (256, 512),
}
RATIOS = {False: (4, 8), True: (4,)}  # by --quick


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("bench_results"), help="folder to write (bench_results)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer repeats, sizes and compiled peers: 3 minutes in place of 12 on two busy cores, 1 of 2 on idle ones",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, metavar="DTYPE", help="default: float32; on a GPU float32 bfloat16"
    )
    parser.add_argument("--backend", nargs="+", choices=("cpu", "triton"), help="default: triton on a GPU, else cpu")
    parser.add_argument("--kernel-size", nargs="+", type=int, default=[3, 5, 7], help="default: 3 5 7")
    parser.add_argument("--batch-size", type=positive, help="default: 2; on a GPU 16")
    parser.add_argument(
        "--num-classes", nargs="+", type=positive, help="default: 21; with --upsample 21 150; always 21 with --voc"
    )
    parser.add_argument("--size", type=positive, help="side of the crops, all kernel sizes; 321; with --upsample 512")
    parser.add_argument("--sweep", nargs="*", type=positive, help="sides for one kernel size; 65 129 513")
    parser.add_argument("--voc", type=Path, help="use PASCAL VOC: its folder VOC2012, or the VOCdevkit that holds it")
    parser.add_argument(
        "--upsample", nargs="*", type=positive, metavar="RATIO", help="compare on logits smaller than the labels; 4 8"
    )
    parser.add_argument(
        "--memory-limit", type=not_negative_number, metavar="GIB", help="leave out peers that need more; all of it"
    )
    parser.add_argument("--peers", action="store_true", help="compare with MONAI's, kornia's, smp's and Liger's losses")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 where our own loss could not be measured; the peers may be skipped."""
    from lal_triton.benchmarks import runner, scenes, table, voc
    from lal_triton.plots import draw

    settings = read_settings(arguments)
    if arguments.voc:
        images = {voc.NUM_CLASSES: voc.read_voc(arguments.voc, settings.batch_size)}
    else:
        images = {num_classes: [scenes.read_nuclei(num_classes)] for num_classes in settings.num_classes}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / ("results_upsampled.json" if settings.ratios else "results.json")
    path.unlink(missing_ok=True)
    interrupted = False
    try:
        runner.run(settings, images, path)
    except KeyboardInterrupt:
        if not path.exists():
            raise
        interrupted = True
        announce("interrupted; this is what was measured until then")
    results = json.loads(path.read_text())
    print(table.format_table(results))
    print("\nwrote", *[path, *draw(path, arguments.output)], sep="\n  ")
    failed = any(row["backend"] and row["skipped"] for row in results["rows"])
    return 130 if interrupted else int(failed)


def read_settings(arguments: argparse.Namespace) -> "Settings":
    """Of the defaults for the device; ValueError for what cannot be measured."""
    import torch

    from lal_triton import validation
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
    backends = arguments.backend or ["triton" if on_gpu else "cpu"]
    names = arguments.dtype or (["float32", "bfloat16"] if on_gpu else ["float32"])
    dtypes = [getattr(torch, name) for name in names]
    check_backends(backends, device, dtypes)
    limit = arguments.memory_limit
    return cases.Settings(
        device=device,
        dtypes=tuple(dtypes),
        backends=tuple(backends),
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


def check_backends(backends: list[str], device: "torch.device", dtypes: "list[torch.dtype]") -> None:
    """Before any peer is measured: ValueError where a backend cannot run our losses."""
    from lal_triton.dispatch import choose_backend

    for backend in backends:
        for dtype in dtypes:
            try:
                choose_backend(backend, device.type, dtype)
            except TypeError as error:
                raise ValueError(error) from None
    if device.type == "cpu" and "triton" in backends:
        announce(
            "Triton's interpreter runs the kernels: a step of LAL took a minute at --size 65, and 321 has 24 times it"
        )
