"""How much of the machine a loss has: other work, as data loading makes it, and torch's threads."""

import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

BUSY = 0.8  # of a core: a thread that gets less shares it with other processes
REST = 0.25  # seconds in which the threads of torch that wait actively fall asleep
BLOCK = bytes(2**20)  # large enough for hashlib to release the interpreter's lock

SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with its parent, however that ends


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes that compute until the block ends."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor_share(threads: int, seconds: float = 0.03) -> float:
    """Processor time over wall time of the slowest of so many threads: 1 on an idle machine, less on a busy one.

    The threads hash, so that they always have work. Those of a loss sleep at times, and their processor time is below
    the wall time on an idle machine, too. The slowest counts, since a loss waits for its last thread. A share below
    `BUSY` is measured again after `REST`, and the larger one counts.
    """
    share = _least_share(threads, seconds)
    if share >= BUSY:
        return share
    time.sleep(REST)
    return max(share, _least_share(threads, seconds))


def _least_share(threads: int, seconds: float) -> float:
    shares: list[float] = []

    def work() -> None:
        wall, processor = time.perf_counter(), time.thread_time()
        while time.perf_counter() - wall < seconds:
            hashlib.sha256(BLOCK)
        shares.append((time.thread_time() - processor) / (time.perf_counter() - wall))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return min(shares)


def was_busy(row: dict[str, Any]) -> bool:
    """Of a row of a results file; False where it does not tell, as in older files."""
    share = row.get("processor_share")
    return share is not None and share < BUSY


def busy_remark(rows: Sequence[dict[str, Any]], mark: str) -> str:
    """What to say about rows of a busy machine, which `mark` tells from the others; empty where it was idle."""
    measured = [row for row in rows if not row["skipped"]]
    busy = [row for row in measured if was_busy(row)]
    if not busy:
        return ""
    least = min(row["processor_share"] for row in busy)
    return (
        f"The machine was busy: {len(busy)} of {len(measured)} times are too long ({mark}). "
        f"A thread got {least:.2f} of a core at worst."
    )
