"""Settings that hold while a run goes on: deterministic operations, and signals that wait for its next checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Operations that have no deterministic form on a GPU warn, and run. Enter it before cuBLAS is first called."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextmanager
def caught_interruption() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, which do nothing else: torchrun passes on what a terminal sends, too.

    Outside the main thread, where Python takes no signals, it is never set.
    """
    interrupted = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    handlers = {number: signal.signal(number, lambda *_: interrupted.set()) for number in numbers}
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
