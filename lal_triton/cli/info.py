"""`lal-triton info`."""

import argparse

from lal_triton.cli.values import KERNEL_DTYPES, positive

HELP = "print versions, the device and the backends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cost", action="store_true", help="print what the kernels cost instead, told by compiling them"
    )
    parser.add_argument("--json", action="store_true", help="print the costs as JSON")
    parser.add_argument(
        "--kernel-size", nargs="+", type=int, default=[1, 3, 5, 7], help="of the costs; default: 1 3 5 7"
    )
    parser.add_argument("--num-classes", nargs="+", type=positive, default=[21, 150], help="default: 21 150")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=KERNEL_DTYPES,
        metavar="DTYPE",
        default=["float32", "bfloat16"],
        help="default: float32 bfloat16",
    )
    parser.add_argument(
        "--upsample", nargs="+", type=positive, metavar="RATIO", default=[1, 4, 8], help="default: 1 4 8"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.cost:
        return _print_costs(arguments)
    if arguments.json:
        raise ValueError("--json is given without --cost")
    import torch

    from lal_triton.benchmarks import environment
    from lal_triton.dispatch import choose_backend

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
    import torch

    from lal_triton.dispatch import choose_backend

    available = []
    for backend in ("cpu", "triton"):
        try:
            available.append(choose_backend(backend, device_type, torch.float32))
        except ValueError:
            continue
    return available
