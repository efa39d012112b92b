"""docs/house.md names every part of core, in the order in which they import one another."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_names_the_parts_of_core_from_the_ground_up():
    page = (ROOT / "docs" / "house.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    parts = {path.stem for path in (ROOT / "core").iterdir() if not path.name.startswith("__") and path.stem != "py"}
    assert sorted(named) == sorted(parts)
    linter = ConfigParser()
    linter.read(ROOT / ".importlinter")
    layers = linter["importlinter:contract:layers"]["layers"].split("\n")
    order = {name.strip(): place for place, line in enumerate(layers) for name in line.split("|")}
    # a row may hold neighbours; rows follow the linter's order, ground first
    lowest = [max(order[name] for name in re.findall(r"\w+", row)) for row in rows]
    assert lowest == sorted(lowest, reverse=True)
