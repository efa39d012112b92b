"""Code in the guides runs as it stands, and links lead somewhere."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]
#: Lines that one screen shows.
SCREEN = 80


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["probes", "adapters", "comparisons"])
def test_the_code_of_a_guide_runs_as_it_stands(name, monkeypatch, tmp_path):
    blocks = python_blocks(ROOT / "docs" / f"{name}.md")
    assert len(blocks) >= 2
    module = types.ModuleType(f"guide_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/{name}.md, block {number}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_first_plugins_fit_a_screen(page):
    assert [block for block in python_blocks(page) if block.count("\n") > SCREEN] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_has_a_head(page):
    """A blank line inside a table makes text with bars of what follows."""
    lines = page.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|") and not lines[i - 1].startswith("|")]
    assert [lines[i] for i in starts if not lines[i + 1].startswith("| ---")] == []
