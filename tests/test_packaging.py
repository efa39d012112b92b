"""What a wheel holds: every package of the four folders, and every file of the miniature models."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
#: Folder → the package that it is.
FOLDERS = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
MINIS = "xatlas.architectures.minis"


def owner(package):
    """Return the folder that a package lies in: that of the longest mapped name before it."""
    mapped = [name for name in SETUPTOOLS["package-dir"] if f"{package}.".startswith(f"{name}.")]
    return SETUPTOOLS["package-dir"][max(mapped, key=len)]


def packages_under(folder):
    """Yield the package of every folder that holds Python files; one without ``__init__.py`` is a package too."""
    for inner in sorted({file.parent.relative_to(ROOT / folder) for file in (ROOT / folder).rglob("*.py")}):
        yield ".".join((FOLDERS[folder], *inner.parts))


def test_the_four_folders_are_the_package():
    assert set(FOLDERS) == {"core", "plugins", "architectures", "comparisons"}


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_folder_of_modules_is_shipped(folder):
    listed = [name for name in SETUPTOOLS["packages"] if owner(name) == folder]
    assert sorted(listed) == sorted(packages_under(folder))


def test_every_file_of_a_miniature_is_shipped():
    folder, patterns = ROOT / "architectures" / "minis", SETUPTOOLS["package-data"][MINIS]
    files = [file.relative_to(folder) for file in folder.glob("*/**/*") if file.is_file()]
    files = [file for file in files if file.parts[0] != "__pycache__"]
    assert {file.parts[0] for file in files} >= {"lfm2-mini", "qwen-mini", "smollm2-mini"}

    def shipped(file):
        # As setuptools globs: a star matches within one folder, so every pattern has as many parts as the file.
        splits = [pattern.split("/") for pattern in patterns]
        fits = [len(parts) == len(file.parts) and all(map(fnmatch, file.parts, parts)) for parts in splits]
        return any(fits)

    assert [str(file) for file in files if not shipped(file)] == []
