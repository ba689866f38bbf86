"""Installs the checkout, runs its tests natively on the GPU, and runs the benchmarks; needs no network.

Each part is a process of its own under a time limit (below nine minutes together), and a part that fails does not stop
the others. The output folder gets a log per part, the results of both benchmarks (`lal-triton plot` draws them) and
summary.json: seven small files.
"""

import argparse
import importlib.util
import json
import os
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
SECONDS = {"install": 60, "tests": 230, "bench": 100, "bench_upsampled": 120}
GRACE = 9  # seconds that a part has to save what it has, once interrupted
LOG_BYTES = 64 * 1024
TINY = "--quick --device cpu --backend torch triton --num-classes 3 --batch-size 1 --size 8 --kernel-size 1 3 --sweep"


def main() -> int:
    parser = argparse.ArgumentParser(description="Install the checkout, test it on the GPU, and run the benchmark.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: kernels interpreted, tiny sizes")
    parser.add_argument("--tests", nargs="+", type=Path, default=[CHECKOUT / "tests"], help="what pytest runs")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        summary = run_parts(output, Path(scratch), [path.resolve() for path in arguments.tests], arguments.dry_run)
    text = json.dumps(summary, indent=1)
    (output / "summary.json").write_text(text + "\n")
    print(text)
    return int(any(part["rc"] != 0 for part in summary.values()))


def run_parts(output: Path, scratch: Path, tests: list[Path], dry_run: bool) -> dict[str, dict[str, Any]]:
    site = scratch / "site"
    environment = os.environ | {"PYTHONPATH": str(site)}
    environment.pop("TRITON_INTERPRET", None)
    if dry_run:
        environment |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}

    def part(name: str, *arguments: str | Path) -> dict[str, Any]:
        command = [sys.executable, "-m", *map(str, arguments)]
        return run_part(command, SECONDS[name], environment, scratch, output / f"{name}.log")

    copy_sources(scratch / "source")
    pip = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target")
    summary = {"install": part("install", *pip, site, scratch / "source")}
    summary["install"]["by"] = "pip"
    if summary["install"]["rc"] != 0:  # such as setuptools older than pyproject.toml asks for, and no network to get it
        assemble_package(site)
        summary["install"] |= {"by": "copying", "rc": 0}
    # Compiling the kernels takes most of the time: on many cores, if pytest-xdist is there, and without the tests that
    # only compile.
    parallel = ["-n", str(min(8, os.cpu_count() or 1))] if not dry_run and importlib.util.find_spec("xdist") else []
    skipped = f"--ignore={CHECKOUT / 'tests' / 'test_compile.py'}"
    options = ["-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(CHECKOUT), skipped, *parallel]
    summary["tests"] = part("tests", "pytest", *options, *tests)
    tiny = TINY.split() if dry_run else []
    for name, more in {"bench": [], "bench_upsampled": ["--upsample", "4"] if dry_run else ["--upsample"]}.items():
        summary[name] = part(name, "lal_triton.cli", "bench", "--output", scratch / name, *tiny, *more)
        for results in (scratch / name).glob("*.json"):
            shutil.copy(results, output)
    return summary


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


def run_part(command: list[str], seconds: int, environment: dict[str, str], folder: Path, log: Path) -> dict[str, Any]:
    """Runs outside the checkout, whose folders would shadow the installed package; keeps the end of the log."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
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
        output.seek(max(0, output.seek(0, os.SEEK_END) - LOG_BYTES))
        log.write_bytes(output.read())
    return {"rc": rc, "seconds": round(time.monotonic() - start, 1), "timed_out": timed_out}


def heed_interrupts() -> None:
    """A background job of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(process: subprocess.Popen[bytes], seconds: int) -> tuple[int, bool]:
    """Interrupts the process and its children after `seconds`, and kills them where that does not help."""
    for limit, number in ((seconds, signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            return process.wait(limit), limit != seconds
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    return process.wait(), True


if __name__ == "__main__":
    sys.exit(main())
