"""The pages that are taken from the program are up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(generator().PAGES))
def test_the_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == generator().PAGES[name](), "run: make docs"


def test_every_option_says_what_it_does():
    rows = [line for line in (DOCS / "cli.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row for row in rows if not row.split("|")[-2].strip()] == []
