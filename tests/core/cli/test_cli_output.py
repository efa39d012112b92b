"""What is printed is safe for terminals, fits any encoding, and says more with -v wherever that stands."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from running import Counting, another, plugged

from xatlas.cli.output import WIDTH, fitting, print_table

EVIL = "x\x1b[2J\u202e\x9b31m"


def suite_named(folder, name):
    line = {"id": f"{EVIL}-1", "family": EVIL, "text": "a 1 is to 2 as", "target": " 3"}
    (folder / name).write_text(json.dumps(line) + "\n")
    return name


def harmless(text):
    return text.isprintable() or all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_no_text_of_suites_and_plugins_reaches_a_terminal_as_it_is(cli, folder):
    def failing(self, model, suite, inputs):
        raise ValueError(f"bad {EVIL} {suite.prompts[0].id}")

    bad = another("bad", failing, __doc__=f"Does {EVIL}.")
    with plugged(xatlas_probes=[bad, Counting]):
        runs = [
            cli("run", "tiny", "--probes", "bad,counting", "--suite", suite_named(folder, f"evil{EVIL}.jsonl"), "-v"),
            cli("probes"),
            cli("probes", "--json"),
            cli("explain", "bad"),
            cli("explain", EVIL),
            cli("show", EVIL),
            cli("compare", "-m", EVIL),
        ]
    for done in runs:
        assert harmless(done.stdout + done.stderr), (done.stdout, done.stderr)
    assert "\\x1b[2J" in runs[0].stderr
    assert any(row["what"] == f"Does {EVIL}." for row in json.loads(runs[2].stdout))


def test_verbose_works_behind_the_command_and_is_named_where_it_helps(cli):
    def failing(self, model, suite, inputs):
        raise ZeroDivisionError("there it is")

    with plugged(xatlas_probes=[another("bad", failing)]):
        short, long = (cli("run", "tiny", "--probes", "bad", *more) for more in ([], ["-v"]))
    assert "Traceback" not in short.stderr
    assert "-v shows the traceback" in short.stderr.splitlines()[-1]
    assert "Traceback" in long.stderr
    assert "-v shows" not in long.stderr
    assert "-v" not in cli("run", "./nowhere").stderr


def test_a_fault_in_a_plugins_class_is_one_line(cli):
    def broken(self):
        raise RuntimeError("no requirements today")

    with plugged(xatlas_probes=[another("bad", Counting.measure, requires=property(broken))]):
        done = cli("explain", "bad")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("xatlas: RuntimeError: no requirements today (-v shows")
    assert "Traceback" not in done.stderr


def outside(*words, cwd, **environment):
    command = [sys.executable, "-m", "xatlas.cli", *words]
    return subprocess.run(command, env=os.environ | environment, cwd=cwd, capture_output=True, check=False)


def test_a_terminal_without_unicode_gets_all_of_it(cli, folder):
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    cli("run", "tiny", "--probes", "residual_norms")
    for words in (["explain", "layer_ablation"], ["suites", "--json"], ["plan", "-m", "caf\xe9\U0001f600"]):
        done = outside(*words, cwd=folder, **narrow)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.stdout or done.returncode == 2
        assert "--json" not in words or json.loads(done.stdout)


def test_a_closed_pipe_is_no_traceback(folder):
    for words in ("probes", "--help"):
        script = f"{sys.executable} -m xatlas.cli {words} | true"
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
        assert done.stderr == ""


ROWS = [{"name": "[bold]tiny[/bold]", "n": 3, "what": "a sentence of several words, and one more"}]


def test_a_table_is_plain_text_where_no_terminal_shows_it(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_table([*ROWS, {"name": "long " * 500, "n": None, "what": "two\nlines"}])
    heads, _, first, second = capsys.readouterr().out.splitlines()
    assert heads.split() == ["name", "n", "what"]
    assert first.split(maxsplit=2) == ["[bold]tiny[/bold]", "3", ROWS[0]["what"]]
    assert second.endswith("–  two\\nlines")
    assert not any(line != line.rstrip() for line in (heads, first, second))


def test_a_terminal_gets_tables_wrapped_between_words(tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    script = f"from xatlas.cli.output import print_table; print_table({ROWS})"
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=environment, cwd=tmp_path, stdout=theirs, timeout=100, check=True)
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\x1b[1mname" in text  # bold heads, and no other mark-up
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 50
    assert "".join(lines[2:]).split() == ["[bold]tiny[/bold]", "3", *ROWS[0]["what"].split()]


@pytest.mark.parametrize(("name", "left"), [("short", []), ("m" * 35, ["control", "note"])])
def test_of_a_table_that_is_too_wide_what_it_says_and_how_robust_that_is_stay(name, left, capsys):
    row = {"model": name, "number": "hub 0, nats", "value": "1.23 [1.11, 1.44]", "control": "0.5 [0.4, 0.6]"}
    rows, others = fitting([{**row, "verdict": "undecided: tie", "sensitivity": "robust 9/9", "note": "x" * 9}])
    assert others == left
    assert list(rows[0]) == [each for each in [*row, "verdict", "sensitivity", "note"] if each not in left]
    print_table(rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH
