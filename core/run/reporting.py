"""What became of a run, and how it is shown while it goes on."""

from __future__ import annotations

import html
import sys
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xatlas.text import one_line, say_on_stderr

if TYPE_CHECKING:
    from rich.progress import Progress

    from xatlas.contracts.comparison import Finding
    from xatlas.run.plan import Plan, Step

#: Most lines of a report's short form.
SCREEN = 40


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong and did not stop the rest."""

    what: str  # ``layer_ablation on qwen-mini``, or the name of a comparison
    reason: str  # one line

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class ComparisonResult:
    """What one comparison gave: rows to print, findings with p-values adjusted across the run, figure and data."""

    name: str
    table: list[dict[str, Any]]
    findings: list[Finding]
    files: list[Path]
    reused: bool = False  # nothing that it rests on has changed since it was made


@dataclass(repr=False)
class Report:
    """What became of a plan; look at the failures, too. Printed, or in a notebook, it is a short table."""

    plan: Plan  # which jobs answer what was asked
    measured: list[Step] = field(default_factory=list)  # now
    reused: list[Step] = field(default_factory=list)  # their results were there
    results: list[ComparisonResult] = field(default_factory=list)  # in the order asked for
    failures: list[Failure] = field(default_factory=list)  # of measurements and comparisons

    def _rows(self) -> list[tuple[str, str]]:
        """Return what and how it went, as much as fits a screen."""
        models = ", ".join(model.slug for model in self.plan.models)
        rows = [("models", f"{models} on suite '{self.plan.config.suite.name}'")]
        rows += [("jobs", f"{len(self.measured)} measured, {len(self.reused)} were there")]
        rows += [("failed", one_line(str(failure))) for failure in self.failures]
        for result in self.results:
            files = ", ".join(str(file) for file in result.files[:1]) or "no figure"
            rows.append((result.name, f"a table of {len(result.table)} rows; {files}"))
            rows += [(f"  {finding.verdict}", describe(finding)) for finding in result.findings]
        return rows if len(rows) <= SCREEN else [*rows[:SCREEN], ("…", f"{len(rows) - SCREEN} more: see .results")]

    def __repr__(self) -> str:
        return "\n".join(f"{what}: {how}" for what, how in self._rows())

    def _repr_html_(self) -> str:
        rows = [[html.escape(text) for text in row] for row in self._rows()]
        left = " style='text-align: left'"
        return f"<table>{''.join(f'<tr><th{left}>{what}</th><td{left}>{how}</td></tr>' for what, how in rows)}</table>"


def describe(finding: Finding) -> str:
    """Return a finding's sentence in one line; where its adjusted p-value has decided, that, and what it is against."""
    decides = finding.verdict == "supported" or finding.reason.startswith(("p = ", "equal")) or not finding.reason
    if not decides or finding.p_adjusted is None:
        return one_line(finding.sentence)
    p = f"p = {finding.p_adjusted:.2g}" if finding.p_adjusted >= 1e-4 else "p < 0.0001"
    return one_line(f"{finding.sentence} ({p} against {finding.against or 'chance'})")


def judged(finding: Finding, said: str = "") -> str:
    """Return a verdict with its reason, unless that is ``said`` elsewhere."""
    # p stands behind the sentence
    reason = "" if finding.reason.startswith("p = ") or finding.reason == said else one_line(finding.reason)
    return f"{finding.verdict} ({reason})" if reason else str(finding.verdict)


class Reporter:
    """Receives progress callbacks, and shows nothing: a subclass overrides what it shows."""

    def loading(self, model: str) -> None:
        """A model is being loaded."""

    def start(self, step: Step | str) -> None:
        """A measurement begins; of a model in memory its name is told."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Part of it is done; called often."""

    def finish(self, step: Step | str, seconds: float) -> None:
        """It is done and kept."""

    def fail(self, failure: Failure) -> None:
        """It failed; the others go on."""


#: A reporter; ``console``: stderr; ``auto``: stderr where it is watched, in a terminal or a notebook; None: nothing.
ReporterChoice = Reporter | Literal["auto", "console"] | None


def reporting(choice: ReporterChoice, total: int = 0) -> AbstractContextManager[Reporter]:
    """Make the chosen reporter of ``total`` jobs, where that is known; what it draws is removed in the end."""
    if choice == "console" or (choice == "auto" and (sys.stderr.isatty() or _in_notebook())):
        return closing(Console(total))
    return nullcontext(Reporter() if choice is None or isinstance(choice, str) else choice)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


class Console(Reporter):
    """Shows on stderr how a run goes: a progress bar on a terminal or in a notebook, a line per job elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0
        self.bar: Progress | None = None

    def loading(self, model: str) -> None:
        self._say(f"loading {model}")

    def start(self, step: Step | str) -> None:
        self.number += 1
        title = self._title(step)
        if not sys.stderr.isatty() and not (_in_notebook() and find_spec("ipywidgets")):
            self._say(title)
            return
        from rich import progress
        from rich.console import Console as Terminal

        self.close()
        text = progress.TextColumn("{task.description}  {task.fields[label]}", markup=False)
        columns = (text, progress.BarColumn(), progress.TaskProgressColumn(), progress.TimeRemainingColumn())
        self.bar = progress.Progress(*columns, console=Terminal(stderr=True), transient=True, redirect_stdout=False)
        self.bar.add_task(one_line(title), total=None, label="")
        self.bar.start()

    def progress(self, label: str, done: int, total: int) -> None:
        if self.bar and total > 0:
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, label=one_line(label))

    def finish(self, step: Step | str, seconds: float) -> None:
        self._say(f"{self._title(step)}: {seconds:.1f} s")

    def fail(self, failure: Failure) -> None:
        self._say(f"failed: {failure}")

    def _title(self, step: Step | str) -> str:
        return f"[{self.number}/{self.total}] {step}" if self.total else str(step)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()
        self.bar = None

    def _say(self, text: str) -> None:
        self.close()
        say_on_stderr(text)
