"""Break the package in one place at a time, and see that the tests notice.

Run as a script (`make mutations`): each mutation is a patch of one file in a copy of the tree, on which the tests that
should notice are run. It prints a table, and exits with 1 where a mutation survives, with 2 where a patch does not fit
or tests fail without one. With the name of a file it writes the table there, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDERS = ("lal_triton", "kernels", "benchmarks", "plots", "tests")
WORKERS = 2
SECONDS = 300


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    tests: str


KERNELS = "tests/test_kernels.py -k 'test_merging_again or test_options or test_interior_tiles or test_shapes'"
TRITON = "tests/test_backends.py -k 'triton and test_every_option'"
TORCH = "tests/test_backends.py -k 'torch and (test_every_option or powers)'"
UPSAMPLED = "tests/test_upsampled_kernels.py -k 'test_every_ratio and lal'"
UPSAMPLING = "tests/test_upsampling.py -k 'test_every_option or test_every_ratio'"
VOID = "tests/test_non_finite.py -k 'triton and not 3e'"
RANKS = "tests/test_process_group.py"

MUTATIONS = [
    # ---- kernels
    Mutation(
        "no mask of labels in the window",
        "kernels/strips.py",
        "weight = tl.where(near == own[j], scale * w, 0.0)",
        "weight = scale * w",
        KERNELS,
    ),
    Mutation(
        "a tap one column off",
        "kernels/strips.py",
        "x_ptr = line + wide(cc - KW // 2) * stride_w",
        "x_ptr = line + wide(cc - KW // 2 + 1) * stride_w",
        KERNELS,
    ),
    Mutation("1 / xi skipped", "kernels/strips.py", "tl.div_rn(1.0, xi[j]), 0.0)", "1.0, 0.0)", KERNELS),
    Mutation(
        "window not mirrored in the backward",
        "kernels/launch.py",
        'options.window[::-1] if family == "merge_bwd"',
        'options.window if family == "merge_bwd"',
        KERNELS,
    ),
    Mutation(
        "own class counted among the others",
        "kernels/forward.py",
        "other = own[j] != c",
        "other = own[j] != c - C",
        KERNELS,
    ),
    Mutation(
        "maximum not subtracted",
        "kernels/forward.py",
        "so_far = total[j] * tl.exp(top[j] - highest)",
        "so_far = total[j]",
        "tests/test_kernels.py -k 'test_large_logits or test_options'",
    ),
    Mutation(
        "no border in the slow loop",
        "kernels/strips.py",
        "weighs = weighs | (weights[slot(r, cc, j, KH, KW, TH)] != 0)",
        "weighs = weighs | (weights[slot(r, cc, j, KH, KW, TH)] == weights[slot(r, cc, j, KH, KW, TH)])",
        VOID,
    ),
    Mutation(
        "NaN at void not flagged",
        "kernels/preparation.py",
        'tl.where(zeros == 0.0, 0.0, float("inf"))',
        "0.0",
        VOID,
    ),
    Mutation(
        "flag of the own band of rows only",
        "kernels/strips.py",
        "near = tl.minimum(tl.maximum(band + step - reach, 0), bands - 1)",
        "near = band",
        VOID,
    ),
    Mutation(
        "variance of large logits overflows",
        "kernels/preparation.py",
        "unit = tl.where(finite, 1.0, SMALL_UNIT)",
        "unit = tl.where(finite, 1.0, 1.0)",
        "tests/test_non_finite.py -k 'triton and large'",
    ),
    Mutation(
        "square of 1 / std in the backward",
        "kernels/backward.py",
        "(rstds[j] / C) * rstds[j],)",
        "(rstds[j] * rstds[j] / C),)",
        "tests/test_non_finite.py -k 'triton and large'",
    ),
    Mutation("eps forgotten", "kernels/preparation.py", "squares / C + eps * unit * unit", "squares / C", KERNELS),
    Mutation(
        "gradient not multiplied by grad_output",
        "kernels/pooling.py",
        "factor = tl.load(gradient).to(tl.float32)",
        "factor = tl.load(gradient).to(tl.float32) * 0.0 + 1.0",
        TRITON,
    ),
    Mutation(
        "one norm for all images",
        "kernels/pooling.py",
        "norm = tl.load(pooled + 4 + n)",
        "norm = tl.load(pooled + 4)",
        TRITON,
    ),
    Mutation(
        "no wait for the other programs",
        "kernels/pooling.py",
        "if arrived == size - 1:",
        "if tl.program_id(0) == size - 1:",
        "tests/test_program_order.py",
    ),
    Mutation(
        "stride of the centres off by one",
        "kernels/forward.py",
        "((row + j) % centre_stride == 0)",
        "((row + j + 1) % centre_stride == 0)",
        KERNELS,
    ),
    Mutation(
        "focal slope without its second term",
        "kernels/cost.py",
        "slope = 1.0 + gamma * (1.0 - miss) * (surprise / safe)",
        "slope = 1.0",
        KERNELS,
    ),
    Mutation(
        "bilinear weights swapped",
        "kernels/frames.py",
        "tl.where(slot == s, 1.0 - upper, tl.where(slot == s - 1, upper, 0.0))",
        "tl.where(slot == s, upper, tl.where(slot == s - 1, 1.0 - upper, 0.0))",
        UPSAMPLED,
    ),
    Mutation(
        "a diagonal neighbour left out of the gradient",
        "kernels/low_resolution.py",
        "mask=mask & exists, other=0.0)",
        "mask=mask & exists & (k != 8), other=0.0)",
        UPSAMPLED,
    ),
    Mutation(
        "variance of interpolated pixels without its cross terms",
        "kernels/low_resolution.py",
        "norm = (1.0 - u) * (1.0 - u) * left + u * u * far + 2.0 * u * (1.0 - u) * product",
        "norm = (1.0 - u) * (1.0 - u) * left + u * u * far",
        UPSAMPLED,
    ),
    # ---- torch backend
    Mutation(
        "labels not compared", "lal_triton/torch_windows.py", "same * window)", "torch.ones_like(same) * window)", TORCH
    ),
    Mutation("1 / xi skipped", "lal_triton/torch_backend.py", ".mul_(taps.xi.reciprocal()[:, None])", "", TORCH),
    Mutation(
        "average by weight forgotten",
        "lal_triton/torch_windows.py",
        "counted = self.window if self.by_weight else",
        "counted = self.window if False else",
        TORCH,
    ),
    Mutation(
        "own class forgotten",
        "lal_triton/torch_cost.py",
        "out.scatter_add_(1, cost.own, -slope[:, None])",
        "pass",
        TORCH,
    ),
    Mutation("a power too many", "lal_triton/torch_pooling.py", "** (self.p - 1)", "** self.p", TORCH),
    Mutation(
        "void filled after the score",
        "lal_triton/torch_backend.py",
        "pixels.index_fill_(0, void.nonzero()[:, 0], 0)",
        "pass",
        "tests/test_non_finite.py -k torch",
    ),
    Mutation(
        "border of the interpolation one pixel off",
        "lal_triton/bilinear.py",
        "((2 * pixel + 1) * low - high).clamp(min=0), 2 * high",
        "((2 * pixel + 1) * low).clamp(min=0), 2 * high",
        UPSAMPLING,
    ),
    Mutation(
        "align_corners ignored",
        "lal_triton/bilinear.py",
        "        if align_corners:\n",
        "        if False:\n",
        UPSAMPLING,
    ),
    Mutation(
        "gradient of the variance halved",
        "lal_triton/torch_upsampling.py",
        "(-0.5 / num_classes)",
        "(-0.25 / num_classes)",
        UPSAMPLING,
    ),
    Mutation(
        "void pixels spoil their logits",
        "lal_triton/torch_upsampling.py",
        "                spoiled &= (tile_labels != VOID)[..., None]\n",
        "",
        "tests/test_non_finite.py -k torch",
    ),
    # ---- around the backends
    Mutation(
        "images without a valid pixel counted",
        "lal_triton/pooling.py",
        "or_one(mass) ** (1 / p), mass > 0, process_group)",
        "or_one(mass) ** (1 / p), mass >= 0, process_group)",
        TORCH,
    ),
    Mutation(
        "pooled over this rank only",
        "lal_triton/ranks.py",
        "every[process_group.rank()] = local",
        "every = [local] * process_group.size()",
        RANKS,
    ),
    Mutation(
        "max-pooling without its bound",
        "lal_triton/max_pooling.py",
        "torch.where(powers > level, 1, ((powers - level) / norm).exp())",
        "((powers - level) / norm).exp()",
        "tests/test_max_pooling.py -k 'optimal or limits'",
    ),
    Mutation("no ignore_index", "lal_triton/labels.py", "labels == ignore_index, VOID", "labels == -7, VOID", TORCH),
    Mutation(
        "labels compared before widening",
        "lal_triton/validation.py",
        "labels = target.to(torch.int64)  # before comparing: uint8(156) == -100 in torch",
        "labels = target",
        "tests/test_validation.py",
    ),
    Mutation(
        "negative weights let pass",
        "lal_triton/validation.py",
        "bad = ~(torch.isfinite(weight) & (weight >= 0))",
        "bad = ~torch.isfinite(weight)",
        "tests/test_validation.py",
    ),
    Mutation(
        "any truth for a boolean",
        "lal_triton/validation.py",
        "    if not isinstance(value, (bool, np.bool_)):\n",
        "    if False:\n",
        "tests/test_validation.py",
    ),
    Mutation(
        "weights with a gradient let pass",
        "lal_triton/validation.py",
        "if isinstance(value, torch.Tensor) and is_differentiable(value):",
        "if False:",
        "tests/test_derivatives.py -k 'gradient_are_refused'",
    ),
    Mutation(
        "weights with a gradient let pass at the second call",
        "kernels/plans.py",
        "weight.dtype, weight.device, weight.requires_grad and torch.is_grad_enabled()",
        "weight.dtype, weight.device",
        "tests/test_derivatives.py -k 'gradient_are_refused'",
    ),
    Mutation(
        "autocast reaches into the ops",
        "lal_triton/ops.py",
        "with torch.autocast(device, enabled=False):",
        "with torch.no_grad():",
        "tests/test_autocast.py -k 'not triton'",
    ),
    Mutation(
        "second derivatives not refused",
        "lal_triton/derivatives.py",
        "    return _FirstDerivative.apply(value, *(source for source in sources if source is not None))\n",
        "    return value\n",
        "tests/test_derivatives.py -k 'second_derivatives'",
    ),
    Mutation(
        "forward mode by the other backends",
        "lal_triton/dispatch.py",
        "    if validation.has_tangent(logits):\n",
        "    if False:\n",
        "tests/test_derivatives.py -k forward_mode",
    ),
    Mutation(
        "an empty batch to the kernels",
        "lal_triton/dispatch.py",
        "    if len(logits) == 0:\n",
        "    if False:\n",
        "tests/test_empty_batch.py",
    ),
    Mutation(
        "a subclass passed on",
        "lal_triton/subclasses.py",
        "    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:\n",
        "    if False:\n",
        "tests/test_subclasses.py",
    ),
    Mutation(
        "1 / xi skipped",
        "lal_triton/reference.py",
        "return merged / torch.where(valid, xi, 1)[:, None]",
        "return merged",
        "tests/test_reference.py",
    ),
    Mutation(
        "centres of the wrong sign",
        "lal_triton/center.py",
        "(-gradient * sums).to(centers.dtype)",
        "(gradient * sums).to(centers.dtype)",
        "tests/test_derivatives.py -k centers",
    ),
]


def copy_tree(folder: Path) -> None:
    """The tree, laid out so that PYTHONPATH goes before an editable installation."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("kernels", "benchmarks", "plots"):
        (folder / "lal_triton" / name).symlink_to(folder / name)


def run_tests(tests: str, mutation: Mutation | None) -> tuple[str | None, float]:
    """What failed first ("timeout" is a failure, too), or None; and the seconds that it took."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_tree(folder)
        if mutation is not None:
            path = folder / mutation.file
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": scratch, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}"
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return "timeout", time.monotonic() - start
        failed = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), None)
        if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
            raise RuntimeError(
                f"pytest {tests} exited with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
            )
        name = None if failed is None else failed.split()[1].split("::")[-1].split("[")[0]
        return name, time.monotonic() - start


def main(output: str | None = None) -> int:
    for mutation in MUTATIONS:
        count = (ROOT / mutation.file).read_text().count(mutation.old)
        if count != 1:
            print(f"{mutation.what}: {mutation.file} has {count} of {mutation.old!r}, expected 1", file=sys.stderr)
            return 2
    lines = ["| mutation | file | noticed by | seconds |", "| --- | --- | --- | ---: |"]
    print("\n".join(lines))
    survivors = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        selections = sorted({mutation.tests for mutation in MUTATIONS})
        whole = list(pool.map(lambda tests: run_tests(tests, None), selections))
        for tests, (failed, _) in zip(selections, whole, strict=True):
            if failed:
                print(f"{tests}: {failed} fails without a mutation", file=sys.stderr)
                return 2
        for mutation, (failed, seconds) in zip(
            MUTATIONS, pool.map(lambda mutation: run_tests(mutation.tests, mutation), MUTATIONS), strict=True
        ):
            survivors += failed is None
            lines.append(f"| {mutation.what} | {mutation.file} | {failed or '**nothing**'} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} noticed")
    if output is not None:
        Path(output).write_text("\n".join(lines) + "\n")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
