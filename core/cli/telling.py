"""What the commands tell when they are done: rows, tables, records for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.cli.words import command_line, echo, print_result

if TYPE_CHECKING:
    from xatlas.run.comparing import Comparing
    from xatlas.run.plan import Settings, Step
    from xatlas.store import Store


def step_row(step: Step, store: Store, fresh: bool) -> dict[str, Any]:
    """Return a job as a row: what was measured, and where it is kept."""
    return {
        "model": step.job.model,
        "probe": step.job.probe,
        "state": "measured" if fresh else "was there",
        "file": str(store.file(step.job)),
    }


def comparing_record(done: Comparing, steps: Sequence[Step], settings: Settings, store: Store) -> dict[str, Any]:
    """Return everything that a comparison gave, for programs."""
    fresh = {step.job.key for step in done.outcome.measured}
    return {
        "suite": {"name": settings.suite.name, "hash": settings.suite.hash, "prompts": len(settings.suite)},
        "jobs": [step_row(step, store, step.job.key in fresh) | {"key": step.job.key} for step in steps],
        "comparisons": {
            result.name: {
                "table": result.table,
                "findings": [asdict(item) for item in result.findings],
                "files": result.files,
            }
            for result in done.results
        },
        "failures": [str(failure) for failure in done.failures],
    }


def print_comparing(done: Comparing, settings: Settings, out: Path) -> None:
    """Print tables and findings, what they rest on, where they are, and how to go on."""
    from xatlas import manager
    from xatlas.api import ATLAS, FIGURES
    from xatlas.run.suites import larger_suite

    for result in done.results:
        print_result(result, manager.comparisons()[result.name].summary)
    if not done.results:
        return
    echo(f"\n{rests_on(settings)}.")
    if not done.outcome.measured and all(result.reused for result in done.results):
        echo("Nothing has changed: all of it was there.")
    echo(f"Results are in {out / ATLAS}, figures and their data in {out / FIGURES}.")
    larger = larger_suite(settings.suite)
    if larger is not None:
        echo(f"On suite '{larger.name}' ({len(larger)} prompts): {_again('--suite', larger.name)}")


def _again(option: str, value: str) -> str:
    """Return the command that was given, with one option more or another value of it."""
    words: list[str] = []
    given = iter(sys.argv[1:])
    for word in given:
        if word == option:
            next(given, None)
        elif not word.startswith(f"{option}="):
            words.append(word)
    return command_line("xatlas", *words, option, value)


def rests_on(settings: Settings) -> str:
    """Return which prompts the numbers rest on."""
    suite = settings.suite
    return f"Suite '{suite.name}': {len(suite)} prompts of {len(suite.families)} families"
