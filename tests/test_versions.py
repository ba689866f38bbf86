"""The declared versions, what is refused by name, and that every module of the package imports."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lal_triton import versions

ROOT = Path(__file__).parents[1]
# What the modules need beyond the runtime dependencies, by the extras.
EXTRAS = {
    "lal_triton.plots": "matplotlib",
    "lal_triton.integrations.mmseg": "mmseg",
    "lal_triton.benchmarks.headline": "PIL",
    "lal_triton.benchmarks.libraries": "PIL",
    "lal_triton.benchmarks.runner": "PIL",
    "lal_triton.benchmarks.scenes": "PIL",
    "lal_triton.benchmarks.voc": "PIL",
    "lal_triton.benchmarks.training.deeplab_voc": "safetensors",
    "lal_triton.benchmarks.training.evaluation": "lightning_fabric",
    "lal_triton.benchmarks.training.experiment": "lightning_fabric",
    "lal_triton.benchmarks.training.loop": "lightning_fabric",
    "lal_triton.benchmarks.training.pictures": "PIL",
    "lal_triton.benchmarks.training.samples": "monai",
    "lal_triton.benchmarks.training.small_tasks": "sklearn",
}
IMPORT_ALL = """
import importlib.util, json, pkgutil, sys
names, failed = sys.argv[1:], {}
for package in sys.argv[1:]:
    path = importlib.util.find_spec(package).submodule_search_locations
    names += [module.name for module in pkgutil.iter_modules(path, package + ".") if module.name not in names]
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps([names, failed]))
"""


@pytest.fixture
def install(monkeypatch):
    """As if these versions were installed."""

    def pretend(**found):
        def version(name):
            if name not in found:
                raise importlib.metadata.PackageNotFoundError(name)
            return found[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    caches = versions.check_triton, versions.check_interpreter
    for check in caches:
        check.cache_clear()
    yield pretend
    for check in caches:
        check.cache_clear()


def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_oldest_constraints_are_the_declared_floors():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [line.replace('"', "'").split(";") for line in lines if line and not line.startswith("#")]
    floors = [line.replace('"', "'").split(";") for line in declared()["dependencies"]]

    def split(requirements, sign):
        parted = [(requirement.split(sign), marker) for requirement, *marker in requirements]
        return {name: (release([*version]), [part.strip() for part in marker]) for (name, *version), marker in parted}

    def release(version):
        assert len(version) == 1, version
        return [*map(int, version[0].split(".")), 0][:3]

    assert split(pins, "==") == split(floors, ">=")


def test_the_oldest_python_is_named_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert f"OLDEST_PYTHON ?= python{oldest}\n" in (ROOT / "Makefile").read_text()
    assert f"Python {oldest}+" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("triton", ["3.5.0", "3.6.0+git1", "3.10.0", "4.0"])
def test_triton_that_serves(install, triton):
    install(triton=triton)
    versions.check_triton()


def test_old_triton_is_refused(install):
    install(triton="3.4.0", numpy="2.3.5")
    for check in (versions.check_triton, versions.check_interpreter):
        with pytest.raises(RuntimeError, match=r"^Triton is 3\.4\.0, expected 3\.5 or newer: install triton>=3\.5"):
            check()


def test_triton_of_unknown_version_is_let_through(install):
    install(numpy="2.4.0")
    versions.check_interpreter()


@pytest.mark.parametrize(("triton", "numpy"), [("3.6.0", "2.3.5"), ("3.7.0", "2.4.6"), ("3.9.0", "2.10.0")])
def test_interpreter_that_runs(install, triton, numpy):
    install(triton=triton, numpy=numpy)
    versions.check_interpreter()


@pytest.mark.parametrize("triton", ["3.5.0", "3.6.0"])
def test_interpreter_that_fails_under_numpy_is_refused(install, triton):
    install(triton=triton, numpy="2.4.0")
    versions.check_triton()
    with pytest.raises(RuntimeError, match=rf'Triton {triton} fails under numpy 2\.4\.0.*install "numpy<2\.4"'):
        versions.check_interpreter()


def test_every_module_imports():
    """Where an extra is not installed, the modules that need it fail for that alone."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    command = [sys.executable, "-c", IMPORT_ALL, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, failed = json.loads(done.stdout)
    assert set(EXTRAS) <= set(names)
    assert "lal_triton.kernels.forward" in names
    for name, error in failed.items():
        extra = EXTRAS.get(name) or EXTRAS[name.rpartition(".")[0]]
        assert "ModuleNotFoundError" in error, (name, error)
        assert importlib.util.find_spec(extra) is None, (name, error)
