"""What the compiler makes of the pinned configurations: no more than SMALL_SPILL is spilled, nothing rounded to tf32.

On sm_90 the default settings are compiled by `test_costs`.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from lal_triton.tuning.candidates import SMALL_SPILL

# By kernel: of a step that keeps what the backward needs, or of one that merges again.
KERNELS = {"local_loss_fwd": {}, "local_cost_bwd": {"default": False}, "merge_bwd": {}}
TARGETS = ("sm_80", "gfx942", "sm_90")
DTYPES = ("float32", "float16", "bfloat16")
WORKERS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


def shipped_cases():
    """Every kernel and kernel size; its targets and dtypes take turns, since K = 7 takes long.

    With LAL_COMPILE_ALL in the environment, every target and dtype too.
    """
    everything = "LAL_COMPILE_ALL" in os.environ
    for i, (kernel, options) in enumerate(KERNELS.items()):
        for j, kernel_size in enumerate((7, 5, 3)):
            for k, target in enumerate(TARGETS):
                if everything:
                    yield from ([kernel, kernel_size, dtype, target, options] for dtype in DTYPES)
                elif target != "sm_90" and (kernel_size < 7 or (i + k) % 2):
                    yield [kernel, kernel_size, DTYPES[(i + j + k) % 3], target, options]
    for i, kernel in enumerate(("prepare_fwd", "pool_fwd", "pool_bwd")):
        yield from ([kernel, 3, DTYPES[i], target, {}] for target in TARGETS[:2])
    yield from upsampled_cases(everything)
    yield from cell_cases(everything)
    plain = {"normalize": False, "window": "uniform"}
    yield ["local_loss_fwd", 1, "float16", "gfx942", plain]
    yield ["local_cost_bwd", 1, "float16", "sm_80", plain]
    yield ["local_cost_bwd", 3, "float32", "sm_90", {"label_smoothing": 0.1, "weighted": True}]
    yield ["local_loss_fwd", 3, "float32", "sm_90", {"cost": "focal", "normalize": False}]
    yield ["local_loss_fwd", 11, "float32", "sm_90", {}]
    yield ["merge_bwd", 11, "float32", "gfx942", {}]


def upsampled_cases(everything):
    """Frames of all sizes; of the logits' dtype only the kernels at low resolution know."""
    for i, (kernel, dtype) in enumerate(zip(("centre_fwd", "gather_bwd"), DTYPES[1:], strict=True)):
        yield [kernel, 7, dtype, TARGETS[i], {"upsampling": 4}]
    yield ["interpolated_rstd", 5, "float32", "sm_80", {"upsampling": 8}]
    default = [(5, {"upsampling": 4}), (5, {"upsampling": 8}), (7, {"upsampling": 4})]
    others = [
        (3, {"upsampling": 4, "label_smoothing": 0.1, "weighted": True}),
        (5, {"upsampling": 4, "align_corners": True}),
        (7, {"upsampling": 8}),
        (5, {"upsampling": 2, "label_smoothing": 0.1, "weighted": True}),
    ]
    for kernel in ("upsampled_loss_fwd", "upsampled_loss_bwd"):
        for i, (kernel_size, options) in enumerate([*default, *others]):
            targets = {TARGETS[i % 2]} if i < len(default) else {TARGETS[i % 2], "sm_90"}
            yield from ([kernel, kernel_size, "float32", t, options] for t in TARGETS if everything or t in targets)


def cell_cases(everything):
    """Patches of all sizes."""
    plain = {"normalize": False, "window": "uniform"}
    each = [
        {"upsampling": 8},
        {"upsampling": 2, "cost": "focal"},
        {"upsampling": 4, "align_corners": True},
        {"upsampling": 4, "label_smoothing": 0.1, "weighted": True},
        {"upsampling": 4},
    ]
    for i, (kernel, dtype) in enumerate(zip(("logit_range", "cell_loss_fwd", "cell_loss_bwd"), DTYPES, strict=True)):
        for j, options in enumerate(each if i else each[-1:]):
            targets = TARGETS if everything else {TARGETS[(i + j) % 3]}
            yield from ([kernel, 1, dtype, target, {**plain, **options}] for target in targets)


def compile_cases(cases):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")

    def run(part):
        command = [sys.executable, str(script), json.dumps(part)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(WORKERS) as pool:
        return [result for part in pool.map(run, (cases[i::WORKERS] for i in range(WORKERS))) for result in part]


@pytest.mark.long
def test_shipped_configurations_fit_in_registers():
    assert_nothing_spills(list(shipped_cases()))


def test_one_target_of_each_kernel_fits_in_registers():
    """At its smallest kernel size, which compiles soonest."""
    smallest = {case[0]: case for case in sorted(shipped_cases(), key=lambda case: -case[1])}
    assert_nothing_spills(list(smallest.values()))


def assert_nothing_spills(cases):
    print(f"compiling {len(cases)} kernels", file=sys.stderr)
    results = compile_cases(cases)
    assert len(results) == len(cases)
    assert [result for result in results if result["spill_bytes"] > allowed_spill(result) or result["tf32"]] == []


def allowed_spill(result):
    """With label smoothing 1 / xi of half a lane's 8 pixels waits in memory while the classes have all registers."""
    waits = result["kernel"] == "upsampled_loss_bwd" and "label_smoothing" in result
    return 4 * 4 if waits else SMALL_SPILL


def test_calls_that_differ_in_tuples_alone_do_not_share_a_function(tmp_path):
    """As they would under Triton 3.5 and 3.6, and compute something else."""
    kernels = {"upsampled_loss_bwd": {"upsampling": 4}, "upsampled_loss_fwd": {"upsampling": 4}, **KERNELS}
    cases = [[kernel, 3, "float32", "sm_90", options] for kernel, options in kernels.items()]
    plain = {"normalize": False, "window": "uniform", "upsampling": 8, "label_smoothing": 0.1}
    cases += [[kernel, 1, "float32", "sm_90", plain] for kernel in ("cell_loss_fwd", "cell_loss_bwd")]
    script = Path(__file__).with_name("shared_functions.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(cases)],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},  # what is in the cache makes no calls
        check=True,
    )
    count, *shared = done.stdout.splitlines()[len(cases) :]
    assert int(count.split()[0]) > 100
    assert shared == []


@pytest.mark.long
def test_spills_are_seen():
    starved = [
        ["merge_bwd", 5, "float32", "sm_90", {"maxnreg": 64}],
        ["merge_bwd", 5, "float32", "gfx942", {"waves_per_eu": 8}],
    ]
    assert all(result["spill_bytes"] > SMALL_SPILL for result in compile_cases(starved))
