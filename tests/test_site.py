"""The documentation site is built without a warning, asks no other host for anything, and has every public name."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("furo")
pytest.importorskip("myst_parser")

import lal_triton
from lal_triton import functional

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)|<link\b[^>]*\bhref=\"([^\"]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    options = ["-c", "docs", "-b", "html", "-d", str(folder / "doctrees"), "--fail-on-warning", "--keep-going", "-q"]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_root_leads_to_the_documentation(site):
    (target,) = re.findall(r"url=([^\"]+)", (site / "index.html").read_text())
    assert (site / target).is_file()


def test_pages_load_nothing_from_other_hosts(site):
    for page in site.rglob("*.html"):
        for pair in LOADED.findall(page.read_text()):
            address = "".join(pair)
            assert not re.match(r"(https?:)?//", address), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import [\"']?(https?:)?//", style.read_text()), style


def test_every_public_name_is_on_the_page(site):
    page = (site / "docs/api.html").read_text()
    of_functional = [
        name for name, value in vars(functional).items() if inspect.getmodule(value) is functional and name[0] != "_"
    ]
    assert len(of_functional) == 5
    names = {f"lal_triton.{name}" for name in lal_triton.__all__} - {"lal_triton.functional"}
    names |= {"module-lal_triton.functional"} | {f"lal_triton.functional.{name}" for name in of_functional}
    assert sorted(name for name in names if f'id="{name}"' not in page) == []
