"""Wheel and sdist hold what they need: each is built, and the wheel is used where the checkout is not seen."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("twine")

import lal_triton

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("package"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout"),
]
USE = """
import importlib, importlib.resources, importlib.util, pkgutil, sys
from pathlib import Path
import torch
import lal_triton
from lal_triton.benchmarks import scenes
from lal_triton.kernels import configs
from lal_triton.tuning.candidates import Problem

assert Path(lal_triton.__file__).is_relative_to(sys.prefix), lal_triton.__file__
for module in pkgutil.walk_packages(lal_triton.__path__, "lal_triton."):
    framework = module.name.removeprefix("lal_triton.integrations.")  # which only its adapter needs
    if not module.name.endswith("__main__") and (framework == module.name or importlib.util.find_spec(framework)):
        assert Path(importlib.import_module(module.name).__file__).is_relative_to(sys.prefix), module.name
assert importlib.resources.files("lal_triton").joinpath("py.typed").is_file()
assert all(configs.pinned(setting, "sm_90") for setting in Problem.of(5, (1, 21, 64, 64), torch.float32, 4).settings())
logits, target = torch.randn(1, 21, 16, 16, requires_grad=True), torch.from_numpy(scenes.read_nuclei(21).labels)
loss = lal_triton.LocallyAdaptiveLoss()(logits, target[None, :64, :64])
loss.backward()
assert loss > 0 and logits.grad.norm() > 0
"""


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with `sdist`, its `source`, `from_sdist` and `from_checkout`, of files that git does not ignore."""
    folder = tmp_path_factory.mktemp("package")
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "checkout" / name)
    build = sys.executable, "-m", "build", "--no-isolation"
    run(*build, "--sdist", "--outdir", folder / "sdist", folder / "checkout")
    run(*build, "--wheel", "--outdir", folder / "from_checkout", folder / "checkout")
    with tarfile.open(only(folder / "sdist")) as archive:
        archive.extractall(folder / "source", filter="data")
    run(*build, "--wheel", "--outdir", folder / "from_sdist", only(folder / "source"))
    return folder


def only(folder):
    (path,) = folder.iterdir()
    return path


def test_both_ways_lead_to_the_same_wheel(built):
    wheels = [zipfile.ZipFile(only(built / name)) for name in ("from_checkout", "from_sdist")]
    contents = [{name: wheel.read(name) for name in wheel.namelist()} for wheel in wheels]
    assert contents[0].keys() == contents[1].keys()
    assert contents[0] == contents[1]


def test_the_wheel_has_every_module_of_the_checkout(built):
    names = set(zipfile.ZipFile(only(built / "from_sdist")).namelist())
    for folder, package in (
        ("lal_triton", ""),
        ("kernels", "kernels"),
        ("benchmarks", "benchmarks"),
        ("plots", "plots"),
    ):
        for path in (built / "checkout" / folder).rglob("*.py"):
            inside = Path("lal_triton", package, path.relative_to(built / "checkout" / folder))
            assert inside.as_posix() in names


def test_the_citation_has_the_version():
    assert f"\nversion: {lal_triton.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_metadata_pass_twine(built):
    run(sys.executable, "-m", "twine", "check", "--strict", only(built / "sdist"), only(built / "from_sdist"))


def test_the_wheel_works_without_the_checkout(built, tmp_path):
    """In an environment of its own, which sees this one's libraries, but no .pth file of it."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = "install", "--quiet", "--no-deps", "--no-index", only(built / "from_sdist")
    run(sys.executable, "-m", "pip", "--python", python, *install)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(packages, "libraries.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "LAL_TRITON_CACHE_DIR": str(tmp_path / "cache")}
    for name in ("PYTHONPATH", "TRITON_INTERPRET"):
        environment.pop(name, None)
    run(python, "-c", USE, cwd=tmp_path, env=environment)
    info = run(tmp_path / "venv/bin/lal-triton", "info", cwd=tmp_path, env=environment)
    assert info.split()[:2] == ["lal_triton", lal_triton.__version__]


def test_tests_run_from_the_sdist(built):
    """Files that the documents name are a sample of what has to be there."""
    run(
        sys.executable, "-m", "pytest", "tests/test_documentation.py", "-k", "lead or named", cwd=only(built / "source")
    )
