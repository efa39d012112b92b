"""Words, tables and bars of the command line: results on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from xatlas.run.comparing import Compared
    from xatlas.run.outcome import Failure
    from xatlas.run.plan import Step

P = ParamSpec("P")
R = TypeVar("R")

USAGE, FAILED, INTERRUPTED = 2, 1, 130


def told(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a user's mistake into one line on stderr and an exit code; no traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except XatlasError as error:
            say(str(error))
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            say("interrupted. What was finished is kept: the same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None

    return wrapper


def say(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(f"xatlas: {' '.join(text.split())}", err=True)


def listen(verbose: bool) -> None:
    """Send what the package logs to stderr, a line each; with tracebacks when ``verbose``."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if verbose and record.exc_info:
                typer.echo(logging.Formatter().formatException(record.exc_info), err=True)
            say(record.getMessage())

    logger = logging.getLogger("xatlas")
    logger.handlers = [Lines()]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


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

    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under their column names, aligned; numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(isinstance(row.get(name), int | float) for row in rows) for name in columns]

    def line(texts: Iterable[str]) -> str:
        parts = zip(texts, widths, numeric, strict=True)
        return "  ".join(text.rjust(w) if right else text.ljust(w) for text, w, right in parts).rstrip()

    for texts in (columns, ["-" * width for width in widths], *cells):
        typer.echo(line(texts))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return str(value)


def print_result(result: Compared, summary: str) -> None:
    """Print a comparison's table and findings."""
    typer.echo(f"\n{result.name}: {summary}\n")
    print_table(result.table)
    for item in result.findings:
        p = "" if item.p_adjusted is None else f" (p = {item.p_adjusted:.2g} after Holm)"
        typer.echo(f"  {item.verdict}: {item.sentence}{p}")


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
        text = f"{self.title}  {bar} {share:4.0%}  {label}  {left:.0f} s left"
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
