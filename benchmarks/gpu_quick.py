"""What `make gpu QUICK=1` runs, in 200 seconds: every kernel once, and each loss beside its peers.

The checks of tests/kernel_checks.py and the compiled peers are processes that run at once, since they spend their time
compiling. What they compile is in the caches of Triton and inductor when the rows of headline.py are timed, one part
after the other.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from .parts import Part

SECONDS = {"import": 25, "prepare": 65, "full": 32, "x4": 22, "x4-150": 26}  # what one leaves, the next may use
ENVIRONMENT = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # there are as many processes as cores
DRY_CHECKS = ("cross-entropy", "cross-entropy, x4")


def list_parts(checkout: Path, site: Path, output: Path, dry_run: bool) -> Iterator[Part]:
    """The package lies in `site`; from here on it is imported, to see what there is to run."""
    module = [sys.executable, "-m"]
    yield Part(SECONDS["import"], {"import": [*module, "lal_triton.cli", "info"]})
    sys.path[:0] = [str(site), str(checkout / "tests")]
    from kernel_checks import CHECKS

    from lal_triton.benchmarks import headline

    script = str(checkout / "tests" / "kernel_checks.py")
    headlines = {part: [*module, "lal_triton.benchmarks.headline", part] for part in headline.PARTS}
    checks = {f"check {name}": [sys.executable, script, name] for name in (DRY_CHECKS if dry_run else CHECKS)}
    peers = {
        f"compile {part} {case.name} {case.kernel_size or ''}".strip(): [*command, "--compile", str(i)]
        for part, command in headlines.items()
        for i, case in enumerate(headline.compiled_peers(part))
    }
    yield Part(SECONDS["prepare"], {**checks, **peers})
    for part, command in headlines.items():
        yield Part(SECONDS[part], {part: [*command, "--output", str(output / f"{part}.json")]})


def format_table(output: Path) -> str:
    from lal_triton.benchmarks import headline

    return headline.format_table({part: output / f"{part}.json" for part in headline.PARTS})
