"""How the functions here are compiled, once for a machine: numba keeps them in a folder of the user's."""

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event

logger = logging.getLogger("lal_triton")
# A product and a sum may be one instruction; nothing else is assumed. 1 / 0 is infinite. No function makes an array, so
# that none needs to count references ("_nrt").
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "_nrt": False}
inlined = numba.njit(**OPTIONS)


def compiled(function: Callable[..., Any]) -> Any:
    """A function that Python calls: it runs without the GIL and is kept on disk, where there is a place for it."""
    options = {**OPTIONS, "nogil": True}
    folder = _folder()
    if folder is None:
        return numba.njit(**options)(function)
    configured = vars(config)
    before = configured["CACHE_DIR"]
    configured["CACHE_DIR"] = str(folder)  # numba reads it when it decorates a function
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        configured["CACHE_DIR"] = before


@functools.cache
def _folder() -> Path | None:
    """A folder of its own for each state of these sources: numba looks at the file of the outermost function alone.

    None where it cannot be written, which a log message says once.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    chosen = os.environ.get("LAL_TRITON_CACHE_DIR")
    if chosen is None:
        import platformdirs

        chosen = platformdirs.user_cache_dir("lal_triton")
    folder = Path(chosen) / "cpu" / hashlib.sha256(sources).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        logger.warning("%s cannot be written: the loss for CPUs is compiled in each process", folder)
        return None
    return folder


class _Announcement(event.Listener):
    """Says that a sweep is compiled; what comes from the disk is not."""

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"].py_func.__name__ == "sweep":
            logger.warning("compiling the loss for CPUs (some seconds)")

    def on_end(self, event: event.Event) -> None:
        """Nothing more to say."""


event.register("numba:compile", _Announcement())
