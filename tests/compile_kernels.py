"""Compile the kernels as `launch` would specialise them, for GPUs that need not be there, and report what they use.

A process that interprets cannot compile: run as `python compile_kernels.py CASES`, where CASES is a JSON list of
[operation, kernel_size, dtype, target, options], without TRITON_INTERPRET. It prints one JSON object per line. Among
the options, `weighted` stands for class weights, `upsampling` is a ratio, and Triton's `maxnreg` and `waves_per_eu`
limit the registers.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lal_triton.kernels import (
    arguments,
    backward,
    forward,
    launch,
    launch_upsampled,
    low_resolution,
    statistics,
    upsampled,
)
from lal_triton.options import make_options

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int8: "i8"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Recorder:
    """Stands in for a kernel: keeps the arguments of its launch instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.calls = kernel, []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.calls.append((args, kwargs))


def record(kernel_size: int, dtype: torch.dtype, options: dict[str, Any]) -> dict[str, Recorder]:
    """The launches of one forward and backward, on tensors without memory."""
    ratio = options.pop("upsampling", 1)
    weighted = options.pop("weighted", False)
    local = make_options(kernel_size=kernel_size, **{"window": "chessboard", "normalize": True, **options})
    logits = torch.empty(2, 19, 65, 129, dtype=dtype, device="meta")
    labels = torch.empty(2, 65 * ratio, 129 * ratio, dtype=torch.int32, device="meta")
    weight = torch.empty(19, device="meta") if weighted else None
    arguments.dot_precision = lambda device: "bf16x6"
    host, modules = (
        (launch, (statistics, forward, backward)) if ratio == 1 else (launch_upsampled, (low_resolution, upsampled))
    )
    recorders = {}
    for module in modules:
        for name in (name for name in vars(host) if name.endswith("_kernel") and hasattr(module, name)):
            recorders[name] = Recorder(getattr(module, name))
    for name, recorder in recorders.items():
        setattr(host, name, recorder)
    losses, state = host.local_loss(logits, labels, weight, local)
    host.local_loss_backward(losses, logits, labels, weight, state, local)
    return recorders


def compile_call(recorder: Recorder, target: GPUTarget, limits: dict[str, int]) -> Any:
    args, kwargs = recorder.calls[0]
    kernel = recorder.kernel
    bound = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = bound[parameter.name]
        tensor = isinstance(value, torch.Tensor)
        specialized = not tensor and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or specialized:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif tensor:
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants)
    num_warps = kwargs["num_warps"] * 32 // target.warp_size  # a lane is a thread
    stages = {"num_stages": kwargs["num_stages"]} if "num_stages" in kwargs else {}
    return triton.compile(source, target=target, options={"num_warps": num_warps, **stages, **limits})


def resources(compiled: Any, target: GPUTarget) -> dict[str, Any]:
    """Registers, bytes of spill, and whether any product is rounded to tf32."""
    if target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        spills, scratch = (
            int(re.search(pattern, assembly)[1]) for pattern in (r"\.vgpr_spill_count:\s*(\d+)", r"ScratchSize: (\d+)")
        )
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", assembly)[1])
        return {"registers": registers, "spill": spills + scratch, "tf32": False}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "spill": stack, "tf32": ".tf32" in compiled.asm["ptx"]}


def main() -> None:
    for operation, kernel_size, dtype, target, options in json.loads(sys.argv[1]):
        limits = {name: options[name] for name in ("maxnreg", "waves_per_eu") if name in options}
        chosen = {name: value for name, value in options.items() if name not in limits}
        recorder = record(kernel_size, getattr(torch, dtype), chosen)[f"{operation}_kernel"]
        compiled = compile_call(recorder, TARGETS[target], limits)
        case = {"operation": operation, "kernel_size": kernel_size, "dtype": dtype, "target": target, **options}
        print(json.dumps({**case, **resources(compiled, TARGETS[target])}), flush=True)


if __name__ == "__main__":
    main()
