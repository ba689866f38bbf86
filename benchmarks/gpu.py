"""Installs the checkout on a machine with a GPU, tests it natively, tunes it and measures it; needs no network.

Each part is a process of its own with a time limit, below eight minutes together; one that fails, hangs or cannot start
does not stop the others. After each the output folder holds what was found so far, in seven small files: summary.json,
log.txt (the end of what each part printed), and those of COLLECTED (`lal-triton plot` draws the results). What is
benchmarked are the configurations that ship; tuning comes last, as most of its time goes into compiling.

With `--quick` it looks whether the kernels are right and what they take, in 200 seconds: see gpu_quick.py.
"""

import argparse
import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import gpu_quick
from .parts import Outcome, Part, failed, format_summary, run_parts

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = {  # folders of the checkout, and where the package has them
    "lal_triton": "lal_triton",
    "kernels": "lal_triton/kernels",
    "benchmarks": "lal_triton/benchmarks",
    "plots": "lal_triton/plots",
}
TESTS = [  # of what runs on the GPU, the kernels first: the time may not suffice for all
    "kernels",
    "cells",
    "upsampled_kernels",
    "program_order",
    "ops",
    "steps",
    "overhead",
    "non_finite",
    "autocast",
    "max_pooling",
    "upsampling",
    "backends",
    "modules",
    "subclasses",
    "derivatives",
    "cross_entropy",
    "focal",
    "center",
    "empty_batch",
    "reference",
    "validation",
    "process_group",
    "tuning",
]
SECONDS = {  # of the parts, in their order; what one leaves, those after it may use
    "install": 20,
    "tests": 130,
    "bench": 85,
    "bench_upsampled": 45,
    "overhead": 30,
    "sanitizer": 35,
    "tune": 60,
    "tune_upsampled": 30,
}
COLLECTED = {  # files of the output folder, and which of the scratch folder they are
    "failures.txt": "failures.txt",
    "tuning.json": "tuning/*.json",
    "results.json": "bench/results.json",
    "results_upsampled.json": "bench_upsampled/results_upsampled.json",
    "overhead.json": "overhead.json",
}
ARGUMENTS = {  # of lal-triton; tuning keeps the sizes that it is done with when it is interrupted
    "bench": "--dtype float32",
    "bench_upsampled": "--upsample --quick --dtype float32 --backend triton",
    "tune": "--kernel-size 5 3 7",
    "tune_upsampled": "--kernel-size 5 --upsample 4",
}
TINY = "--quick --device cpu --backend cpu triton --num-classes 3 --batch-size 1 --size 8 --kernel-size 1 --sweep"
DRY_ARGUMENTS = {
    "bench": TINY,
    "bench_upsampled": f"{TINY} --upsample 4",
    "tune": "--dry-run --kernel-size 1 --shape 1 3 4 4",
}
NOT_DRY: dict[str, list[str] | str] = {
    "tune_upsampled": "a dry run tunes once",
    "overhead": "a dry run has no half minute to compile",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Install the checkout on a GPU, test it, tune it and measure it.")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the files, those of --quick in its folder quick"
    )
    parser.add_argument("--quick", action="store_true", help="every kernel once, and the rows to look at first")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: kernels interpreted, tiny sizes")
    tests = [CHECKOUT / "tests" / f"test_{name}.py" for name in TESTS]
    parser.add_argument("--tests", nargs="+", type=Path, default=tests, help="what pytest runs")
    arguments = parser.parse_args()
    output = (arguments.output / "quick" if arguments.quick else arguments.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        environment = environment_of(scratch, arguments.dry_run)
        if arguments.quick:
            assemble_package(scratch / "site")
            planned = gpu_quick.list_parts(CHECKOUT, scratch / "site", output, arguments.dry_run)
            summary = run_parts(planned, environment | gpu_quick.ENVIRONMENT, scratch, output)
        else:
            copy_sources(scratch / "source")
            tests = [path.resolve() for path in arguments.tests]
            planned = list_parts(scratch, tests, arguments.dry_run)
            summary = run_parts(planned, environment, scratch, output, functools.partial(collect, scratch, output))
    print(f"\n{format_summary(summary)}")
    if arguments.quick:
        print(gpu_quick.format_table(output))
    return int(any(map(failed, summary.values())))


def environment_of(scratch: Path, dry_run: bool) -> dict[str, str]:
    """Of the parts' processes, which find the package in the scratch folder and run what ships, or what they tuned."""
    environment = os.environ | {
        "PYTHONPATH": str(scratch / "site"),
        "PYTHONUNBUFFERED": "1",
        "LAL_TEST_FAILURES": str(scratch / "failures.txt"),
        "LAL_TRITON_CACHE_DIR": str(scratch / "tuning"),
    }
    for name in ("TRITON_INTERPRET", "LAL_TRITON_AUTOTUNE"):
        environment.pop(name, None)
    if dry_run:
        environment |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
        environment["PYTHONWARNINGS"] = "ignore::RuntimeWarning:triton.runtime.interpreter"
    return environment


def list_parts(scratch: Path, tests: list[Path], dry_run: bool) -> Iterator[Part]:
    for name, command in commands(scratch, tests, dry_run).items():
        yield Part(SECONDS[name], {name: command})


def commands(scratch: Path, tests: list[Path], dry_run: bool) -> dict[str, list[str] | str]:
    """What each part runs, or why it does not."""
    python = [sys.executable, "-m"]
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(scratch / "site")]
    # Compiling the kernels takes most of the time: on many cores, if pytest-xdist is there.
    parallel = ["-n", str(min(16, os.cpu_count() or 1))] if not dry_run and importlib.util.find_spec("xdist") else []
    pytest = [
        "pytest",
        "-c",
        str(CHECKOUT / "pyproject.toml"),
        "--rootdir",
        str(CHECKOUT),
        "-m",
        "",
        *parallel,
    ]
    found: dict[str, list[str] | str] = {
        "install": [*python, *pip, str(scratch / "source")],
        "tests": [*python, *pytest, *map(str, tests)],
    }
    for name, arguments in (ARGUMENTS | (DRY_ARGUMENTS if dry_run else {})).items():
        command, option = ("tune", "--cache-dir") if name.startswith("tune") else ("bench", "--output")
        folder = scratch / (name if command == "bench" else "tuning")
        found[name] = [*python, "lal_triton.cli", command, option, str(folder), *arguments.split()]
    found["overhead"] = [*python, "lal_triton.benchmarks.overhead", "--output", str(scratch / "overhead.json")]
    found["sanitizer"] = sanitizer(dry_run)
    found |= NOT_DRY if dry_run else {}
    return {name: found[name] for name in SECONDS}


def sanitizer(dry_run: bool) -> list[str] | str:
    """Watches two checks, with each tensor in memory of its own, so that what is beyond its end is no other's."""
    checks = ["cross-entropy"] if dry_run else ["LAL 5", "LAL 5, x4"]
    watched = [sys.executable, str(CHECKOUT / "tests" / "kernel_checks.py"), "--launch-only", *checks]
    if dry_run:
        return watched
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + ["/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(os.path.join(home, "bin") for home in homes)]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if found is None:
        return "no compute-sanitizer on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin"
    options = ["--tool", "memcheck", "--error-exitcode", "1", "--report-api-errors", "no"]
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", found, *options, *watched]


def copy_sources(folder: Path) -> None:
    """A build writes into its folder, so it gets one that can be thrown away."""
    folder.mkdir()
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (CHECKOUT / name).exists():
            shutil.copy(CHECKOUT / name, folder)


def assemble_package(site: Path) -> None:
    """The layout that an installation would have."""
    shutil.rmtree(site, ignore_errors=True)
    for folder, place in PACKAGES.items():
        shutil.copytree(CHECKOUT / folder, site / place, ignore=shutil.ignore_patterns("__pycache__"))


def collect(scratch: Path, output: Path, name: str, outcome: Outcome) -> None:
    """Copies what there is by now, and tells how many settings were tuned by then: all others ran as pinned."""
    if name == "install":
        outcome["by"] = "pip"
        if failed(outcome):  # such as setuptools older than pyproject.toml asks for, and no network
            assemble_package(scratch / "site")
            outcome |= {"by": "copying", "rc": 0}
    for file, pattern in COLLECTED.items():
        for path in scratch.glob(pattern):
            shutil.copy(path, output / file)
    tuned = scratch.glob(COLLECTED["tuning.json"])
    outcome["tuned"] = sum(len(json.loads(path.read_text())["entries"]) for path in tuned)


if __name__ == "__main__":
    sys.exit(main())
