"""Progress is shown where somebody watches; what compare returned is shown in short."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from xatlas.contracts.comparison import Finding
from xatlas.run.reporting import SCREEN, ComparisonResult, Console, Failure, Report, Reporter, describe, reporting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "choice", "shown"),
    [
        (Terminal, "auto", True),
        (io.StringIO, "auto", False),
        (Terminal, None, False),
        (io.StringIO, "console", True),
    ],
)
def test_progress_is_shown_where_it_is_watched_or_asked_for(monkeypatch, stream, choice, shown):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with reporting(choice, 1) as reporter:
        assert isinstance(reporter, Console) == shown


def test_progress_is_shown_in_a_notebook_and_a_reporter_of_ones_own_is_taken(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    with reporting("auto", 1) as reporter:
        assert isinstance(reporter, Console)
    own = Reporter()
    with reporting(own, 1) as reporter:
        assert reporter is own


def test_a_bar_is_drawn_on_a_terminal_and_removed_whatever_happens(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted():
        with reporting("console", 2) as reporter:
            reporter.start("layer_ablation on [bold]m[/bold]")
            reporter.progress("KL", 1, 2)
            reporter.bar.refresh()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "[1/2] layer_ablation on [bold]m[/bold]" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the line is cleared


def report(n_findings=1, failures=()):
    plan = SimpleNamespace(
        models=[SimpleNamespace(slug="a<b>"), SimpleNamespace(slug="c")],
        config=SimpleNamespace(suite=SimpleNamespace(name="quick")),
    )
    finding = Finding("It is\nso.", 1.0, 0.0, 2.0, 0.0, 0.01, "supported", p_adjusted=0.02)
    result = ComparisonResult("hub", [{"model": "c"}], [finding] * n_findings, [Path("figures/hub.png")])
    return Report(plan, results=[result], failures=list(failures))


def test_a_report_is_shown_on_one_screen():
    text = repr(report(failures=[Failure("hub of c", "it broke.")]))
    for part in ("a<b>, c", "quick", "hub", "figures/hub.png", "supported: It is so. (p = 0.02 against chance)"):
        assert part in text
    assert "failed: hub of c: it broke." in text
    long = repr(report(500, failures=[Failure("hub of c", "it broke.")])).splitlines()
    assert "failed: hub of c: it broke." in long  # however much went well
    assert len(long) == SCREEN + 1
    assert "more" in long[-1]


def test_a_report_in_a_notebook_is_a_table_with_nothing_of_others_in_its_tags():
    page = report()._repr_html_()
    assert page.startswith("<table>")
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert math.isclose(page.count("<tr>"), page.count("</tr>"))


@pytest.mark.parametrize(
    ("verdict", "reason", "told"),
    [
        ("supported", "", True),
        ("undecided", "p = 0.2", True),
        ("refuted", "equal within the margin", True),
        ("undecided", "too few templates", False),
        ("undecided", "it ties with layer 3", False),
    ],
)
def test_a_p_value_is_told_where_it_decided(verdict, reason, told):
    finding = Finding("It is so.", 1, 0, 2, 0, 0.01, verdict, reason=reason, p_adjusted=0.02, against="chance")
    assert describe(finding) == ("It is so. (p = 0.02 against chance)" if told else "It is so.")
