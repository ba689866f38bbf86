"""The package imports where a checkout's root is the current folder, and so comes before an installed package."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT = """
import importlib
for name in ("kernels.configs", "benchmarks.scenes", "plots.style", "functional"):
    module = importlib.import_module(f"lal_triton.{name}")
    assert module.__name__ == f"lal_triton.{name}" and module.__file__.startswith(ROOT), module.__file__
"""


def test_a_checkout_imports_without_an_installation(tmp_path):
    """`-S` leaves out the .pth files of an editable installation; the libraries are given by their folder."""
    libraries = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    environment = {**os.environ, "PYTHONPATH": libraries, "LAL_TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-S", "-c", f"ROOT = {str(ROOT)!r}\n{IMPORT}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
