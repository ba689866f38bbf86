"""Commands with time limits: one that fails, hangs or cannot start leaves the others their time."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

GRACE = 5  # seconds that a command has to save what it has, once interrupted
LOG_BYTES = 12 * 1024  # of each command
WAIT = 0.05  # seconds between two looks at the processes

Outcome = dict[str, Any]


class Part(NamedTuple):
    """Commands that run at once, as many as there are cores; a text in place of one says why it is left out."""

    seconds: int  # what one part leaves, those after it may use
    commands: Mapping[str, list[str] | str]


def run_parts(
    parts: Iterable[Part],
    environment: Mapping[str, str],
    folder: Path,
    output: Path,
    collect: Callable[[str, Outcome], None] = lambda name, outcome: None,
) -> dict[str, Outcome]:
    """How each command ended; `collect` may add to it.

    After each the output folder holds log.txt, the end of what each printed, and summary.json.
    """
    log = output / "log.txt"
    log.write_bytes(b"")
    summary: dict[str, Outcome] = {}
    deadline = time.monotonic()
    for part in parts:
        deadline += part.seconds + GRACE
        for name, outcome, text in run_part(part, deadline - GRACE, environment, folder):
            if not isinstance(command := part.commands[name], str):
                with log.open("ab") as file:
                    file.write(f"==== {name}: {shlex.join(command)}\n".encode() + text)
            summary[name] = outcome | {"last": text.decode(errors="replace").strip().rpartition("\n")[2]}
            collect(name, summary[name])
            (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
            print(format_outcome(name, summary[name]), flush=True)
    return summary


def run_part(
    part: Part, deadline: float, environment: Mapping[str, str], folder: Path
) -> Iterator[tuple[str, Outcome, bytes]]:
    """Name, outcome and output of each command as it ends; what did not begin before the deadline is left out."""
    waiting = dict(part.commands)
    running: dict[str, Process] = {}
    try:
        while waiting or running:
            late = time.monotonic() - deadline
            for name, command in list(waiting.items()):
                if isinstance(command, str) or late >= 0:
                    del waiting[name]
                    yield name, {"skipped": command if isinstance(command, str) else "time is short"}, b""
                elif len(running) < (os.cpu_count() or 1):
                    del waiting[name]
                    running[name] = Process(command, environment, folder)
            for name in [name for name, process in running.items() if process.has_ended(late)]:
                yield name, *running.pop(name).close()
            time.sleep(WAIT)
    finally:
        for process in running.values():
            process.close()


class Process:
    """A command outside the checkout, whose folders would shadow the installed package.

    The exit status is 127 where it cannot be started.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._start, self._late = time.monotonic(), False
        self._process: subprocess.Popen[bytes] | None = None
        with tempfile.NamedTemporaryFile(dir=folder, prefix="output-", delete=False) as output:
            self._output = Path(output.name)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=folder,
                    start_new_session=True,
                    preexec_fn=heed_interrupts,
                )
            except OSError as error:
                output.write(f"{error}\n".encode())

    def has_ended(self, late: float) -> bool:
        """Interrupts it and its children where it is late, and kills them where that does not help."""
        if self._process is None or self._process.poll() is not None:
            return True
        if late >= 0 and not self._late:
            self._late = True
            self._signal(signal.SIGINT)
        elif late >= GRACE:
            self._signal(signal.SIGKILL)
        return False

    def close(self) -> tuple[Outcome, bytes]:
        """Children that outlive it are killed: they would disturb what is measured next."""
        self._signal(signal.SIGKILL)
        rc = self._process.wait() if self._process else 127
        outcome = {"rc": rc, "seconds": round(time.monotonic() - self._start, 1), "timed_out": self._late}
        return outcome, self._output.read_bytes()[-LOG_BYTES:]

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process:
                os.killpg(self._process.pid, number)


def heed_interrupts() -> None:
    """A background job of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def format_summary(summary: Mapping[str, Outcome]) -> str:
    """What did not go well, and how much did."""
    well = [name for name, outcome in summary.items() if outcome.get("rc") == 0]
    lines = [format_outcome(name, summary[name]) for name in summary if name not in well]
    return "\n".join([*lines, f"{len(well)} of {len(summary)} ok"])


def failed(outcome: Outcome) -> bool:
    return outcome.get("rc", 0) != 0


def format_outcome(name: str, outcome: Outcome) -> str:
    if "skipped" in outcome:
        return f"{name:38} left out: {outcome['skipped']}"
    ending = "out of time" if outcome["timed_out"] else f"FAILED ({outcome['rc']})" if failed(outcome) else "ok"
    return f"{name:38} {ending:12} {outcome['seconds']:6.1f} s  {outcome['last'][:100]}".rstrip()
