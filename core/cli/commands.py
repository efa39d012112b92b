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
from xatlas.cli.options import SHORT, parameters
from xatlas.cli.output import (
    FAILED,
    INTERRUPTED,
    Bars,
    Verbose,
    comparing_record,
    echo,
    listen,
    print_comparing,
    print_json,
    print_table,
    rests_on,
    say,
    step_row,
    told,
    traceback_hint,
)
from xatlas.errors import XatlasError
from xatlas.guard import keep_stdout_for_results
from xatlas.text import split_names

if TYPE_CHECKING:
    from xatlas.config import MeasureConfig
    from xatlas.contracts.comparison import Comparison
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
    from xatlas.api import ATLAS, FIGURES, resolve_all
    from xatlas.results.store import Store
    from xatlas.run.compare import compare as compare_models
    from xatlas.run.compare import plan_comparison

    settings, chosen = _settings(context, config, _names(comparisons))
    named = resolve_all(_names(models))
    store = Store(out / ATLAS)
    steps = plan_comparison(named, chosen, settings, _names(probes))
    with Bars(sum(refresh or store.state(step.job) != "done" for step in steps)) as bars:
        done = compare_models(named, chosen, settings, store, out / FIGURES, bars, _names(probes), refresh=refresh)
    if as_json:
        print_json(comparing_record(done, steps, settings, store))
    else:
        print_comparing(done, settings, out)
    _end(done.failures)


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
    from xatlas import manager
    from xatlas.api import ATLAS, resolve_all
    from xatlas.results.store import Store
    from xatlas.run.compare import plan_comparison
    from xatlas.run.runner import run as run_steps

    if model.startswith("-"):
        raise XatlasError(f"'{model}' stands where the model's name belongs: write xatlas run MODEL, then options.")
    settings, _ = _settings(context, config)
    store = Store(out / ATLAS)
    steps = plan_comparison(resolve_all(split_names(model)), (), settings, _names(probes) or list(manager.probes()))
    with Bars(sum(refresh or store.state(step.job) != "done" for step in steps)) as bars:
        done = run_steps(steps, store, settings, bars, refresh=refresh)
    rows = [step_row(step, store, step in done.measured) for step in steps if store.state(step.job) == "done"]
    if as_json:
        print_json({"jobs": rows, "failures": [str(failure) for failure in done.failures]})
    elif rows:
        print_table(rows)
    _end(done.failures)


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
    from xatlas.api import ATLAS, resolve_all
    from xatlas.results.store import Store
    from xatlas.run.compare import plan_comparison
    from xatlas.run.estimate import estimate

    settings, chosen = _settings(context, config, None if probes and not comparisons else _names(comparisons))
    named = resolve_all(_names(models), fetch="config")
    steps = plan_comparison(named, chosen, settings, _names(probes))
    store = Store(out / ATLAS)
    rows = []
    for step in steps:
        held = store.state(step.job) == "done"
        cost = estimate(step, settings)
        here = bool(step.model.weights_hash)  # else the config alone is, and no key can be known
        row = {"model": step.job.model, "probe": step.job.probe, "key": step.job.key if here else None}
        minutes = 0.0 if held else round(cost.minutes, 2)
        state = "done" if held else "to do" if here else "needs download"
        rows.append({**row, "state": state, "minutes": minutes, "GB": cost.gigabytes})
    if as_json:
        print_json(rows)
        return
    print_table(rows)
    total = sum(row["minutes"] for row in rows if isinstance(row["minutes"], float))
    echo(f"\n{rests_on(settings)}; about {total:.1f} min on this processor, less on a GPU.")


def _names(given: Sequence[str] | None) -> list[str]:
    return [name for text in given or () for name in split_names(text)]


def _settings(
    context: typer.Context, config: dict[str, Any], comparisons: Sequence[str] | None = None
) -> tuple[MeasureConfig, list[Comparison]]:
    """Return what the options that ``compare``, ``run`` and ``plan`` share come to, and the comparisons.

    Without names of comparisons those made by default are taken; with None, none is.
    """
    from xatlas import manager
    from xatlas.config import MeasureConfig
    from xatlas.run.compare import part_parameters, pick_comparisons

    given = context.params
    if os.path.exists(given["out"]) and not os.path.isdir(given["out"]):
        raise XatlasError(f"{given['out']} is not a folder: choose another one with --out.")
    chosen = [] if comparisons is None else pick_comparisons(comparisons)
    names = [comparison.name for comparison in chosen]
    probes = [needed.probe for comparison in chosen for needed in comparison.requires] + _names(given["probes"])
    texts = parameters(context, given["set_"], list(dict.fromkeys(probes)) or list(manager.probes()), names)
    of_probes, of_comparisons = part_parameters(texts, names)
    settings = MeasureConfig.make(parameters=of_probes, **config)
    return settings, pick_comparisons(names, of_comparisons) if names else []


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
