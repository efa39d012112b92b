"""What the commands tell when they are done: rows, tables, records for programs."""

from __future__ import annotations

import functools
import inspect
import io
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from xatlas.errors import XatlasError
from xatlas.text import one_line, printable

if TYPE_CHECKING:
    from xatlas.config import MeasureConfig
    from xatlas.results.store import Store
    from xatlas.run.compare import CompareReport, ComparisonResult


R = TypeVar("R")
#: What tables are printed from: column → cell.
Rows = Sequence[Mapping[str, Any]]

USAGE, FAILED, INTERRUPTED = 2, 1, 130

#: Width of a table that no terminal shows.
_ENDLESS = 10**6


#: Tells about faults of programs, with a traceback that ``-v`` shows.
log = logging.getLogger("xatlas")

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more, tracebacks included.")]


def told(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command ``-v``, and turn what goes wrong into one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, verbose: bool = False, **kwargs: Any) -> R:
        if verbose:
            listen(True)
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except XatlasError as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, XatlasError | OSError | ValueError):
                log.debug("this came from:", exc_info=cause)
            say(f"{error}{traceback_hint()}")
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            say("interrupted. What was finished is kept: the same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except Exception as error:  # a fault of ours or of a plugin's
            log.debug("this came from:", exc_info=True)
            say(f"{type(error).__name__}: {error}{traceback_hint()}")
            raise typer.Exit(FAILED) from None

    signature = inspect.signature(command, eval_str=True)
    more = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    vars(wrapper)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), more])
    return wrapper


def echo(text: str = "") -> None:
    """Print text, safe for terminals."""
    typer.echo(printable(text))


def say(text: str) -> None:
    """Write one line to stderr, above the progress bar where there is one."""
    typer.echo(f"xatlas: {one_line(text)}", file=sys.stderr, err=True)


class Lines(logging.Handler):
    """Writes what the package logs to stderr, a line each; with tracebacks when ``verbose``."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose
        self.hidden = False  # whether the traceback of a fault was left out

    def emit(self, record: logging.LogRecord) -> None:
        """Write, or note that there was more to write."""
        fault = record.exc_info and not isinstance(record.exc_info[1], XatlasError)
        if self.verbose and record.exc_info:
            typer.echo(printable(logging.Formatter().formatException(record.exc_info)), file=sys.stderr, err=True)
        elif fault:
            self.hidden = True
        if self.verbose or record.levelno >= logging.WARNING:
            say(record.getMessage())


def listen(verbose: bool) -> None:
    """Send what the package logs to stderr."""
    log.handlers = [Lines(verbose)]
    log.propagate = False
    log.setLevel(logging.DEBUG)


def traceback_hint() -> str:
    """Return how to see the traceback of a fault, where one was left out."""
    return " (-v shows the traceback)" if any(getattr(each, "hidden", False) for each in log.handlers) else ""


def print_json(value: Any) -> None:
    """Print a value for a program; numbers that are not finite become null."""
    narrow = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8"
    text = json.dumps(_finite(value), indent=2, ensure_ascii=narrow, allow_nan=False, default=str)
    # What a terminal would obey is escaped as JSON does it: programs read the same text.
    typer.echo("".join(mark if printable(mark) == mark else f"\\u{ord(mark):04x}" for mark in text))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_rows(rows: Rows, as_json: bool) -> None:
    """Print what a command has collected: a table for people, JSON for programs."""
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        echo("none")


def print_table(rows: Rows) -> None:
    """Print rows under their column names, numbers to the right.

    On a terminal, cells are wrapped between words where the table is too wide; elsewhere a row is a line.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rule = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)  # under the heads, and no other line
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    for name, head, *cells in zip(columns, map(_cell, columns), *lines, strict=True):
        right = all(isinstance(row.get(name), int | float) for row in rows)
        longest = max(map(len, " ".join([head, *cells]).split()), default=0)
        table.add_column(Text(head), justify="right" if right else "left", min_width=longest)
    for line in lines:
        table.add_row(*map(Text, line))  # a Text holds no markup
    terminal = sys.stdout.isatty()
    width = os.get_terminal_size(sys.stdout.fileno()).columns if terminal else _ENDLESS
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=terminal, force_jupyter=False).print(table, crop=False)
    for printed in text.getvalue().splitlines():
        typer.echo(printed.rstrip())


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def print_result(result: ComparisonResult, summary: str) -> None:
    """Print a comparison's table and findings."""
    from xatlas.run.compare import describe

    echo(f"\n{result.name}: {summary}\n")
    print_table(result.table)
    for item in result.findings:
        echo(f"  {item.verdict}: {describe(item)}")


def command_line(*words: str) -> str:
    """Return words as a shell takes them."""
    return shlex.join(words)


def job_rows(report: CompareReport, store: Store) -> list[dict[str, Any]]:
    """Return the jobs whose results are there as rows: what was measured, and where it is kept."""
    fresh = {step.job.key for step in report.run.measured}
    return [
        {
            "model": step.job.model,
            "probe": step.job.probe,
            "state": "measured" if step.job.key in fresh else "was there",
            "file": str(store.file(step.job)),
            "key": step.job.key,
        }
        for step in report.plan.steps
        if store.state(step.job) == "done"
    ]


def report_record(report: CompareReport, store: Store) -> dict[str, Any]:
    """Return everything that a comparison gave, for programs."""
    suite = report.plan.config.suite
    return {
        "suite": {"name": suite.name, "hash": suite.hash, "prompts": len(suite)},
        "jobs": job_rows(report, store),
        "comparisons": {
            result.name: {
                "table": result.table,
                "findings": [asdict(item) for item in result.findings],
                "files": result.files,
            }
            for result in report.results
        },
        "failures": [str(failure) for failure in report.failures],
    }


def print_report(report: CompareReport, out: Path) -> None:
    """Print tables and findings, what they rest on, where they are, and how to go on."""
    from xatlas import manager
    from xatlas.api import ATLAS, FIGURES
    from xatlas.config import larger_suite

    for result in report.results:
        print_result(result, manager.comparisons()[result.name].summary)
    if not report.results:
        return
    suite = report.plan.config.suite
    echo(f"\n{rests_on(report.plan.config)}.")
    if not report.run.measured and all(result.reused for result in report.results):
        echo("Nothing has changed: all of it was there.")
    echo(f"Results are in {out / ATLAS}, figures and their data in {out / FIGURES}.")
    larger = larger_suite(suite)
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


def rests_on(config: MeasureConfig) -> str:
    """Return which prompts the numbers rest on."""
    suite = config.suite
    return f"Suite '{suite.name}': {len(suite)} prompts of {len(suite.families)} families"
