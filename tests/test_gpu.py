"""`make gpu`, rehearsed without a GPU, and with processes that fail in place of its own."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("triton")

from criterion import Comparison
from kernel_checks import CHECKS, Check

from lal_triton import cli
from lal_triton.benchmarks import gpu, gpu_quick, headline, overhead, parts

CHECKOUT = Path(__file__).parents[1]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the script runs this, and for real")
GPU_FILES = {"log.txt", "summary.json", *gpu.COLLECTED}
QUICK_FILES = {"log.txt", "summary.json", *(f"{part}.json" for part in headline.PARTS)}


# ---- processes


def run_commands(commands, seconds, folder):
    """Outcomes and outputs by name, in the order in which they ended."""
    part = parts.Part(seconds, commands)
    found = parts.run_part(part, time.monotonic() + seconds, dict(os.environ), folder)
    return {name: (outcome, text.decode()) for name, outcome, text in found}


def run_python(code, seconds, folder):
    return run_commands({"code": python(code)}, seconds, folder)["code"]


def python(code):
    return [sys.executable, "-c", code]


def test_commands_are_interrupted_in_time(tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved'); raise SystemExit(5)"
    outcome, text = run_python(code, 2, tmp_path)
    assert (outcome["rc"], outcome["timed_out"], text) == (5, True, "saved\n")


def test_commands_that_do_not_heed_are_killed_and_so_are_children_that_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GRACE", 1)
    outcome, _ = run_python("import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(60)", 2, tmp_path)
    assert (outcome["rc"], outcome["timed_out"]) == (-9, True)
    outcome, child = run_python("import subprocess\nprint(subprocess.Popen(['sleep', '60']).pid)", 60, tmp_path)
    assert (outcome["rc"], outcome["timed_out"]) == (0, False)
    assert ends(int(child))


def test_commands_end_with_who_waits_for_them(tmp_path):
    waiting = {"sleep": ["sleep", "60"], "short": python("import os; print(os.getppid())")}
    found = parts.run_part(parts.Part(60, waiting), time.monotonic() + 60, dict(os.environ), tmp_path)
    assert next(found)[0] == "short"
    (process,) = found.gi_frame.f_locals["running"].values()
    found.close()
    assert ends(process._process.pid)


def ends(process):
    for _ in range(50):  # a signal takes its time
        if not is_running(process):
            return True
        time.sleep(0.1)
    return False


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_logs_of_commands_are_short_and_name_what_cannot_be_started(tmp_path):
    outcome, text = run_python("print('x' * 10**6); raise SystemExit(4)", 60, tmp_path)
    assert (outcome["rc"], outcome["timed_out"], len(text)) == (4, False, parts.LOG_BYTES)
    outcome, text = run_commands({"nothing": [str(tmp_path / "nothing")]}, 60, tmp_path)["nothing"]
    assert outcome["rc"] == 127
    assert "No such file" in text


def test_commands_of_a_part_run_at_once_and_what_has_no_time_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(parts, "GRACE", 1)
    commands = {
        "hangs": ["sleep", "60"],
        "crashes": python("import os; os.abort()"),
        "not here": "there is none",
        "works": python("print('done')"),
        "hangs, too": ["sleep", "60"],
        "waits": python("print('never')"),
    }
    found = run_commands(commands, 2, tmp_path)
    assert found["not here"][0] == {"skipped": "there is none"}
    assert found["crashes"][0]["rc"] == -6
    assert found["works"][1] == "done\n"
    assert found["hangs"][0]["timed_out"]
    assert found["hangs, too"][0]["timed_out"]
    assert found["waits"][0] == {"skipped": "time is short"}
    assert list(found)[-1] in ("hangs", "hangs, too")


def test_what_is_found_is_written_after_each_command(tmp_path, capsys):
    look = python(f"print(open({str(tmp_path / 'summary.json')!r}).read())")
    planned = [
        parts.Part(60, {"first": python("print('one'); print('two'); raise SystemExit(3)")}),
        parts.Part(60, {"left out": "there is none"}),
        parts.Part(60, {"look": look}),
    ]
    summary = parts.run_parts(planned, dict(os.environ), tmp_path, tmp_path)
    log = (tmp_path / "log.txt").read_text()
    seen = json.loads(log.partition("==== look: ")[2].partition("\n")[2])
    assert seen == {name: summary[name] for name in ("first", "left out")}
    assert log.startswith("==== first: ")
    assert (seen["first"]["rc"], seen["first"]["last"]) == (3, "two")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == ["first", "left out", "look"]
    assert printed[:2] == parts.format_summary(summary).splitlines()[:2]
    assert parts.format_summary(summary).endswith("1 of 3 ok")
    assert "FAILED (3)" in printed[0]
    assert printed[0].endswith("two")


def test_what_a_part_leaves_is_for_the_next_ones(tmp_path, monkeypatch):
    left = []

    def run_part(part, deadline, environment, folder):
        left.append(deadline - time.monotonic())
        yield from ()

    monkeypatch.setattr(parts, "run_part", run_part)
    parts.run_parts([parts.Part(10, {}), parts.Part(20, {})], {}, tmp_path, tmp_path)
    assert left == pytest.approx([10, 30 + parts.GRACE], abs=1)


# ---- make gpu


def rehearse(output, *more):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", output, *more]
    process = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@without_gpu
@pytest.mark.long
def test_every_part_is_rehearsed(tmp_path):
    test = tmp_path / "test_native.py"
    test.write_text("import lal_triton.kernels as k\n\ndef test_installed():\n    assert 'site' in k.__file__\n")
    output = tmp_path / "output"
    rehearse(output, "--tests", test)
    log = (output / "log.txt").read_text()
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary) == list(gpu.SECONDS)
    assert {name: part["skipped"] for name, part in summary.items() if "skipped" in part} == gpu.NOT_DRY
    assert {part["rc"] for part in summary.values() if "rc" in part} == {0}
    assert log.count("==== ") == len(gpu.SECONDS) - len(gpu.NOT_DRY)
    assert "1 passed" in log
    for name in ("results.json", "results_upsampled.json"):
        rows = json.loads((output / name).read_text())["rows"]
        assert any(row["backend"] == "triton" and row["median_ms"] for row in rows)
    entries = json.loads((output / "tuning.json").read_text())["entries"]
    assert summary["bench"]["tuned"] == 0 < summary["tune"]["tuned"] == len(entries)
    assert {path.name for path in output.iterdir()} == GPU_FILES - {"failures.txt", "overhead.json"}


def run_gpu_script(output, monkeypatch, run_part, *more):
    """With this instead of the parts' processes; the summary."""
    monkeypatch.setattr(gpu, "CHECKOUT", CHECKOUT)  # which it does not lie in where it is installed
    monkeypatch.setattr(parts, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output), *more])
    assert gpu.main() == 1
    return json.loads((output / ("quick" if more else "") / "summary.json").read_text())


def fail(part, deadline, environment, folder):
    for name, command in part.commands.items():
        yield (
            name,
            {"skipped": command} if isinstance(command, str) else {"rc": 3, "seconds": 0.0, "timed_out": False},
            b"",
        )


def test_script_goes_on_after_parts_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "sanitizer", lambda dry_run: "there is none")
    summary = run_gpu_script(tmp_path, monkeypatch, fail)
    assert list(summary) == list(gpu.SECONDS)
    failed = {"rc": 3, "seconds": 0.0, "timed_out": False, "last": "", "tuned": 0}
    assert summary.pop("install") == {**failed, "rc": 0, "by": "copying"}
    assert summary.pop("sanitizer") == {"skipped": "there is none", "last": "", "tuned": 0}
    assert all(part == failed for part in summary.values())
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "summary.json"}
    assert sum(gpu.SECONDS.values()) + parts.GRACE * len(gpu.SECONDS) < 8 * 60


def test_script_keeps_what_an_interrupted_part_has_found(tmp_path, monkeypatch):
    found = {"tune": "tuning/h100.json", "bench": "bench/results.json", "overhead": "overhead.json"}

    def interrupt(part, deadline, environment, folder):
        assert Path(environment["LAL_TRITON_CACHE_DIR"]) == folder / "tuning"
        for name in part.commands:
            if name in found:
                (folder / found[name]).parent.mkdir(exist_ok=True)
                (folder / found[name]).write_text('{"entries": [1, 2]}')
            yield name, {"rc": -2, "seconds": 9.0, "timed_out": True}, b""

    summary = run_gpu_script(tmp_path, monkeypatch, interrupt)
    assert {path.name for path in tmp_path.iterdir()} == GPU_FILES - {"failures.txt", "results_upsampled.json"}
    assert [summary[name]["tuned"] for name in ("tests", "bench", "tune")] == [0, 0, 2]


def test_script_passes_arguments_that_exist(tmp_path, monkeypatch):
    commands = gpu.commands(tmp_path, [], dry_run=False)
    assert list(commands) == list(gpu.SECONDS)
    parser = cli.make_parser()
    for name in gpu.ARGUMENTS:
        arguments = parser.parse_args(commands[name][3:])
        assert not getattr(arguments, "dry_run", False)
    monkeypatch.setattr(overhead, "measure", lambda steps: [])
    monkeypatch.setattr(sys, "argv", commands["overhead"][2:])
    overhead.main()
    assert (tmp_path / gpu.COLLECTED["overhead.json"]).exists()


def test_script_finds_the_sanitizer_or_says_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: None if str(tmp_path) in path else "elsewhere")
    assert "no compute-sanitizer" in gpu.sanitizer(dry_run=False)
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.touch(0o755)
    command = gpu.sanitizer(dry_run=False)
    assert command[2] == str(program)
    assert set(command[command.index("--launch-only") + 1 :]) <= set(CHECKS)


def test_script_can_do_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "CHECKOUT", CHECKOUT)
    gpu.assemble_package(tmp_path)
    code = "import lal_triton.kernels, lal_triton.benchmarks, lal_triton.plots; print(lal_triton.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True
    )
    assert found.stdout.decode().strip() == str(tmp_path / "lal_triton" / "__init__.py")


# ---- make gpu QUICK=1


@without_gpu
@pytest.mark.long
def test_quick_is_rehearsed(tmp_path):
    printed = rehearse(tmp_path, "--quick")
    summary = json.loads((tmp_path / "quick" / "summary.json").read_text())
    assert all(summary[f"check {name}"]["last"].endswith(": ok") for name in gpu_quick.DRY_CHECKS)
    assert {path.name for path in (tmp_path / "quick").iterdir()} == QUICK_FILES
    table = printed[printed.index(f"{len(summary)} of {len(summary)} ok") :]
    assert table.count("cross-entropy ") == len(headline.PARTS)
    assert "left out" not in table


def test_quick_goes_on_after_parts_that_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    summary = run_gpu_script(tmp_path, monkeypatch, fail, "--quick")
    assert [name for name in gpu_quick.SECONDS if name != "prepare" and name not in summary] == []
    assert {f"check {name}" for name in CHECKS} <= set(summary)
    assert sum(name.startswith("compile ") for name in summary) == 3 * 3
    assert f"0 of {len(summary)} ok" in capsys.readouterr().out


def test_quick_takes_200_seconds_at_most():
    begins = 5  # to copy the package and to import it
    assert begins + sum(gpu_quick.SECONDS.values()) + parts.GRACE * len(gpu_quick.SECONDS) <= 200
    assert list(gpu_quick.SECONDS)[2:] == list(headline.PARTS)


# ---- the checks


LAUNCHES = """
import torch
from kernel_checks import CHECKS, SIZES
from triton.backends.compiler import GPUTarget
from lal_triton.benchmarks import headline, runner
from lal_triton.benchmarks.cost_model.recorded import identity
from lal_triton.functional import locally_adaptive_loss
from lal_triton.kernels.host.launch import recording
from lal_triton.kernels.host.stand_in import standing_in

def record(loss, logits):
    with recording() as launches:
        loss(logits.requires_grad_()).backward()
    return {(launch.kernel.__name__, identity(launch)) for launch in launches}

with standing_in(None, GPUTarget("cuda", 90, 32)):
    checked = set()
    for check in CHECKS.values():
        logits, target = check._replace(size=SIZES["cuda"]).make()
        logits = logits.to(check.dtype)
        checked |= record(lambda x: locally_adaptive_loss(x, target, backend="triton", **check.options), logits)
    print(*sorted({name for name, _ in checked}))
    headline.TINY = {"batch_size": 2}
    for part in headline.PARTS:
        for case in headline.plan(headline.settings_of(part)):
            if case.backend:
                side = case.size // case.upsampling
                target = torch.zeros(case.batch_size, case.size, case.size, dtype=torch.int64)
                logits = torch.zeros(case.batch_size, case.num_classes, side, side)
                for name, _ in record(runner.loss_function(case, target), logits) - checked:
                    print(part, case.name, case.kernel_size, name)
"""


def test_checks_launch_every_kernel_and_what_the_headline_launches():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LAUNCHES]
    folder = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    names, *unchecked = done.stdout.splitlines()
    sources = "".join(path.read_text() for path in (CHECKOUT / "kernels").glob("*.py"))
    assert set(names.split()) == set(re.findall(r"def (\w+_kernel)\(", sources))
    assert unchecked == []


def test_a_check_that_fails_or_raises_is_a_line_and_the_rest_goes_on(monkeypatch, capsys):
    import kernel_checks

    def compare(logits, target, backend, dtype, **options):
        if dtype == torch.float16:
            raise RuntimeError("no such thing\nand a long trace")
        exact = torch.ones(3, dtype=torch.float64)
        wrong = Comparison(exact.float() * (1.5 if dtype == torch.bfloat16 else 1), exact.float(), exact)
        return Comparison(exact.float(), exact.float(), exact), wrong

    dtypes = {"raises": torch.float16, "wrong": torch.bfloat16, "right": torch.float32}
    monkeypatch.setattr(kernel_checks, "compare_with_reference", compare)
    monkeypatch.setattr(kernel_checks, "CHECKS", {name: Check({}, 3, dtype=dtype) for name, dtype in dtypes.items()})
    monkeypatch.setattr(sys, "argv", ["kernel_checks.py", *dtypes])
    assert kernel_checks.main() == 1
    raises, wrong, right = capsys.readouterr().out.splitlines()
    assert raises == "raises: RuntimeError: no such thing: FAILED"
    assert re.fullmatch(r"wrong: loss 0.0e\+00 of 3.*e-07, gradient 5.0e-01 of 3.*e-07: FAILED", wrong)
    assert right.endswith(": ok")


# ---- the headline


def test_headline_has_a_peer_for_every_loss():
    for part in headline.PARTS:
        copy, *planned = headline.plan(headline.settings_of(part))
        assert copy.name == "copy"
        own = [case for case in planned if case.backend]
        for compiled in (False, True):
            assert [
                (case.name, case.kernel_size) for case in planned if case.compiled == compiled and not case.backend
            ] == [(headline.PEERS[case.name], case.kernel_size) for case in own]
        assert [case.compiled for case in planned] == sorted(case.compiled for case in planned)


def test_table_of_the_headline_says_what_is_missing(tmp_path):
    settings = headline.settings_of("x4")
    copy, *planned = headline.plan(settings)
    shared = {"logits_bytes": 48, "full_bytes": 768, "skipped": None}
    rows = [{**copy._asdict(), **shared, "phase": "copy", "median_ms": 0.5, "peak_bytes": None}]
    for case, ms in zip(planned, (4, 5, 6, 2, 2, None, 3), strict=False):
        row = {**case._asdict(), **shared, "phase": "step", "median_ms": ms, "peak_bytes": ms and 384 * ms}
        rows.append({**row, "skipped": None if ms else "RuntimeError: it does not work"})
    (tmp_path / "x4.json").write_text(json.dumps({"environment": {"device": "a GPU"}, "rows": rows}, default=str))
    text = headline.format_table({"full": tmp_path / "none.json", "x4": tmp_path / "x4.json"})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].endswith("a GPU")
    assert lines[2].split() == ["cross-entropy", "2.000", "4.000", "2.00", "3.000", "1.50", "0.500", "1.00", "2.00"]
    assert lines[3].split() == ["focal", "2.000", "5.000", "2.50", "-", "-", "0.500", "1.00", "2.50"]
    assert lines[4].strip() == "compiled: left out"
    assert lines[5].split()[:4] == ["LAL", "1", "-", "6.000"]
    assert lines[6].strip() == "ours: RuntimeError: it does not work"
