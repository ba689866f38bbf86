"""The launches of a step as the cost model reads them: their arguments, and what their threads execute."""

import re
from typing import Any

from torch import Tensor

from lal_triton.benchmarks.cost_model import paths, statements
from lal_triton.kernels.host.launch import Launch


def arguments_of(launch: Launch) -> dict[str, Any]:
    """All arguments by name, the tensors among them; the fields of records stand beside these under their own names."""
    given = {**dict(zip(launch.tensors, launch.given, strict=True)), **launch.arguments}
    fields = [value._asdict() for value in given.values() if hasattr(value, "_asdict")]
    return {**{name: value for record in fields for name, value in record.items()}, **given}


def identity(launch: Launch) -> str:
    """The same for launches that run the same compiled kernel."""
    return repr((launch.kernel.__name__, *launch.signature(launch.given), launch.lanes))


def executed(launch: Launch, disassembly: str) -> paths.Path:
    """What all threads of the launch execute, on the path of `paths`."""
    thread = paths.count(disassembly, statements.source_of(launch.kernel, arguments_of(launch)))
    return thread.times(max(32, launch.lanes) * launch.grid[0])


def tensors_used(launch: Launch, compiled: Any) -> dict[str, Tensor]:
    """Those that a kernel compiled for an NVIDIA GPU reads or writes: others are parameters that it never loads."""
    signature, _ = launch.signature(launch.given)
    parameters = [name for name, kind in signature.items() for _ in range(_parameters(kind))]
    loaded = {int(number) for number in re.findall(r"ld\.param\S*\s.*_param_(\d+)", compiled.asm["ptx"])}
    names = {name for i, name in enumerate(parameters) if i in loaded}
    return {name: value for name, value in arguments_of(launch).items() if name in names and isinstance(value, Tensor)}


def _parameters(kind: Any) -> int:
    """How many parameters of a compiled kernel one of the source is."""
    return sum(map(_parameters, kind)) if isinstance(kind, tuple) else int(kind != "constexpr")
