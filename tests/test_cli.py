"""The console script: what it prints and writes, and errors without a traceback."""

import json
import subprocess
import sys

import pytest
import torch

import lal_triton
from lal_triton import cli

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from lal_triton import plots
from lal_triton.benchmarks import runner

TINY = ["bench", "--quick", "--device=cpu", "--num-classes=3", "--batch-size=1", "--size=9", "--sweep=7"]
TINY += ["--kernel-size", "1", "3", "--output"]


@pytest.fixture
def without_compiler(monkeypatch):
    def no_compiler(loss, **_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(runner, "processor_share", lambda threads: 1.0)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lal_triton {lal_triton.__version__}\n"


def test_info_names_versions_device_and_backends(capsys):
    assert cli.main(["info"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["torch"] == torch.__version__
    assert printed["lal_triton"] == lal_triton.__version__
    automatic = "triton" if torch.cuda.is_available() else "cpu"
    assert printed["backends"].startswith(automatic)
    assert printed["backends"].endswith(f"auto chooses {automatic}")


@pytest.mark.usefixtures("without_compiler")
def test_bench_writes_results_and_plots_and_prints_a_table(tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    assert cli.main([*TINY, str(output)]) == 0
    names = {"results.json", "time_vs_kernel_size.png", "memory_vs_kernel_size.png", "time_vs_image_size.png"}
    assert {path.name for path in output.iterdir()} == names
    printed = capsys.readouterr().out
    assert "9 x 9, N = 1, C = 3, float32" in printed
    assert "skipped: RuntimeError: no compiler" in printed
    assert all(str(output / name) in printed for name in names)


@pytest.mark.usefixtures("without_compiler")
def test_bench_on_logits_smaller_than_the_labels(tmp_path, capsys):
    arguments = [*TINY, str(tmp_path), "--size=8", "--sweep=16", "--upsample", "4", "--memory-limit=0"]
    assert cli.main(arguments) == 0
    names = {"results_upsampled.json", "upsampled_time.png", "memory_vs_image_size_upsampled.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    printed = capsys.readouterr().out
    assert "8 x 8, N = 1, C = 3, float32, logits upsampled x 4" in printed
    assert "skipped: does not fit" in printed


@pytest.mark.usefixtures("without_compiler")
def test_bench_fails_where_our_loss_does(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("broken kernel")

    monkeypatch.setattr(runner, "locally_adaptive_loss", broken)
    assert cli.main([*TINY, str(tmp_path)]) == 1
    assert "skipped: RuntimeError: broken kernel" in capsys.readouterr().out


@pytest.mark.usefixtures("without_compiler")
def test_an_interrupted_bench_keeps_what_it_measured(tmp_path, monkeypatch, capsys):
    measure = runner.measure

    def interrupted(case, *arguments):
        if case.name == "unfold":
            raise KeyboardInterrupt
        return measure(case, *arguments)

    monkeypatch.setattr(runner, "measure", interrupted)
    assert cli.main([*TINY, str(tmp_path)]) == 130
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"copy", "cross_entropy", "own_cross_entropy", "lal", "shift_add"}
    captured = capsys.readouterr()
    assert "lal_triton LAL (cpu)" in captured.out
    assert "interrupted" in captured.err


@pytest.mark.usefixtures("without_compiler")
def test_plot_draws_from_a_results_file(tmp_path, capsys):
    assert cli.main([*TINY, str(tmp_path)]) == 0
    assert cli.main(["plot", str(tmp_path / "results.json"), "--output", str(tmp_path / "figures")]) == 0
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3
    assert str(tmp_path / "figures" / "time_vs_image_size.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plot {tmp}/nowhere.json", "nowhere.json"),
        ("plot {tmp}/other.json", "is not a results file of `lal-triton bench`"),
        ("plot {tmp}/text.json", "is not a results file of `lal-triton bench`"),
        ("plot {tmp}/picture.png", "picture.png is not a results file of `lal-triton bench`"),
        ("bench --output {tmp} --voc {tmp}", "holds no JPEGImages"),
        ("bench --output {tmp}/text.json", "text.json"),
        ("bench --output {tmp} --kernel-size 4", "kernel_size is 4, expected odd"),
        ("bench --output {tmp} --upsample 3", "--upsample is 3, expected at least 2 and a divisor of"),
        ("bench --output {tmp} --num-classes 3 4", "--num-classes has 2 values, expected one"),
        ("bench --output {tmp} --num-classes 1", "--num-classes is 1, expected 2 to 254"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, capsys, arguments, message):
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert cli.main(arguments.format(tmp=tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lal-triton: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bench_on_a_gpu_that_is_not_there(tmp_path, capsys):
    assert cli.main(["bench", "--device", "cuda", "--output", str(tmp_path)]) == 2
    assert "--device is cuda, expected cpu" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys, missing):
    for name in list(sys.modules):
        if name.startswith((missing, "lal_triton.plots", "lal_triton.benchmarks")):
            monkeypatch.delitem(sys.modules, name)
    for package in ("plots", "benchmarks"):
        monkeypatch.delattr(lal_triton, package, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(["bench", "--output", str(tmp_path)]) == 2
    assert f'{missing} is missing, install it in the checkout by: pip install ".[bench]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["tune", "--wrong"]])
def test_parsing_needs_neither_torch_nor_extras(arguments):
    code = (
        "import sys\n"
        "from lal_triton import cli\n"
        "try:\n"
        f"    cli.main({arguments})\n"
        "except SystemExit:\n"
        "    print('imported', {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "imported set()"


@pytest.mark.parametrize("command", ["bench", "train", "tune", "info", "plot results.json"])
def test_an_unknown_option_prints_the_usage_of_its_command(capsys, command):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command.split(), "--wrong"])
    name = command.partition(" ")[0]
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: lal-triton {name} ")
    assert printed.endswith(f"lal-triton {name}: error: unrecognized arguments: --wrong\n")


@pytest.mark.usefixtures("without_compiler")
def test_bench_has_a_line_for_each_case_where_there_is_no_terminal(tmp_path, capsys):
    assert cli.main([*TINY, str(tmp_path), "--memory-limit=0"]) == 0
    count, *lines = capsys.readouterr().err.splitlines()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    run = [row for row in rows if row["phase"] in ("copy", "step") and not row["skipped"]]
    assert count == f"lal-triton: {len(run)} cases, about a minute on two busy cores"
    assert [line.partition(",")[0] for line in lines[: len(run)]] == [f"{i + 1} of {len(run)}" for i in range(len(run))]
    assert lines[0].startswith(f"1 of {len(run)}, copy of the logits, 9 x 9: 0 % done")
    assert "100 % done" in lines[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--backend cpu triton", 'backend is "triton" and logits are on the CPU, expected a GPU tensor'),
        ("--backend triton --dtype float64", 'backend is "triton" and logits float64'),
    ],
)
def test_a_backend_that_cannot_run_is_told_before_peers_are_measured(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("measured"))
    assert cli.main([*TINY, str(tmp_path), *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("message", ["", "stopped after iteration 5; the same command goes on from there"])
def test_an_interrupted_command_is_one_line(tmp_path, monkeypatch, capsys, message):
    def interrupted(*_):
        raise KeyboardInterrupt(message)

    monkeypatch.setattr(plots, "draw", interrupted)
    assert cli.main(["plot", str(tmp_path / "results.json")]) == 130
    assert capsys.readouterr().err == f"lal-triton: {message or 'interrupted'}\n"
