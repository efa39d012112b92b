"""The app that all commands belong to: ``-v``, and errors that are one line on stderr and an exit code."""

from __future__ import annotations

import functools
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from xatlas import __version__
from xatlas.cli.output import echo
from xatlas.errors import XatlasError
from xatlas.manager import keep_stdout_for_results
from xatlas.text import printable, say_on_stderr

USAGE, FAILED, INTERRUPTED = 2, 1, 130

log = logging.getLogger("xatlas")

Command = Callable[..., None]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more, tracebacks included.")]

app = typer.Typer(
    name="xatlas",
    help="Where does behaviour live in this language model, and is it in the same place in that one?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        echo(f"xatlas {__version__}")
        raise typer.Exit


@app.callback()
def start(
    verbose: Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure where behaviour lives in language models, and compare."""
    _log_to_stderr(verbose)


class StderrHandler(logging.Handler):
    """Writes what the package logs to stderr, a line each; with tracebacks when ``verbose``."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose
        self.hidden = False  # whether the traceback of a fault was left out

    def emit(self, record: logging.LogRecord) -> None:
        """Write, or note that there was more to write."""
        if self.verbose and record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            typer.echo(printable(trace), file=sys.stderr, err=True)
        elif record.exc_info and not isinstance(record.exc_info[1], XatlasError):
            self.hidden = True
        if self.verbose or record.levelno >= logging.WARNING:
            say_on_stderr(record.getMessage())


def _log_to_stderr(verbose: bool) -> None:
    log.handlers = [StderrHandler(verbose)]
    log.propagate = False
    log.setLevel(logging.DEBUG)


def end(text: str, code: int) -> typer.Exit:
    """Write one line to stderr, and return the exception that leaves with an exit code."""
    hidden = any(getattr(each, "hidden", False) for each in log.handlers)
    say_on_stderr(text + (" (-v shows the traceback)" if hidden else ""))
    return typer.Exit(code)


def command(group: typer.Typer = app, **settings: Any) -> Callable[[Command], Command]:
    """Add a function to a group of commands, as :func:`reports_errors` makes it."""
    return lambda function: group.command(**settings)(reports_errors(function))


def reports_errors(function: Command) -> Command:
    """Give a command ``-v``, and turn what goes wrong into one line on stderr and an exit code."""

    @functools.wraps(function)
    def wrapper(*args: Any, verbose: bool = False, **kwargs: Any) -> None:
        if verbose:
            _log_to_stderr(True)
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except XatlasError as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, XatlasError | OSError | ValueError):
                log.debug("the command failed", exc_info=cause)
            raise end(str(error), USAGE) from None
        except KeyboardInterrupt:
            text = "interrupted. What was finished is kept: the same command goes on from there."
            raise end(text, INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except Exception as error:  # a fault of ours or of a plugin's
            log.debug("the command failed", exc_info=True)
            raise end(f"{type(error).__name__}: {error}", FAILED) from None

    signature = inspect.signature(function, eval_str=True)
    more = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    vars(wrapper)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), more])
    return wrapper


def main() -> None:
    """Run the command line."""
    # Standard error is for this program's own messages; a wish of the user's goes before.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Threads that spin for long while they wait take the cores that those they wait for need, where something else runs
    # beside: GNU's OpenMP, which torch is built with, is told to sleep soon.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding lacks is escaped, never a crash
            stream.reconfigure(errors="backslashreplace")
    keep_stdout_for_results()
    try:
        app()
    except KeyboardInterrupt:  # before a command had begun
        raise SystemExit(INTERRUPTED) from None
