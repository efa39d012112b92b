"""What the commands tell when they are done: rows, tables, records for programs."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from xatlas.errors import XatlasError
from xatlas.text import one_line, printable

if TYPE_CHECKING:
    from xatlas.config import MeasureConfig
    from xatlas.results.store import Store
    from xatlas.run.compare import Compared, Comparing
    from xatlas.run.plan import Step
    from xatlas.run.reporting import Failure


R = TypeVar("R")

USAGE, FAILED, INTERRUPTED = 2, 1, 130


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


def echo(text: str = "", *, err: bool = False) -> None:
    """Print text, safe for terminals."""
    typer.echo(printable(text), err=err)


def say(text: str) -> None:
    """Write one line to stderr."""
    echo(f"xatlas: {one_line(text)}", err=True)


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
            echo(logging.Formatter().formatException(record.exc_info), err=True)
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

    def plain(item: Any) -> Any:
        if isinstance(item, float) and item - item != 0:
            return None
        if isinstance(item, Mapping):
            return {str(name): plain(inner) for name, inner in item.items()}
        if isinstance(item, list | tuple):
            return [plain(inner) for inner in item]
        return item if isinstance(item, str | int | float | bool | None) else str(item)

    narrow = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8"
    text = json.dumps(plain(value), indent=2, ensure_ascii=narrow, allow_nan=False)
    # What a terminal would obey is escaped as JSON does it: programs read the same text.
    typer.echo("".join(mark if printable(mark) == mark else f"\\u{ord(mark):04x}" for mark in text))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under their column names, aligned; numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    heads = [_cell(name) for name in columns]
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [all(isinstance(row.get(name), int | float) for row in rows) for name in columns]

    def line(texts: Iterable[str]) -> str:
        parts = zip(texts, widths, numeric, strict=True)
        return "  ".join(text.rjust(w) if right else text.ljust(w) for text, w, right in parts).rstrip()

    for texts in (heads, ["-" * width for width in widths], *cells):
        echo(line(texts))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def print_result(result: Compared, summary: str) -> None:
    """Print a comparison's table and findings."""
    echo(f"\n{result.name}: {summary}\n")
    print_table(result.table)
    for item in result.findings:
        p = "" if item.p_adjusted is None else f" (p = {item.p_adjusted:.2g} after Holm)"
        echo(f"  {item.verdict}: {one_line(item.sentence)}{p}")


def command_line(*words: str) -> str:
    """Return words as a shell takes them."""
    return shlex.join(words)


class Bars:
    """Draws how a run goes: a bar on a terminal, a line per job elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self.title = ""
        self.live = sys.stderr.isatty()
        self.started = 0.0
        self.drawn = 0.0

    def loading(self, model: str) -> None:
        """A model is being loaded."""
        self._line(f"loading {model}")

    def start(self, step: Step) -> None:
        """A measurement begins."""
        self.number += 1
        self.title = f"[{self.number}/{self.total}] {step}"
        self.started = self.drawn = time.monotonic()
        if not self.live:
            say(self.title)

    def progress(self, label: str, done: int, total: int) -> None:
        """Part of it is done: redraw, ten times a second at most."""
        now = time.monotonic()
        if not self.live or total <= 0 or (now - self.drawn < 0.1 and done < total):
            return
        self.drawn = now
        share = min(done / total, 1.0)
        left = (now - self.started) * (1 - share) / share if share else 0.0
        bar = "█" * round(24 * share) + "░" * (24 - round(24 * share))
        text = f"{one_line(self.title)}  {bar} {share:4.0%}  {one_line(label)}  {left:.0f} s left"
        sys.stderr.write(f"\r\x1b[K{text[: os.get_terminal_size(2).columns - 1]}")
        sys.stderr.flush()

    def finish(self, step: Step, seconds: float) -> None:
        """It is done and kept."""
        self._line(f"[{self.number}/{self.total}] {step}: {seconds:.1f} s")

    def fail(self, failure: Failure) -> None:
        """It failed; the others go on."""
        self._line(f"failed: {failure}")

    def _line(self, text: str) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
        say(text)


def step_row(step: Step, store: Store, fresh: bool) -> dict[str, Any]:
    """Return a job as a row: what was measured, and where it is kept."""
    return {
        "model": step.job.model,
        "probe": step.job.probe,
        "state": "measured" if fresh else "was there",
        "file": str(store.file(step.job)),
    }


def comparing_record(done: Comparing, steps: Sequence[Step], settings: MeasureConfig, store: Store) -> dict[str, Any]:
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


def print_comparing(done: Comparing, settings: MeasureConfig, out: Path) -> None:
    """Print tables and findings, what they rest on, where they are, and how to go on."""
    from xatlas import manager
    from xatlas.api import ATLAS, FIGURES
    from xatlas.config import larger_suite

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


def rests_on(settings: MeasureConfig) -> str:
    """Return which prompts the numbers rest on."""
    suite = settings.suite
    return f"Suite '{suite.name}': {len(suite)} prompts of {len(suite.families)} families"
