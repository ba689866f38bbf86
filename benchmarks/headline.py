"""The rows to look at first: each loss on a GPU beside what does the same in torch, eager and compiled, and a copy.

    python -m lal_triton.benchmarks.headline PART --output FILE

With `--compile N` the N-th compiled peer is compiled and no more, so that inductor finds it in its cache later: many
processes can do so at once, and nothing is timed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lal_triton.benchmarks import capacity, runner, scenes
from lal_triton.benchmarks.cases import Case, Settings

PARTS: dict[str, dict[str, Any]] = {
    "full": {"num_classes": (21,), "size": 321, "kernel_sizes": (5, 3, 7)},
    "x4": {"num_classes": (21,), "size": 512, "kernel_sizes": (5,), "ratios": (4,)},
    "x4-150": {"num_classes": (150,), "size": 512, "kernel_sizes": (5,), "ratios": (4,)},
}
TINY = {"num_classes": (3,), "size": 8, "kernel_sizes": (1,), "batch_size": 1}
PEERS = {"own_cross_entropy": "cross_entropy", "own_focal": "focal", "lal": "shift_add"}
NAMES = {"own_cross_entropy": "cross-entropy", "own_focal": "focal", "lal": "LAL"}
HEADER = f"{'':26}{'ours':>9}{'eager':>9}{'x':>7}{'compiled':>10}{'x':>7}{'copy':>8}{'memory':>9}{'eager':>7}"
LEGEND = (
    "Milliseconds of a step. x: how many times ours the peer takes. The peer is F.cross_entropy, focal loss on it, or\n"
    "LAL by shift-and-add, after F.interpolate. memory: peak extra memory, in logits of full resolution."
)


def settings_of(part: str) -> Settings:
    """Without a GPU tiny sizes, for the kernels are interpreted."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return Settings(
        **{"batch_size": 16, **PARTS[part], **({} if on_gpu else TINY)},
        device=device,
        dtypes=(torch.float32,),
        backends=("triton",),
        sweep=(),
        quick=True,
    )


def plan(settings: Settings) -> list[Case]:
    """The peers first, as a kernel that fails may leave a process without its GPU; what has to be compiled last."""
    (dtype,), (backend,), (num_classes,) = settings.dtypes, settings.backends, settings.num_classes
    ratio = next(iter(settings.ratios), 1)
    copy = Case("copy", None, False, None, settings.size, dtype, settings.batch_size, num_classes, upsampling=ratio)
    own = [copy._replace(name=name, backend=backend) for name in ("own_cross_entropy", "own_focal")]
    own += [copy._replace(name="lal", backend=backend, kernel_size=k) for k in settings.kernel_sizes]
    peers = [case._replace(name=PEERS[case.name], backend=None) for case in own]
    return [copy, *peers, *own, *compiled(peers)]


def compiled(peers: list[Case]) -> list[Case]:
    return [case._replace(compiled=True) for case in peers]


def compiled_peers(part: str) -> list[Case]:
    return [case for case in plan(settings_of(part)) if case.compiled]


def compile_peer(part: str, index: int) -> None:
    settings, case = settings_of(part), compiled_peers(part)[index]
    side = case.size // case.upsampling
    logits = torch.randn(case.batch_size, case.num_classes, side, side, device=settings.device, requires_grad=True)
    target = torch.randint(case.num_classes, (case.batch_size, case.size, case.size), device=settings.device)
    torch.autograd.grad(runner.loss_function(case, target)(logits), logits)


def format_table(paths: dict[str, Path]) -> str:
    """Of the files of the parts, as far as they are there."""
    lines = [HEADER]
    for part, path in paths.items():
        if path.exists():
            results = json.loads(path.read_text())
            lines += _format_part(settings_of(part), results["environment"]["device"], results["rows"])
    return "\n".join([*lines, LEGEND])


def _format_part(settings: Settings, device: str, rows: list[runner.Row]) -> Iterator[str]:
    found = {_key(row): row for row in rows if row["phase"] in ("copy", "step")}
    copy, *cases = plan(settings)
    sizes = f"{copy.size} x {copy.size}, N = {copy.batch_size}, C = {copy.num_classes}, x{copy.upsampling}"
    yield f"{sizes}, {device}"
    for case in cases:
        if case.backend:
            peer = case._replace(name=PEERS[case.name], backend=None)
            of = {
                "copy": found.get(_key(copy._asdict())),
                "ours": found.get(_key(case._asdict())),
                "eager": found.get(_key(peer._asdict())),
                "compiled": found.get(_key(peer._replace(compiled=True)._asdict())),
            }
            yield _format_row(case, of)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["compiled"], row["kernel_size"]


def _format_row(case: Case, of: dict[str, runner.Row | None]) -> str:
    name = f"{NAMES[case.name]} {case.kernel_size or ''}"
    ms = {which: row and row["median_ms"] for which, row in of.items()}
    peaks = [_share(of[which]) for which in ("ours", "eager")]
    line = f"  {name:24}{_number(ms['ours']):>9}"
    for peer, width in (("eager", 9), ("compiled", 10)):
        gain = ms[peer] / ms["ours"] if ms[peer] and ms["ours"] else None
        line += f"{_number(ms[peer]):>{width}}{_number(gain, 2):>7}"
    line += f"{_number(ms['copy']):>8}{_number(peaks[0], 2):>9}{_number(peaks[1], 2):>7}"
    missing = [f"{which}: {row['skipped'] if row else 'left out'}" for which, row in of.items() if not ms[which]]
    return "\n".join([line, *(f"    {text}"[:118] for text in missing)])


def _share(row: runner.Row | None) -> float | None:
    return row["peak_bytes"] / row["full_bytes"] if row and row["peak_bytes"] is not None else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Our losses beside their peers, eager and compiled.")
    parser.add_argument("part", choices=PARTS)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--output", type=Path, help="a JSON file to write, after each row")
    chosen.add_argument("--compile", type=int, metavar="N", help="compile the N-th compiled peer and no more")
    arguments = parser.parse_args()
    if arguments.output is None:
        compile_peer(arguments.part, arguments.compile)
        return
    settings = settings_of(arguments.part)
    settings = settings._replace(memory_limit=capacity.available_bytes(settings.device))
    images = {num_classes: [scenes.read_nuclei(num_classes)] for num_classes in settings.num_classes}
    runner.run(settings, images, arguments.output, plan(settings))


if __name__ == "__main__":
    main()
