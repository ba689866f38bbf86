"""Processes that compile kernels, for a process that may interpret them.

This file imports no Triton, which reads at its import whether it interprets.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor


@contextlib.contextmanager
def start_compilers(processes: int) -> Iterator[Executor]:
    """What they compile is in Triton's cache on disk when it is launched. After an error nothing else is begun."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """A process that interprets the kernels cannot compile them; one that is interrupted ends without a traceback.

    Where the parent ignores the interrupt, as a background job of a shell does, so does this one.
    """
    os.environ.pop("TRITON_INTERPRET", None)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that waits for work does not notice that its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
