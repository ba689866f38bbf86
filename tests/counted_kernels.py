"""Kernels whose loads and exponentials can be counted by reading. As a script this counts them by `cost_model.paths`.

It prints a JSON object of [loads, exponentials, instructions] of a thread, by kernel and number of classes.
"""

import json

import torch
import triton
import triton.language as tl

from lal_triton.benchmarks.cost_model import recorded
from lal_triton.kernels import compiling
from lal_triton.kernels.host.launch import Launch

LANES = 32
CLASSES = (20, 21, 52)


@triton.jit
def straight_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """2 loads, 1 exponential."""
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.exp2(tl.load(x + lane)) + tl.load(x + lane + C))


@triton.jit
def short_loop_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """1 + C loads, C exponentials; the compiler unrolls it."""
    lane = tl.arange(0, BLOCK)
    total = tl.load(x + lane)
    for c in range(C):
        total += tl.exp2(tl.load(x + c * BLOCK + lane))
    tl.store(out + lane, total)


@triton.jit
def nested_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """C (1 + K) loads, C exponentials."""
    lane = tl.arange(0, BLOCK)
    for c in range(C):
        total = tl.load(x + c * BLOCK + lane)
        for k in range(K):
            total = total * tl.load(x + (k * C + c) * BLOCK + lane) + k
            tl.debug_barrier()
        tl.store(out + c * BLOCK + lane, tl.exp2(total))


@triton.jit
def block_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """Blocks of 16 classes: 16 loads and exponentials for each, and a division, whose slow path is no loop's."""
    lane = tl.arange(0, BLOCK)[:, None]
    for c0 in range(0, C, 16):
        c = c0 + tl.arange(0, 16)[None, :]
        value = tl.load(x + c * BLOCK + lane, mask=c < C, other=0.0)
        tl.store(out + c * BLOCK + lane, tl.div_rn(tl.exp2(value), value), mask=c < C)


@triton.jit
def interior_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """C loads on either side, but two exponentials at the border; one program alone loads more."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if (tl.program_id(0) + 1) * BLOCK <= K:
        for c in range(C):
            total += tl.exp2(tl.load(x + c * K + lane))
    else:
        for c in range(C):
            value = tl.load(x + c * K + lane, mask=lane < K, other=0.0)
            total += tl.where(lane < K, tl.exp2(value) * tl.exp2(2.0 * value), 0.0)
    if tl.program_id(0) == K:
        for c in range(C):
            total += tl.load(x + c * K + lane + 1)
    tl.store(out + lane, total, mask=lane < K)


@triton.jit
def load_more(total, x, C):
    for c in range(C):
        total += tl.exp2(tl.load(x + c))
        tl.debug_barrier()
    return total


@triton.jit
def rare_kernel(out, x, C, K, BLOCK: tl.constexpr):
    """2 C loads; the branch that a comment calls rare has C more, and as many exponentials, each time."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        total += tl.load(x + c * BLOCK + lane)
        if tl.load(out + c) > 0:  # rare
            total = load_more(total, x, C)
    tl.store(out + lane, total)


KERNELS = (straight_kernel, short_loop_kernel, nested_kernel, block_kernel, interior_kernel, rare_kernel)


def count(function, classes):
    launch = Launch(function, 1, LANES, {"C": classes, "K": 7, "BLOCK": LANES})
    launch.given = (torch.empty(1, device="meta"),) * 2
    compiled = launch.compile(launch.given, compiling.TARGETS["sm_90"])
    thread = recorded.executed(launch, compiling.disassemble(compiled)).times(1 / LANES)
    return thread.loads, thread.exps, thread.instructions


if __name__ == "__main__":
    names = {function.__name__.removesuffix("_kernel"): function for function in KERNELS}
    print(json.dumps({name: {c: count(function, c) for c in CLASSES} for name, function in names.items()}))
