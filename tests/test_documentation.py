"""The README is short, and what it and docs/ link, name and quote is there."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

from lal_triton.benchmarks import call_path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [ROOT / "README.md", ROOT / "docs/semantics.md", ROOT / "docs/upsampling.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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


def test_the_readme_links_every_page():
    links = LINK.findall((ROOT / "README.md").read_text())
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links)


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


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_parses(page):
    blocks = [code for language, code in FENCED.findall(page.read_text()) if language == "python"]
    assert blocks
    for code in blocks:
        ast.parse(code)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a comprehension is a call in Python 3.11, and none later")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures of the CPU")
def test_files_of_a_call_are_as_many_as_told():
    told = (ROOT / "docs/architecture.md").read_text()
    for name, (files, returns) in call_path.measure("cpu").items():
        assert f"| CPU, {name} | {len(files)} | {returns} |" in told
