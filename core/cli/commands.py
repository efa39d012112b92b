"""The commands that measure, and the app that all commands belong to. A command imports what is heavy when it runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas import __version__
from xatlas.cli import lists, options, steering
from xatlas.cli.options import SHORT
from xatlas.cli.output import (
    FAILED,
    INTERRUPTED,
    Verbose,
    echo,
    job_rows,
    listen,
    print_json,
    print_report,
    print_table,
    report_record,
    rests_on,
    say,
    told,
    traceback_hint,
)
from xatlas.errors import XatlasError
from xatlas.guard import keep_stdout_for_results
from xatlas.text import split_names

if TYPE_CHECKING:
    from xatlas.run.reporting import Failure

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
    listen(verbose)


@app.command(context_settings=SHORT)
@told
@options.configured()
def compare(
    context: typer.Context,
    models: options.Models,
    comparisons: options.Comparisons = None,
    probes: options.MoreProbes = None,
    *,
    out: options.Out = Path("."),
    set_: options.Set = None,
    refresh: options.Refresh = False,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Measure what comparisons need of several models, compare, and draw the figures."""
    from xatlas import api

    asked = _asked(context, _names(comparisons) or None, _names(probes), set_)
    report = api.compare(_names(models), out=out, reporter="console", refresh=refresh, **asked, **config)
    if as_json:
        print_json(report_record(report, api.store_in(out)))
    else:
        print_report(report, out)
    _end(report.failures)


@app.command(context_settings=SHORT)
@told
@options.configured()
def run(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Name or path of a model; several comma-separated.",
            autocompletion=options.complete("models"),
        ),
    ],
    probes: options.Probes = None,
    *,
    out: options.Out = Path("."),
    set_: options.Set = None,
    refresh: options.Refresh = False,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Measure one model with probes; what the atlas holds is not measured again."""
    from xatlas import api, manager

    if model.startswith("-"):
        raise XatlasError(f"'{model}' stands where the model's name belongs: write xatlas run MODEL, then options.")
    asked = _asked(context, (), _names(probes) or list(manager.probes()), set_)
    report = api.compare(split_names(model), out=out, reporter="console", refresh=refresh, **asked, **config)
    rows = job_rows(report, api.store_in(out))
    if as_json:
        print_json({"jobs": rows, "failures": [str(failure) for failure in report.failures]})
    elif rows:
        print_table([{name: cell for name, cell in row.items() if name != "key"} for row in rows])
    _end(report.failures)


@app.command(context_settings=SHORT)
@told
@options.configured()
def plan(
    context: typer.Context,
    models: options.Models,
    probes: options.Probes = None,
    comparisons: options.Comparisons = None,
    *,
    out: options.Out = Path("."),
    set_: options.Set = None,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """List the jobs that compare (or run, with --probes) would do, with estimated minutes and memory."""
    from xatlas import api
    from xatlas.run.plan import estimate

    store = api.store_in(out)
    asked = _asked(context, () if probes and not comparisons else _names(comparisons) or None, _names(probes), set_)
    planned = api.plan(_names(models), fetch="config", **asked, **config)
    rows = []
    for step in planned.steps:
        held = store.state(step.job) == "done"
        minutes, gigabytes = estimate(step, planned.config)
        here = bool(step.model.weights_hash)  # else the config alone is, and no key can be known
        row = {"model": step.job.model, "probe": step.job.probe, "key": step.job.key if here else None}
        state = "done" if held else "to do" if here else "needs download"
        rows.append({**row, "state": state, "minutes": 0.0 if held else round(minutes, 2), "GB": gigabytes})
    if as_json:
        print_json(rows)
        return
    print_table(rows)
    total = sum(row["minutes"] for row in rows if isinstance(row["minutes"], float))
    echo(f"\n{rests_on(planned.config)}; about {total:.1f} min on this processor, less on a GPU.")


def _names(given: Sequence[str] | None) -> list[str]:
    return [name for text in given or () for name in split_names(text)]


def _asked(
    context: typer.Context, comparisons: Sequence[str] | None, probes: list[str], texts: Sequence[str] | None
) -> dict[str, Any]:
    """Return what is asked for, as :mod:`xatlas.api` takes it: comparisons, probes, and the parameters of both."""
    from xatlas import manager
    from xatlas.run.plan import pick_comparisons

    names = pick_comparisons(comparisons)
    required = [needed.probe for name in names for needed in manager.comparisons()[name]().requires]
    measured = list(dict.fromkeys(required + probes)) or list(manager.probes())
    parameters = options.parameters(context, texts or (), measured, names)
    return {"comparisons": names, "probes": probes, "parameters": parameters}


def _end(failures: Sequence[Failure]) -> None:
    """Name what failed, and leave with its exit code."""
    if failures:
        named = "; ".join(failure.what for failure in failures)
        say(f"{len(failures)} failed: {named}. The rest is kept.{traceback_hint()}")
        raise typer.Exit(FAILED)


steering.add_to(app)
lists.add_to(app)


def main() -> None:
    """Run the command line."""
    # Standard error is for this program's own words; a wish of the user's goes before.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding lacks is escaped, never a crash
            stream.reconfigure(errors="backslashreplace")
    keep_stdout_for_results()
    try:
        app()
    except KeyboardInterrupt:  # before a command had begun
        raise SystemExit(INTERRUPTED) from None
