"""The search for configurations, what it drops before it launches, its cache on disk, and when it starts by itself."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lal_triton
from lal_triton import cli
from lal_triton.benchmarks.parts import heed_interrupts
from lal_triton.kernels import configs
from lal_triton.kernels.compilers import start_compilers
from lal_triton.kernels.configs import FAMILIES, Setting
from lal_triton.tuning import cache, candidates, choice, search
from lal_triton.tuning.cache import Entry

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SETTING = Setting("local_loss_fwd", (3, 3), "float32", 32, 1)
CONFIG = {"rows": 4, "columns": 32, "strips": 4}
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")

pytestmark = pytest.mark.pinned


def entry(setting=SETTING, config=CONFIG, milliseconds=1.0):
    return Entry(setting, config, milliseconds, 2.0, "2026-01-01 00:00 UTC")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own, of which nothing is known."""
    monkeypatch.setenv("LAL_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LAL_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(cache, "_files", {})
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(choice, "_searched", set())
    return tmp_path / "cache"


def start_next_process():
    cache._files.clear()


# The search space and the pinned configurations.


def settings():
    sizes = [(size, size) for size in (1, 3, 5, 7, 11)]
    dtypes, classes, ratios = ("float32", "bfloat16"), (*configs.CLASS_BUCKETS, 0), (1, 4)
    return itertools.starmap(Setting, itertools.product(FAMILIES, sizes, dtypes, classes, ratios))


def test_each_setting_has_a_pinned_configuration_that_is_a_candidate():
    for setting in settings():
        pinned = configs.pinned(setting, "sm_90")
        assert set(pinned) == set(FAMILIES[setting.family])
        assert pinned in candidates.candidates(setting)


def test_candidates_keep_the_weights_in_registers_and_the_programs_small():
    for setting in settings():
        found = candidates.candidates(setting)
        assert len({tuple(sorted(config.items())) for config in found}) == len(found)
        for config in found:
            if "strips" in config:
                assert config["rows"] == 1 or config["rows"] * math.prod(setting.kernel_size) < 100
                assert 64 <= config["columns"] * config["strips"] * config.get("groups", 1) <= 256


# The cache.


def test_what_is_stored_is_found_also_by_the_next_process(folder):
    other = SETTING._replace(dtype="bfloat16")
    assert cache.lookup(SETTING, CPU) is None
    path = cache.store(entry(), CPU)
    assert path.parent == folder
    for _ in range(2):
        assert cache.lookup(SETTING, CPU) == CONFIG
        assert cache.lookup(other, CPU) is None
        start_next_process()
    cache.store(entry(other), CPU)
    start_next_process()
    assert cache.lookup(SETTING, CPU) == cache.lookup(other, CPU) == CONFIG


def test_the_file_is_readable_and_names_device_and_versions():
    path = cache.store(entry(), CPU)
    content = json.loads(path.read_text())
    assert content["device"] == "cpu"
    assert content["versions"]["torch"] == torch.__version__
    assert content["entries"] == [
        {
            **SETTING._asdict(),
            "kernel_size": [3, 3],
            "config": CONFIG,
            "milliseconds": 1.0,
            "default_milliseconds": 2.0,
            "date": "2026-01-01 00:00 UTC",
        }
    ]
    assert lal_triton.__version__ in path.name


def test_nothing_is_read_twice(monkeypatch):
    reads = []
    monkeypatch.setattr(cache, "_read", lambda path: reads.append(path) or {})
    for _ in range(3):
        cache.lookup(SETTING, CPU)
    assert len(reads) == 1


def test_devices_and_versions_have_files_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert cache.file_for(GPU).name.startswith("nvidia-h100-80gb-hbm3_")
    cache.store(entry(), GPU)
    assert cache.lookup(SETTING, GPU) == CONFIG
    assert cache.lookup(SETTING, CPU) is None
    assert cache.lookup(SETTING, torch.device("meta")) is None
    monkeypatch.setattr(cache, "_versions", lambda: {"lal_triton": "9.9"})
    assert cache.lookup(SETTING, GPU) is None


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1]"])
def test_a_corrupt_file_counts_as_empty_with_one_warning_and_is_replaced(damage):
    path = cache.store(entry(), CPU)
    path.write_text(damage(path.read_text()))
    start_next_process()
    with pytest.warns(RuntimeWarning, match="could not be read"):
        assert cache.lookup(SETTING, CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store(entry(config={**CONFIG, "rows": 2}), CPU)
    start_next_process()
    assert cache.lookup(SETTING, CPU) == {**CONFIG, "rows": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"family": "other"},
        {"family": ["local_loss_fwd"]},
        {"kernel_size": 3},
        {"kernel_size": [3]},
        {"kernel_size": [3, "3"]},
        {"dtype": ["float32"]},
        {"classes": None},
        {"ratio": 1.5},
        {"config": {"rows": 4, "columns": 32}},
        {"config": {**CONFIG, "groups": 1}},
        {"config": {**CONFIG, "rows": "4"}},
        {"config": {**CONFIG, "rows": True}},
        {"config": [4, 32, 4]},
        {"milliseconds": "fast"},
        {"milliseconds": math.nan},
    ],
)
def test_entries_that_are_none_are_ignored(change):
    good = SETTING._replace(dtype="float16")
    for each in (entry(), entry(good)):
        path = cache.store(each, CPU)
    content = json.loads(path.read_text())
    assert content["entries"][1]["dtype"] == "float32"
    content["entries"][1].update(change)
    path.write_text(json.dumps(content))
    start_next_process()
    assert cache.lookup(good, CPU) == CONFIG
    assert list(cache._files[path]) == [good]


def test_without_a_folder_to_write_it_lasts_as_long_as_the_process(folder):
    folder.write_text("a file")
    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert cache.store(entry(), CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.store(entry(SETTING._replace(ratio=4)), CPU) is None
    assert cache.lookup(SETTING, CPU) == cache.lookup(SETTING._replace(ratio=4), CPU) == CONFIG


def store_some(first, barrier):
    barrier.wait()
    for ratio in range(first, first + 10):
        cache.store(entry(SETTING._replace(ratio=ratio)), CPU)


def test_processes_that_store_at_the_same_time_lose_nothing(folder):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    children = [context.Process(target=store_some, args=(10 * index, barrier)) for index in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert all(cache.lookup(SETTING._replace(ratio=ratio), CPU) == CONFIG for ratio in range(60))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".lock"}


def test_what_is_forced_comes_before_the_cache_and_that_before_what_is_pinned():
    pinned = configs.pinned(SETTING, "any")
    assert configs.find(SETTING, CPU) == pinned != CONFIG
    cache.store(entry(), CPU)
    assert configs.find(SETTING, CPU) == CONFIG
    forced = {**CONFIG, "rows": 1}
    with configs.forcing({SETTING.family: forced}):
        assert configs.find(SETTING, CPU) == forced
    assert configs.find(SETTING, CPU) == CONFIG


# The search.


def test_the_default_stays_unless_another_is_faster_by_more_than_the_scatter():
    default = [1.00, 1.02, 0.98, 1.04, 0.96]
    slightly = [0.99, 1.01, 0.97, 1.03, 0.95]
    clearly = [0.90, 0.91, 0.89, 0.90, 0.90]
    erratic = [0.50, 0.10, 1.90, 0.20, 2.00]
    assert search.choose([default]) == 0
    assert search.choose([default, slightly]) == 0
    assert search.choose([default, erratic]) == 0
    assert search.choose([default, slightly, clearly, erratic]) == 2
    assert search.choose([[math.inf] * 5, clearly]) == 1
    assert search.choose([default, [math.inf] * 5]) == 0


@pytest.mark.parametrize(
    ("change", "affordable"),
    [
        ({}, True),
        ({"spill_bytes": 8}, True),
        ({"spill_bytes": 16}, False),
        ({"registers": 255, "threads": 512}, False),
        ({"registers": 128, "threads": 512}, True),
        ({"shared_bytes": 232449}, False),
        ({"error": "PTXASError"}, False),
    ],
)
def test_what_the_resource_report_drops(change, affordable):
    report = {"registers": 255, "threads": 256, "spill_bytes": 0, "shared_bytes": 0, **change}
    assert candidates.is_affordable(report, candidates.Target.of("cpu")) == affordable


def test_the_compiler_reports_what_spills():
    """In processes of its own, since this one may be interpreting."""
    problem = candidates.Problem.of(3, (1, 3, 16, 16), torch.float32, 1)
    target = candidates.Target.of("cpu")
    forced = [{"rows": 2, "columns": 64, "strips": 2}, {"rows": 4, "columns": 256, "strips": 4}]
    each = [{"local_loss_fwd": config} for config in forced]
    with start_compilers(1) as compilers:
        (fits,), (spills,) = candidates.compile_candidates(compilers, problem, target, "local_loss_fwd", each)
    assert candidates.is_affordable(fits, target)
    assert fits["threads"] == 128
    assert spills["spill_bytes"] > 0
    assert spills["threads"] == 1024


SCRIPT = """
import lal_triton
from lal_triton.tuning import search

search.REHEARSED = 2
print([result.setting.family for result in lal_triton.tune(1, (1, 3, 4, 4), device="cpu")])
"""


@without_gpu
@pytest.mark.parametrize("way", ["file", "command", "input"])
def test_a_script_without_a_guard_tunes(tmp_path, way):
    """The processes that compile do not run it again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"file": [str(tmp_path / "script.py")], "command": ["-c", SCRIPT], "input": ["-"]}[way]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], input=SCRIPT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['prepare', 'local_loss_fwd', 'local_cost_bwd']\n"


@pytest.mark.parametrize(
    ("kernel_size", "ratio", "families"),
    [
        (3, 1, ["prepare", "local_loss_fwd", "local_cost_bwd", "merge_bwd", "step"]),
        (1, 1, ["prepare", "local_loss_fwd", "local_cost_bwd"]),
        (3, 4, ["prepare", "upsampled_loss_fwd", "upsampled_loss_bwd"]),
    ],
)
def test_tuned_is_what_a_step_asks_for(kernel_size, ratio, families):
    problem = candidates.Problem.of(kernel_size, (1, 40, 64, 64), torch.bfloat16, ratio)
    settings = problem.settings()
    assert [setting.family for setting in settings] == families
    assert {setting[1:4] for setting in settings if setting.family != "step"} == {((kernel_size,) * 2, "bfloat16", 64)}


# Tuning by itself.


@pytest.fixture
def searches(monkeypatch):
    """Settings on a GPU that is not there are tuned by pretending; gives the arguments of each search."""
    calls = []

    def tune(kernel_size, shape, dtype, ratio, device):
        calls.append((kernel_size, shape, dtype, ratio))
        assert configs.find(SETTING, GPU) == configs.pinned(SETTING, "sm_90")
        cache.store(entry(), device)

    monkeypatch.setenv("LAL_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(search, "tune", tune)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "imagined")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(configs, "device_class", lambda device: "sm_90")
    return calls


def test_an_untuned_setting_is_tuned_once(searches):
    assert configs.find(SETTING, GPU) == CONFIG
    assert configs.find(SETTING, GPU) == CONFIG
    assert searches == [([(3, 3)], (6, 21, 512, 512), torch.float32, 1)]
    backward = SETTING._replace(family="local_cost_bwd")  # was not stored
    assert configs.find(backward, GPU) == configs.pinned(backward, "sm_90")
    assert len(searches) == 1


def test_what_the_cache_holds_is_not_tuned(searches):
    cache.store(entry(), GPU)
    assert configs.find(SETTING, GPU) == CONFIG
    assert not searches


@pytest.mark.parametrize("value", [None, "0"])
def test_nothing_is_tuned_unless_asked_for(searches, monkeypatch, value):
    monkeypatch.delenv("LAL_TRITON_AUTOTUNE") if value is None else monkeypatch.setenv("LAL_TRITON_AUTOTUNE", value)
    assert configs.find(SETTING, GPU) == configs.pinned(SETTING, "sm_90")
    assert not searches


def test_nothing_is_tuned_without_a_gpu(searches):
    assert configs.find(SETTING, CPU) == configs.pinned(SETTING, "sm_90")
    assert configs.find(SETTING, torch.device("meta")) == configs.pinned(SETTING, "sm_90")
    assert not searches


def test_capturing_a_graph_postpones_tuning(searches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert configs.find(SETTING, GPU) == configs.pinned(SETTING, "sm_90")
    assert not searches
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert configs.find(SETTING, GPU) == CONFIG


def test_a_backward_pass_postpones_tuning(searches):
    found = []

    class Find(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            found.append(configs.find(SETTING, GPU))
            return gradient

    Find.apply(torch.ones(1, requires_grad=True)).backward()
    assert found == [configs.pinned(SETTING, "sm_90")]
    assert not searches
    assert configs.find(SETTING, GPU) == CONFIG


def test_tracing_postpones_tuning(searches):
    with FakeTensorMode():
        assert configs.find(SETTING, GPU) == configs.pinned(SETTING, "sm_90")
    assert not searches
    assert configs.find(SETTING, GPU) == CONFIG


@torch.library.custom_op("lal_triton_tests::call", mutates_args=())
def call_in_an_op(key: int) -> torch.Tensor:
    return torch.tensor(CALLED[key]())


CALLED = {}


@without_gpu
@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_a_search_needs_no_autograd(monkeypatch, reported, inside):
    """An op, in which a compiled step is prepared, is below autograd."""
    monkeypatch.setattr(search, "REHEARSED", 2)

    def count():
        return len(lal_triton.tune(1, (1, 3, 4, 4), torch.bfloat16, device="cpu"))

    monkeypatch.setitem(CALLED, 0, count)
    with inside():
        assert count() == 3
        assert call_in_an_op(0) == 3


def test_threads_search_one_after_the_other(searches, monkeypatch):
    """What a search forces holds for all threads."""
    running, together = [], []

    def tune(*arguments):
        running.append(arguments)
        time.sleep(0.05)
        together.append(len(running))
        running.remove(arguments)

    monkeypatch.setattr(search, "tune", tune)
    settings = [SETTING._replace(dtype=dtype) for dtype in ("float32", "float16", "bfloat16", "float32")]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(configs.find, settings, [GPU] * 4))
    assert found == [configs.pinned(setting, "sm_90") for setting in settings]
    assert together == [1, 1, 1]


def test_a_search_that_fails_is_a_warning(monkeypatch, searches):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(search, "tune", out_of_memory)
    with pytest.warns(RuntimeWarning, match="the default stays.*OutOfMemoryError: no memory"):
        assert configs.find(SETTING, GPU) == configs.pinned(SETTING, "sm_90")


# The whole.


@without_gpu
def test_tune_without_a_gpu(capsys):
    assert cli.main(["tune"]) == 1
    assert "finds no GPU" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no GPU"):
        lal_triton.tune()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size is 4, expected odd"),
        ({"shape": (1, 3, 8)}, ValueError, "shape is .*, expected images, classes"),
        ({"shape": (1, 3, 8, 0)}, ValueError, "shape is 0, expected an integer >= 1"),
        ({"upsampling": 3}, ValueError, "upsampling is 3, expected a divisor"),
        (
            {"kernel_size": 31, "shape": (1, 3, 64, 64), "upsampling": 2},
            NotImplementedError,
            "expected a smaller window or another ratio",
        ),
        ({"dtype": torch.float64}, TypeError, "logits float64"),
    ],
)
def test_errors_come_before_anything_is_tuned(monkeypatch, arguments, error, message):
    monkeypatch.setattr(search, "_tune_problem", lambda *_: pytest.fail("tuned"))
    with pytest.raises(error, match=message):
        lal_triton.tune(**{"shape": (1, 3, 16, 16), "device": "cpu", **arguments})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_first_use_tunes(folder, monkeypatch):
    monkeypatch.setenv("LAL_TRITON_AUTOTUNE", "1")
    every = candidates.candidates
    monkeypatch.setattr(search, "candidates", lambda setting: every(setting)[:2])
    logits = torch.randn(1, 5, 32, 32, device="cuda", requires_grad=True)
    target = torch.zeros(1, 32, 32, dtype=torch.long, device="cuda")
    lal_triton.functional.cross_entropy(logits, target).backward()
    stored = json.loads(cache.file_for(logits.device).read_text())["entries"]
    assert {entry["family"] for entry in stored} == {"prepare", "local_loss_fwd", "local_cost_bwd"}
    assert all(0 < entry["milliseconds"] <= entry["default_milliseconds"] < 1e3 for entry in stored)


@pytest.fixture
def reported(monkeypatch):
    """What the compiler would say of a configuration, by its rows; nothing is compiled."""
    reports = {}

    def compile_candidates(compilers, problem, target, family, each):
        plain = {"registers": 64, "threads": 128, "spill_bytes": 0, "shared_bytes": 0}
        return [[{**plain, **reports.get(forced[family].get("rows"), {})}] for forced in each]

    monkeypatch.setattr(search, "compile_candidates", compile_candidates)
    return reports


@without_gpu
def test_a_candidate_that_spills_is_never_launched(monkeypatch, reported):
    tried = [{"rows": rows, "columns": 32, "strips": 2} for rows in (1, 2, 4)]
    pinned = {"rows": 8, "columns": 32, "strips": 2}
    monkeypatch.setattr(configs, "pinned", lambda setting, device_class: pinned)
    monkeypatch.setattr(search, "candidates", lambda setting: tried)
    launched = []

    def measure(self, config, repeat_ms):
        launched.append(config["rows"])
        return float(launched[-1])

    monkeypatch.setattr(search.Race, "measure", measure)
    monkeypatch.setattr(search, "REHEARSED", 9)
    monkeypatch.setattr(candidates.Problem, "settings", lambda self: [SETTING])

    def tuned_rows():
        launched.clear()
        [result] = lal_triton.tune(3, (1, 3, 4, 4), device="cpu")
        assert result.default_milliseconds == result.default["rows"] == 8
        return result.config["rows"], result.pruned

    assert tuned_rows() == (1, 0)
    reported[1] = {"spill_bytes": 16}
    assert tuned_rows() == (2, 1)
    assert set(launched) == {2, 4, 8}
    reported[2] = {"shared_bytes": 10**6}
    reported[4] = {"registers": 1024}
    assert tuned_rows() == (8, 3)
    assert set(launched) == {8}


@without_gpu
def test_a_dry_run_searches_every_family_and_writes_what_is_then_used(tmp_path, monkeypatch, capsys, reported):
    monkeypatch.setattr(search, "REHEARSED", 2)
    clock = itertools.count(1000, -1)  # the later, the faster
    monkeypatch.setattr(search.Race, "measure", time_backwards(search.Race.measure, clock))
    command = "tune --dry-run --kernel-size 3 --shape 1 3 5 6 --cache-dir"
    assert cli.main([*command.split(), str(tmp_path)]) == 0
    [path] = tmp_path.glob("*.json")
    printed = capsys.readouterr().out
    assert str(path) in printed
    families = ["prepare", "local_loss_fwd", "local_cost_bwd", "merge_bwd", "step"]
    assert [line.split()[0] for line in printed.splitlines()[1:6]] == families
    monkeypatch.setenv("LAL_TRITON_CACHE_DIR", str(tmp_path))
    for stored in json.loads(path.read_text())["entries"]:
        setting = Setting(*[stored[name] for name in Setting._fields])._replace(kernel_size=(3, 3))
        assert stored["milliseconds"] < stored["default_milliseconds"]
        assert configs.find(setting, CPU) == stored["config"] != configs.pinned(setting, "any")
        families.remove(setting.family)
    assert not families


def time_backwards(measure, clock):
    def timed(self, *arguments):
        assert 0 < measure(self, *arguments) < math.inf
        return float(next(clock))

    return timed


def test_a_dry_run_starts_again_with_the_interpreter(monkeypatch):
    class StartedError(Exception):
        pass

    def execve(*arguments):
        raise StartedError(*arguments)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(StartedError) as started:
        cli.main(["tune", "--dry-run", "--kernel-size", "5"])
    program, command, environment = started.value.args
    assert program == command[0] == sys.executable
    assert command[1:] == ["-m", "lal_triton.cli", "tune", "--dry-run", "--kernel-size", "5"]
    assert environment["TRITON_INTERPRET"] == "1"


@without_gpu
def test_a_dry_run_without_a_folder_writes_nothing(folder, capsys, monkeypatch):
    result = search.Result(SETTING, CONFIG, {**CONFIG, "rows": 8}, 1.5, 3.0, 12, 2)
    monkeypatch.setattr(search, "_tune_problem", lambda *_: [result])
    assert cli.main(["tune", "--dry-run", "--kernel-size", "3"]) == 0
    assert not folder.exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 x 3, float32, C <= 32, x 1 3.000 1.500 2.00 2 of 12 rows=4 columns=32 strips=4" in printed
    assert "wrote nothing" in printed


@without_gpu
def test_an_interrupted_search_names_what_it_kept(folder, monkeypatch, capsys, reported):
    monkeypatch.setattr(search, "REHEARSED", 2)
    monkeypatch.setattr(candidates.Problem, "settings", lambda self: [SETTING, SETTING._replace(family="merge_bwd")])

    def run(self, default, others):
        if self.family == "merge_bwd":
            raise KeyboardInterrupt
        return CONFIG, 1.0, 2.0

    monkeypatch.setattr(search.Race, "run", run)
    command = ["tune", "--dry-run", "--shape", "1", "3", "4", "4"]
    assert cli.main([*command, "--cache-dir", str(folder)]) == 130
    [path] = folder.glob("*.json")
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"lal-triton: interrupted after 1 of 2 kernel families, which {path} keeps"
    [stored] = json.loads(path.read_text())["entries"]
    assert stored["config"] == CONFIG
    assert cli.main(command) == 130
    assert capsys.readouterr().err.endswith("lal-triton: interrupted after 1 of 2 kernel families\n")


@without_gpu
def test_a_search_has_a_line_for_each_family(monkeypatch, capsys, reported):
    monkeypatch.setattr(search.Race, "measure", lambda *_: 1.0)
    lal_triton.tune(3, (1, 3, 4, 4), device="cpu")
    count, *lines = capsys.readouterr().err.splitlines()
    assert count == "lal-triton: 5 kernel families to tune, with 9 configurations to compile and to time"
    families = ["prepare", "local_loss_fwd", "local_cost_bwd", "merge_bwd", "step"]
    assert list(dict.fromkeys(line.partition(",")[0] for line in lines)) == families
    assert lines[-1].startswith("step, 3 x 3, float32, all C, x 1: 100 % done")
    lal_triton.tune(3, (1, 3, 4, 4), device="cpu", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["tune --dry-run --shape 1 3 64 64", "info --cost --dtype float32"])
def test_an_interrupt_from_the_terminal_ends_with_one_line(command):
    """Processes that compile get it, too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lal_triton.cli", *command.split()],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stderr
    first = process.stderr.readline()
    assert first.startswith("lal-triton: "), first + process.stderr.read()
    time.sleep(2)  # now they compile
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    *progress, last = err.splitlines()
    assert last.startswith("lal-triton: interrupted")
    assert all("% done" in line for line in progress)
    assert process.returncode == 130
    assert out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_compilers_end_with_a_process_that_is_killed():
    code = (
        "import os, signal\n"
        "from lal_triton.kernels.compilers import start_compilers\n"
        "with start_compilers(1) as compilers:\n"
        "    print(compilers.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        status = Path(f"/proc/{int(process.stdout.readline())}/status")
    deadline = time.monotonic() + 20
    while status.exists() and "zombie" not in (found := status.read_text()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
