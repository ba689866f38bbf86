"""Record the launches of a step, compile them for GPUs that need not be there, and report what they take of one.

A process that interprets the kernels cannot compile them.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from lal_triton.kernels import configs
from lal_triton.kernels.host.launch import Launch, recording
from lal_triton.kernels.host.plan import Plan
from lal_triton.options import LocalLoss, Pooling

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def record_step(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LocalLoss,
    pooling: Pooling,
    device_class: str,
    default: bool = True,
) -> dict[tuple[str, str], list[Launch]]:
    """The launches with the configurations that ship for a class of devices, by phase and kernel.

    The tensors are on the device "meta", on which a warp counts 32 threads. What is not the default is the other of the
    two ways that `configs.FAMILIES["step"]` tells.
    """
    settings = {family: configs.Setting.of(family, logits, target.shape[1], options) for family in configs.FAMILIES}
    shipped = {family: configs.pinned(setting, device_class) for family, setting in settings.items()}
    saves_exp = bool(shipped["step"]["saves_exp"]) == default
    with configs.forcing(shipped), recording() as launches:
        plan = Plan(logits, target, weight, None, options, pooling, saves_exp)
        value, saved = plan.forward(logits, target, weight, None)
        forward = len(launches)
        plan.backward(torch.empty_like(value), logits, weight, None, saved)
    found: dict[tuple[str, str], list[Launch]] = {}
    for i, launch in enumerate(launches):
        phase = "forward" if i < forward else "backward"
        found.setdefault((phase, launch.kernel.__name__.removesuffix("_kernel")), []).append(launch)
    return found


def report(launch: Launch, target: GPUTarget, limits: dict[str, int] | None = None) -> dict[str, Any]:
    """Of a recorded launch, compiled; `limits` are options of Triton's that limit the registers."""
    return describe(launch.compile(launch.given, target, **(limits or {})), target)


def describe(compiled: Any, target: GPUTarget) -> dict[str, Any]:
    """Registers and bytes of spill of a thread, a program's threads and shared bytes, and whether it rounds to tf32."""
    return {
        **(_amd if target.backend == "hip" else _nvidia)(compiled),
        "threads": compiled.metadata.num_warps * target.warp_size,
        "shared_bytes": compiled.metadata.shared,
    }


def _nvidia(compiled: Any) -> dict[str, Any]:
    usage = _run("cuobjdump", "-res-usage", compiled)
    return {
        "registers": _number(r"REG:(\d+)", usage),
        "spill_bytes": _number(r"STACK:(\d+)", usage),
        "tf32": ".tf32" in compiled.asm["ptx"],
    }


def _amd(compiled: Any) -> dict[str, Any]:
    assembly = compiled.asm["amdgcn"]
    spills = _number(r"\.vgpr_spill_count:\s*(\d+)", assembly) + _number(r"ScratchSize: (\d+)", assembly)
    return {"registers": _number(r"\.vgpr_count:\s*(\d+)", assembly), "spill_bytes": spills, "tf32": False}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(found[1])


def disassemble(compiled: Any) -> str:
    """A kernel compiled for an NVIDIA GPU, with its source lines."""
    return _run("nvdisasm", "--print-line-info --print-code", compiled)


def _run(tool: str, options: str, compiled: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run(
            [TOOLS / tool, *options.split(), file.name], capture_output=True, text=True, check=True
        ).stdout
