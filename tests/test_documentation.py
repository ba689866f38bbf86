"""The README is short, and what it and the other pages link, name, quote and run is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lal_triton.benchmarks import call_path

ROOT = Path(__file__).parents[1]
DOCS = sorted(path for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".rst"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
# What the code of every page may use.
PRELUDE = """
import torch
import torch.nn.functional as F
torch.manual_seed(0)
logits = torch.randn(2, 21, 16, 16, requires_grad=True)
full_logits = torch.randn(2, 21, 64, 64)
target = torch.randint(21, (2, 64, 64))
target[:, :4] = 255
weight = torch.rand(21)
"""
FENCED = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:benchmarks|docs|examples|kernels|lal_triton|plots|tests)/[\w./-]+\.\w+)`")
of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(text):
    """Of the headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        earlier = len([anchor for anchor in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor)])
        found.append(f"{slug}-{earlier}" if earlier else slug)
    return found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_readme_and_the_index_link_every_page():
    readme, index = (set(LINK.findall((ROOT / path).read_text())) for path in ("README.md", "docs/index.md"))
    assert "docs/index.md" in readme
    assert [page.name for page in DOCS if f"docs/{page.name}" not in readme and page.name not in index] == []


@of_page
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text())
    for link in LINK.findall(text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@of_page
def test_files_that_are_named_exist(page):
    missing = [path for path in PATH.findall(page.read_text()) if not (ROOT / path).is_file()]
    assert missing == []


def test_names_that_contributors_look_for_exist():
    folders = ("lal_triton", "kernels", "benchmarks", "tests")
    sources = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    named = re.findall(r"`(\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 30
    assert [name for name in named if not re.search(rf"\b{name}\b", sources)] == []


def script_of(text):
    """The Python blocks of a page, at their lines: what stands between them is blank."""
    lines = [""] * len(text.splitlines())
    for block in FENCED.finditer(text):
        language, _, remark = block[1].partition(" ")
        if language != "python":
            continue
        if remark:
            assert re.fullmatch(r"not-run: \w.*", remark), f"{remark!r} is no reason"
            continue
        first = text[: block.start(2)].count("\n")
        code = block[2].splitlines()
        lines[first : first + len(code)] = code
    assert lines[0] == ""  # it is a heading's, and takes the prelude
    return "\n".join([f"exec({PRELUDE!r})", *lines[1:]]) + "\n"


def test_code_runs(tmp_path):
    """Page by page, in one process, which does not interpret the kernels."""
    pytest.importorskip("triton")
    scripts = []
    for page in PAGES:
        scripts.append(tmp_path / f"{page.stem}.py")
        scripts[-1].write_text(script_of(page.read_text()))
    run_all = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", run_all, *map(str, scripts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_block_keeps_its_line_and_a_marked_one_is_left_out():
    page = "# Page\n\n```python\none = 1\n```\n```\nshell\n```\n```python not-run: needs a GPU\ntwo = 2\n```\n"
    assert script_of(page).splitlines()[1:] == ["", "", "one = 1", "", "", "", "", "", "", ""]
    with pytest.raises(AssertionError, match="is no reason"):
        script_of(page.replace("not-run: needs a GPU", "later"))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a comprehension is a call in Python 3.11, and none later")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures of the CPU")
def test_files_of_a_call_are_as_many_as_told():
    told = (ROOT / "docs/architecture.md").read_text()
    for name, (files, returns) in call_path.measure("cpu").items():
        assert f"| CPU, {name} | {len(files)} | {returns} |" in told
