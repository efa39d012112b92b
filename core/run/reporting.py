"""What became of a run, and how it is shown while it goes on."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from xatlas.text import one_line, say_on_stderr

if TYPE_CHECKING:
    from rich.progress import Progress

    from xatlas.run.plan import Step


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong and did not stop the rest."""

    what: str  # ``layer_ablation on qwen-mini``, or the name of a comparison
    reason: str  # one line

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class RunReport:
    """What became of the steps of a plan: measured now, or there already, or failed."""

    measured: list[Step] = field(default_factory=list)
    reused: list[Step] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Reporter:
    """Receives progress callbacks, and shows nothing: a subclass overrides what it shows."""

    def loading(self, model: str) -> None:
        """A model is being loaded."""

    def start(self, step: Step) -> None:
        """A measurement begins."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Part of it is done; called often."""

    def finish(self, step: Step, seconds: float) -> None:
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
        """Say so."""
        self._say(f"loading {model}")

    def start(self, step: Step) -> None:
        """Show a new bar."""
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
        """Move the bar."""
        if self.bar and total > 0:
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, label=one_line(label))

    def finish(self, step: Step, seconds: float) -> None:
        """Say how long it took."""
        self._say(f"{self._title(step)}: {seconds:.1f} s")

    def fail(self, failure: Failure) -> None:
        """Say why."""
        self._say(f"failed: {failure}")

    def _title(self, step: Step) -> str:
        return f"[{self.number}/{self.total}] {step}" if self.total else str(step)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()
        self.bar = None

    def _say(self, text: str) -> None:
        self.close()
        say_on_stderr(text)
