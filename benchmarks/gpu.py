"""Installs the checkout on a machine with a GPU, tests it natively, tunes it and measures it; needs no network.

Each part is a process of its own with a time limit, below nine minutes together; one that fails, hangs or cannot start
does not stop the others. After each the output folder holds what was found so far, in seven small files: summary.json,
log.txt (the end of what each part printed), and those of COLLECTED (`lal-triton plot` draws the results). What is
benchmarked are the configurations that ship; tuning comes last, as most of its time goes into compiling.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = {  # folders of the checkout, and where the package has them
    "lal_triton": "lal_triton",
    "kernels": "lal_triton/kernels",
    "benchmarks": "lal_triton/benchmarks",
    "plots": "lal_triton/plots",
}
TESTS = [  # of what runs on the GPU, the kernels first: the time may not suffice for all
    "kernels",
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
    "bench": 110,
    "bench_upsampled": 50,
    "overhead": 30,
    "sanitizer": 35,
    "tune": 65,
    "tune_upsampled": 40,
}
GRACE = 5  # seconds that a part has to save what it has, once interrupted
LOG_BYTES = 12 * 1024  # of each part
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
    parser.add_argument("--output", type=Path, required=True, help="folder for the seven files")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: kernels interpreted, tiny sizes")
    tests = [CHECKOUT / "tests" / f"test_{name}.py" for name in TESTS]
    parser.add_argument("--tests", nargs="+", type=Path, default=tests, help="what pytest runs")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tests = [path.resolve() for path in arguments.tests]
        summary = run_parts(output, Path(scratch), tests, arguments.dry_run)
    print(json.dumps(summary, indent=1))
    return int(any(part["rc"] != 0 for part in summary.values() if "rc" in part))


def run_parts(output: Path, scratch: Path, tests: list[Path], dry_run: bool) -> dict[str, dict[str, Any]]:
    """How each part ended, or why it was skipped; "tuned" settings there were by then, all others ran as pinned."""
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
    copy_sources(scratch / "source")
    log = output / "log.txt"
    log.write_bytes(b"")
    summary: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic()
    for name, command in commands(scratch, tests, dry_run).items():
        deadline += SECONDS[name] + GRACE
        if isinstance(command, str):
            summary[name] = {"skipped": command}
        else:
            with log.open("ab") as file:
                file.write(f"==== {name}: {shlex.join(command)}\n".encode())
            summary[name] = run_part(command, deadline - GRACE - time.monotonic(), environment, scratch, log)
        if name == "install":
            summary[name]["by"] = "pip"
            if summary[name]["rc"] != 0:  # such as setuptools older than pyproject.toml asks for, and no network
                assemble_package(scratch / "site")
                summary[name] |= {"by": "copying", "rc": 0}
        summary[name]["tuned"] = collect(scratch, output)
        (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


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
    """Watches `step`, with each tensor in memory of its own, so that what is beyond its end is no other's."""
    device = "cpu" if dry_run else "cuda"
    watched = [sys.executable, "-c", f"from lal_triton.benchmarks import gpu; gpu.step({device!r})"]
    if dry_run:
        return watched
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + ["/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(os.path.join(home, "bin") for home in homes)]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if found is None:
        return "no compute-sanitizer on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin"
    options = ["--tool", "memcheck", "--error-exitcode", "1", "--report-api-errors", "no"]
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", found, *options, *watched]


def step(device: str) -> None:
    """LAL 5 x 5 and its gradient, at full resolution and upsampled, beside the float64 reference; fills no block."""
    import torch

    from lal_triton import LocallyAdaptiveLoss

    images, classes, height, width = (1, 3, 4, 8) if device == "cpu" else (2, 21, 44, 76)
    target = torch.randint(classes, (images, height, width), device=device)
    for ratio in (1, 4):
        size = (images, classes, height // ratio, width // ratio)
        logits = torch.randn(size, device=device, requires_grad=True)
        LocallyAdaptiveLoss(kernel_size=5, backend="triton")(logits, target).backward()
        oracle = logits.detach().double().requires_grad_()
        LocallyAdaptiveLoss(kernel_size=5, backend="reference")(oracle, target).backward()
        assert logits.grad is not None
        assert oracle.grad is not None
        error = (logits.grad - oracle.grad).norm() / oracle.grad.norm()
        assert error < 1e-4, f"upsampled by {ratio} the gradient has a relative error of {error:.2g}"


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


def collect(scratch: Path, output: Path) -> int:
    """Copies what there is by now; the number of settings that were tuned."""
    for name, pattern in COLLECTED.items():
        for path in scratch.glob(pattern):
            shutil.copy(path, output / name)
    tuned = scratch.glob(COLLECTED["tuning.json"])
    return sum(len(json.loads(path.read_text())["entries"]) for path in tuned)


def run_part(
    command: list[str], seconds: float, environment: dict[str, str], folder: Path, log: Path
) -> dict[str, Any]:
    """Runs outside the checkout, whose folders would shadow the installed package; adds the end of its output to `log`.

    The exit status is 127 where the command could not be started.
    """
    start = time.monotonic()
    rc, timed_out = 127, False
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )
            rc, timed_out = wait(process, seconds)
        except OSError as error:
            output.write(f"{error}\n".encode())
        output.seek(max(0, output.seek(0, os.SEEK_END) - LOG_BYTES))
        with log.open("ab") as file:
            file.write(output.read())
    return {"rc": rc, "seconds": round(time.monotonic() - start, 1), "timed_out": timed_out}


def heed_interrupts() -> None:
    """A background job of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(process: subprocess.Popen[bytes], seconds: float) -> tuple[int, bool]:
    """Interrupts the process and its children after `seconds`, and kills them where that does not help.

    Children that outlive it are killed in any case: they would disturb what is measured next.
    """
    try:
        for timed_out, limit, number in ((False, seconds, signal.SIGINT), (True, GRACE, signal.SIGKILL)):
            try:
                return process.wait(limit), timed_out
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, number)
        return process.wait(), True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
