"""What a run tells while it goes, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from xatlas.run.plan import Step


class Reporter(Protocol):
    """Hears how a run goes."""

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


class Silent:
    """Hears all and says nothing."""

    def loading(self, model: str) -> None:
        """Say nothing."""

    def start(self, step: Step) -> None:
        """Say nothing."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Say nothing."""

    def finish(self, step: Step, seconds: float) -> None:
        """Say nothing."""

    def fail(self, failure: Failure) -> None:
        """Say nothing: the outcome holds it."""


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong and did not stop the rest.

    Parameters
    ----------
    what : str
        ``layer_ablation on qwen-mini``, or the name of a comparison.
    reason : str
        One line.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class Outcome:
    """What became of the steps of a run.

    Parameters
    ----------
    measured, reused : list of Step
        Those done now, and those whose results were there.
    failures : list of Failure
        The rest.
    """

    measured: list[Step] = field(default_factory=list)
    reused: list[Step] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
