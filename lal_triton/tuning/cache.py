"""Configurations that were tuned, kept on disk.

One JSON file per device name and version set (lal_triton, torch, triton) lies in the folder `LAL_TRITON_CACHE_DIR`, or
else in the platform's cache folder. A process reads it at the first lookup, and again whenever it wrote to it itself;
what another process tunes in the meantime is seen by the next one. Nothing here can stop a training: a file that cannot
be read counts as empty, and what cannot be written is kept in memory.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lal_triton import versions
from lal_triton.kernels.configs import FAMILIES, Config, Setting


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


def store(entry: Entry, device: torch.device, folder: Path | None = None) -> Path | None:
    """Add or replace an entry; the path of the file, None if it could not be written.

    Processes that store at the same time lose nothing of one another's.
    """
    import fcntl  # here: it is not on Windows, where nothing is tuned

    path = file_for(device, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            entries = {**_read(path), entry.setting: entry}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(_format(entries.values(), device), encoding="utf-8")
            os.replace(temporary, path)
    except OSError as error:
        _warn(path, f"tuned configurations last as long as this process, {path} could not be written: {error}")
        _files[path] = {**_files.get(path, {}), entry.setting: entry}
        return None
    _files[path] = entries
    return path


def file_for(device: torch.device, folder: Path | None = None) -> Path:
    """Where configurations for a device are kept; what is no GPU has a file of its own."""
    name = "_".join([_name(device), *map("-".join, _versions().items())])
    file = f"{re.sub(r'[^a-z0-9._+]+', '-', name.lower())}.json"
    if chosen := folder or os.environ.get("LAL_TRITON_CACHE_DIR"):
        return Path(chosen) / file
    import platformdirs  # here: with LAL_TRITON_CACHE_DIR a machine without network can do without

    return platformdirs.user_cache_path("lal_triton") / "tuning" / file


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def _versions() -> dict[str, str]:
    import lal_triton

    triton = versions.installed(*versions.TRITON_DISTRIBUTIONS) or "none"
    return {"lal_triton": lal_triton.__version__, "torch": torch.__version__, "triton": triton}


def _read(path: Path) -> dict[Setting, Entry]:
    try:
        entries = [_parse(found) for found in json.loads(path.read_text(encoding="utf-8"))["entries"]]
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
        entry = Entry(setting, *(found[name] for name in Entry._fields[1:]))
        counts = (height, width, setting.classes, setting.ratio, *entry.config.values())
        valid = set(entry.config) == set(FAMILIES[setting.family])
        valid = valid and all(type(count) is int and count >= 0 for count in counts)
        valid = valid and isinstance(setting.dtype, str) and isinstance(entry.date, str)
        return entry if valid and entry.milliseconds >= 0 and entry.default_milliseconds >= 0 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _format(entries: Iterable[Entry], device: torch.device) -> str:
    """JSON with a line per entry."""
    found = [{**entry.setting._asdict(), **entry._asdict()} for entry in sorted(entries)]
    lines = ["  " + json.dumps({name: fields[name] for name in fields if name != "setting"}) for fields in found]
    head = json.dumps({"device": _name(device), "versions": _versions()}, indent=1)
    return head.removesuffix("\n}") + ',\n "entries": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def _warn(path: Path, message: str) -> None:
    """Once for a file."""
    if path not in _warned:
        _warned.add(path)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
