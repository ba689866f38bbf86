"""The counts of what kernels execute, and that those of the shipped ones do not grow.

Run as a script, this writes the baseline anew.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from lal_triton import cli
from lal_triton.benchmarks.cost_model import model, table
from lal_triton.tuning.candidates import SMALL_SPILL

BASELINE = Path(__file__).parent / "data" / "costs.json"
COUNTED = ("loads_per_pixel_class", "instructions_per_pixel_class")
MORE = 1.1


def write_baseline():
    rows = model.format_json(model.measure())
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text(f'{{"triton": "{importlib.metadata.version("triton")}", "rows": {rows}}}\n')


def regressions(rows, baseline):
    """Lines on rows that spill, that are not in both, or whose loads or instructions grew by more than a tenth."""
    found, expected = by_setting(rows), by_setting(baseline)
    yield from (f"{setting} is new" for setting in found.keys() - expected.keys())
    yield from (f"{setting} is missing" for setting in expected.keys() - found.keys())
    for setting in found.keys() & expected.keys():
        row, before = found[setting], expected[setting]
        if row["spill_bytes"] > SMALL_SPILL:
            yield f"{setting} spills {row['spill_bytes']} bytes"
        for name in COUNTED:
            if row[name] > MORE * before[name]:
                yield f"{setting} has {name} {row[name]}, was {before[name]}"


def by_setting(rows):
    names = ("kernel", "phase", "default", "target", "dtype", "kernel_size", "upsampling", "classes")
    return {tuple(row[name] for name in names): row for row in rows}


@pytest.mark.long
def test_shipped_kernels_cost_no_more_than_they_did():
    """Default steps in float32, since all take many minutes; with LAL_COMPILE_ALL in the environment, all."""
    baseline = json.loads(BASELINE.read_text())
    installed = importlib.metadata.version("triton")
    if baseline["triton"] != installed:
        pytest.skip(f"the baseline is of Triton {baseline['triton']}, this is {installed}")
    everything = "LAL_COMPILE_ALL" in os.environ
    dtypes, defaults = (model.DTYPES, (True, False)) if everything else (("float32",), (True,))
    expected = [row for row in baseline["rows"] if row["dtype"] in dtypes and row["default"] in defaults]
    assert list(regressions(model.measure(dtypes=dtypes, defaults=defaults), expected)) == []


ROW = {
    **{"kernel": "merge_bwd", "phase": "backward", "default": True, "target": "sm_90", "dtype": "float32"},
    **{"kernel_size": 3, "upsampling": 1, "classes": 21, "passes": 3.0, "registers": 200, "spill_bytes": 0},
    **{"shared_bytes": 0, "loads_per_pixel_class": 7.0, "instructions_per_pixel_class": 50.0},
    "exps_per_pixel_class": 0.0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"loads_per_pixel_class": 7.6, "instructions_per_pixel_class": 54.0, "registers": 255}, None),
        ({"loads_per_pixel_class": 7.8}, "has loads_per_pixel_class 7.8, was 7.0"),
        ({"instructions_per_pixel_class": 56.0}, "has instructions_per_pixel_class 56.0, was 50.0"),
        ({"spill_bytes": 16}, "spills 16 bytes"),
        ({"classes": 22}, "is missing"),
        ({"default": False}, "is new"),
    ],
)
def test_regressions_are_seen(change, message):
    found = list(regressions([{**ROW, **change}], [ROW]))
    assert bool(found) == bool(message)
    assert not message or any(message in line for line in found)


@pytest.fixture(scope="module")
def counted():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("counted_kernels.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("classes", [20, 21, 52])
def test_loads_and_exponentials_are_those_of_the_source(counted, classes):
    loads = {name: counts[str(classes)][0] for name, counts in counted.items()}
    exps = {name: counts[str(classes)][1] for name, counts in counted.items()}
    blocks = -(-classes // 16)
    expected = {"straight": 2, "short_loop": 1 + classes, "nested": 8 * classes, "block": 16 * blocks}
    assert loads == {**expected, "interior": classes, "rare": 2 * classes}
    exponentials = {"straight": 1, "short_loop": classes, "nested": classes, "block": 16 * blocks}
    assert exps == {**exponentials, "interior": classes, "rare": 0}


def test_instructions_grow_with_the_trips(counted):
    for name, counts in counted.items():
        few, one_more, many = (counts[classes][2] for classes in ("20", "21", "52"))
        if name in ("straight", "block"):  # 20 and 21 classes are as many blocks
            assert few == one_more
        else:
            assert many - few == pytest.approx(32 * (one_more - few))
            assert one_more - few >= 4


def test_table_of_costs():
    other = {**ROW, "kernel": "local_loss_fwd", "phase": "forward", "passes": 2.0}
    lines = table.format_table([other, ROW, {**ROW, "default": False}]).splitlines()
    assert lines[0] == "sm_90, float32, kernel size 3, 21 classes"
    assert lines[4].split() == ["step", "5.00", "0.00", "14.00", "100.00"]
    assert lines[5].split() == ["budget", "48.00", "190.00"]
    assert lines[6].split() == ["ratio", "0.29", "0.53"]
    assert lines[7:9] == ["  not by default:", lines[3]]


@pytest.mark.parametrize(("dtype", "upsampling", "share"), [("bfloat16", 1, 0.5), ("float32", 4, 1 / 16)])
def test_budget_is_of_what_is_moved(dtype, upsampling, share):
    loads, instructions = table.budget([{**ROW, "dtype": dtype, "upsampling": upsampling, "passes": 1.0}])
    assert loads == pytest.approx(9.6 * share)
    assert instructions == pytest.approx(38 * share)


def test_info_prints_costs(capsys):
    command = ["info", "--cost", "--kernel-size=1", "--num-classes=5", "--dtype=float16", "--upsample=1"]
    assert cli.main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kernel"] for row in rows} >= {"prepare_fwd", "local_loss_fwd", "local_cost_bwd"}
    assert all(row.keys() == ROW.keys() and row["classes"] == 5 for row in rows)
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith("sm_90, float16, kernel size 1, 5 classes\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--upsample 3", "no kernels for logits upsampled x 3"), ("--kernel-size 4", "kernel_size is 4, expected odd")],
)
def test_costs_that_cannot_be_told(capsys, arguments, message):
    assert cli.main(["info", "--cost", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_costs_without_triton(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cli.main(["info", "--cost"]) == 2
    assert "Triton is not installed" in capsys.readouterr().err


if __name__ == "__main__":
    write_baseline()
