"""docs/house.md names every part of core, in the order of its imports, and where each ordinary change is made."""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

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


PACKAGES = ("core", "plugins", "architectures", "comparisons")


def defined(tree):
    """Yield the names that a module defines at its top: functions, classes and constants."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id


@pytest.fixture(scope="module")
def homes():
    """Return name → the files that define it."""
    found = {}
    for path in (path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")):
        for name in defined(ast.parse(path.read_text())):
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def changes():
    page = (ROOT / "docs" / "house.md").read_text()
    table = page.split("## Where to change what", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (?!to change)([^|`-][^|]*) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)


@pytest.mark.parametrize(("change", "files", "names"), changes(), ids=[row[0] for row in changes()])
def test_what_is_changed_stands_where_the_page_says_and_nowhere_else(change, files, names, homes):
    files, names = re.findall(r"`([^`]+)`", files), re.findall(r"`(\w+)", names)
    assert 1 <= len(files) <= 2
    assert names
    for name in names:
        assert homes.get(name, set()) <= set(files), f"{name} is defined elsewhere, too"
    assert {path for name in names for path in homes[name]} == set(files)


def test_the_page_says_where_to_make_ordinary_changes():
    assert len(changes()) >= 12
