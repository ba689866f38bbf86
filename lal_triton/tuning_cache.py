"""Configurations that were tuned, kept on disk.

One JSON file per device name and version set (lal_triton, torch, triton) lies in the folder `LAL_TRITON_CACHE_DIR`, or
else in the platform's cache folder. A process reads it at the first lookup, and again whenever it wrote to it itself;
what another process tunes in the meantime is seen by the next one. Nothing here can stop a training: a file that cannot
be read counts as empty, and what cannot be written is kept in memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lal_triton.kernels.configs import FAMILIES, Config, Setting

try:
    import fcntl
except ImportError:  # on Windows, where of two writers that meet one may lose its entries, but never the file
    fcntl = None  # type: ignore[assignment]

TRITON_DISTRIBUTIONS = ("triton", "triton-rocm", "pytorch-triton-rocm")


class Entry(NamedTuple):
    """The fastest configuration that was found for a setting, which may be the default."""

    setting: Setting
    config: Config
    milliseconds: float
    default_milliseconds: float
    date: str


_files: dict[Path, dict[Setting, Entry]] = {}  # what this process has read and tuned
_warned: set[Path] = set()


def lookup(setting: Setting, device: torch.device) -> Config | None:
    """The tuned configuration, None where there is none."""
    path = file_for(device)
    if path not in _files:
        _files[path] = _read(path)
    entry = _files[path].get(setting)
    return None if entry is None else dict(entry.config)


def store(entries: Iterable[Entry], device: torch.device, folder: Path | None = None) -> Path | None:
    """Add or replace entries; the path of the file, None if it could not be written.

    Processes that store at the same time lose nothing of one another's.
    """
    path = file_for(device, folder)
    added = {entry.setting: entry for entry in entries}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            merged = {**_read(path), **added}
            _replace(path, _format(merged.values(), device))
    except OSError as error:
        _warn(path, f"tuned configurations last as long as this process, {path} could not be written: {error}")
        _files[path] = {**_files.get(path, {}), **added}
        return None
    _files[path] = merged
    return path


def file_for(device: torch.device, folder: Path | None = None) -> Path:
    """Where configurations for a device are kept; what is no GPU has a file of its own."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    chosen = folder or os.environ.get("LAL_TRITON_CACHE_DIR") or _default_folder()
    return Path(chosen) / f"{_slug('_'.join([name, *map('-'.join, _versions())]))}.json"


@functools.cache
def _default_folder() -> Path:
    import platformdirs  # here: with LAL_TRITON_CACHE_DIR a machine without network can do without

    return platformdirs.user_cache_path("lal_triton") / "tuning"


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    import lal_triton

    triton = "none"
    for distribution in TRITON_DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            triton = importlib.metadata.version(distribution)
            break
    return ("lal_triton", lal_triton.__version__), ("torch", torch.__version__), ("triton", triton)


@functools.cache
def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._+]+", "-", name.lower())


def _read(path: Path) -> dict[Setting, Entry]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["entries"]
        entries = [_parse(entry) for entry in found]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        _warn(path, f"tuned configurations are ignored, {path} could not be read: {type(error).__name__}: {error}")
        return {}
    return {entry.setting: entry for entry in entries if entry is not None}


def _parse(found: Any) -> Entry | None:
    """None for what is no entry, or one of another version's families."""
    try:
        height, width = found["kernel_size"]
        setting = Setting(found["family"], (height, width), found["dtype"], found["classes"], found["ratio"])
        entry = Entry(setting, found["config"], found["milliseconds"], found["default_milliseconds"], found["date"])
        counts = (height, width, setting.classes, setting.ratio, *entry.config.values())
        known = set(entry.config) == set(FAMILIES[setting.family])
        valid = known and all(type(count) is int and count >= 0 for count in counts)
        valid = valid and isinstance(setting.dtype, str) and isinstance(entry.date, str)
        return entry if valid and entry.milliseconds >= 0 and entry.default_milliseconds >= 0 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _format(entries: Iterable[Entry], device: torch.device) -> str:
    """JSON with a line per entry."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    lines = []
    for entry in sorted(entries, key=lambda entry: entry.setting):
        fields = entry._asdict()
        lines.append("  " + json.dumps({**fields.pop("setting")._asdict(), **fields}))
    head = json.dumps({"device": name, "versions": dict(_versions())}, indent=1)
    return head.removesuffix("\n}") + ',\n "entries": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.close()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def _warn(path: Path, message: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
