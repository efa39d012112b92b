"""The README's commands are ones that the program and the Makefile understand, and its code runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import types
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from xatlas.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
XATLAS = [line.partition("/xatlas ")[2] for line in COMMANDS if "/xatlas " in line]
#: These need a model hub.
ONLINE = "compare --models lfm2,qwen"
#: Comparisons take half a minute each; ``make compare`` runs one in CI.
OFFLINE = [
    pytest.param(line, marks=[pytest.mark.slow] if line.startswith("compare") else [])
    for line in XATLAS
    if line != ONLINE
]


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def test_every_make_target_exists():
    """`make compare` and `make test` themselves are run by CI."""
    for target in [line.split()[1] for line in COMMANDS if line.startswith("make ")]:
        asked = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stderr


def test_the_install_says_how_it_goes(tmp_path):
    """A quiet pip is minutes of silence; each step is announced, and pip tells what it fetches."""
    words = ["make", "--dry-run", "test", f"VENV={tmp_path / 'venv'}"]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    steps = [number for number, line in enumerate(lines) if "pip install" in line]
    assert len(steps) == 3
    assert not [lines[number] for number in steps if re.search(r"--quiet|-q\b|--progress-bar off|>", lines[number])]
    assert len([line for line in lines if line.startswith('echo "xatlas: ')]) >= 3


@pytest.mark.parametrize("command", OFFLINE)
def test_commands_do_what_they_say(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    assert done.output.strip()


def test_the_command_that_needs_a_hub_is_well_formed():
    assert ONLINE in XATLAS
    name, *arguments = shlex.split(ONLINE)
    command = typer.main.get_command(app).commands[name]
    assert command.make_context(name, arguments).params["models"] == ["lfm2,qwen"]


@pytest.mark.parametrize(("number", "guide"), [(0, "probes"), (1, "adapters")])
def test_code_is_that_of_the_guide_which_is_tested_there(number, guide):
    assert blocks(ROOT / "README.md")[number] == blocks(ROOT / "docs" / f"{guide}.md")[0]


def test_python_lines_name_what_exists():
    import xatlas

    for name in re.findall(r"xatlas\.(\w+)\(", README):
        assert isinstance(getattr(xatlas, name), types.FunctionType)
