"""Compile kernels for GPUs that need not be there and print what `kernels.compiling` reports, a JSON object per line.

A process that interprets cannot compile: run as `python compile_kernels.py CASES`, where CASES is a JSON list of
[kernel, kernel_size, dtype, target, options], without TRITON_INTERPRET. Among the options, `weighted` stands for class
weights, `upsampling` is a ratio, `default` is false for the other of the two ways of a step, and Triton's `maxnreg` and
`waves_per_eu` limit the registers.
"""

import json
import sys

import torch

from lal_triton.kernels import compiling
from lal_triton.options import Pooling, make_options

LIMITS = ("maxnreg", "waves_per_eu")


def record(kernel_size, dtype, target, upsampling=1, weighted=False, default=True, **options):
    local = make_options(kernel_size=kernel_size, **{"window": "chessboard", "normalize": True, **options})
    logits = torch.empty(2, 19, 65, 129, dtype=getattr(torch, dtype), device="meta")
    labels = torch.empty(2, 65 * upsampling, 129 * upsampling, dtype=torch.int64, device="meta")
    weight = torch.empty(19, device="meta") if weighted else None
    pooling = Pooling("mean" if weighted else "image", 1.0 if weighted else 3.0, ignore_index=255)
    launches = compiling.record_step(logits, labels, weight, local, pooling, target, default)
    return {kernel: launch for (_, kernel), (*_, launch) in launches.items()}


def main():
    for kernel, kernel_size, dtype, target, options in json.loads(sys.argv[1]):
        limits = {name: options[name] for name in LIMITS if name in options}
        chosen = {name: value for name, value in options.items() if name not in limits}
        launch = record(kernel_size, dtype, target, **chosen)[kernel]
        case = {"kernel": kernel, "kernel_size": kernel_size, "dtype": dtype, "target": target, **options}
        print(json.dumps({**case, **compiling.report(launch, compiling.TARGETS[target], limits)}), flush=True)


if __name__ == "__main__":
    main()
