"""What SECURITY.md says: files are read as data. No module unpickles, and no string becomes code but a kernel's own."""

import ast
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDERS = ("lal_triton", "kernels", "benchmarks", "plots", "examples")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
EVALUATORS = {"benchmarks/cost_model/statements.py"}  # of expressions in the package's kernels


def calls(name):
    """Calls of a function or method of this name, with their files."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path.relative_to(ROOT).as_posix(), node


def test_no_module_unpickles():
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {(alias.name.partition(".")[0], path.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add((node.module.partition(".")[0], path.name))
    assert {name for name, _ in found} > {"torch", "json"}
    assert {pair for pair in found if pair[0] in UNPICKLERS} == set()


def test_checkpoints_are_loaded_as_weights_only():
    loads = list(calls("torch.load"))
    assert len(loads) >= 3
    for path, node in loads:
        assert "weights_only=True" in map(ast.unparse, node.keywords), path


def test_arrays_are_loaded_without_pickles():
    for path, node in calls("np.load"):
        assert "allow_pickle" not in [keyword.arg for keyword in node.keywords], path


@pytest.mark.parametrize("name", ["eval", "exec"])
def test_strings_become_no_code(name):
    assert {path for path, _ in calls(name)} <= EVALUATORS


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_nothing(tmp_path):
    loop = pytest.importorskip("lal_triton.benchmarks.training.loop")
    torch.save({"run": {}, "network": Intruder(tmp_path / "intruded")}, tmp_path / "checkpoint.pt")
    with pytest.raises(Exception, match="weights_only"):
        loop.read_checkpoint(tmp_path, {})
    assert not (tmp_path / "intruded").exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "intruded").exists()  # so the test could have failed
