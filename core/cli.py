"""The command line: nothing but words and progress bars. Heavy things are imported when a command runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas import cli_lists, cli_options, cli_steer
from xatlas.cli_words import (
    FAILED,
    INTERRUPTED,
    Bars,
    command_line,
    listen,
    print_json,
    print_result,
    print_table,
    say,
    told,
)

if TYPE_CHECKING:
    from xatlas.comparing import Comparing
    from xatlas.outcome import Failure
    from xatlas.plan import Settings, Step
    from xatlas.resolve import Resolved

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
        from xatlas import __version__

        typer.echo(f"xatlas {__version__}")
        raise typer.Exit


@app.callback()
def start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more, tracebacks included.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure where behaviour lives in language models, and compare."""
    listen(verbose)


@app.command()
@told
def compare(
    models: cli_options.Models,
    comparisons: cli_options.Comparisons = "",
    probes: cli_options.MoreProbes = "",
    suite: cli_options.SuiteName = "",
    reference: cli_options.Reference = "",
    out: cli_options.Out = Path("."),
    set_: cli_options.Set = None,
    draws: cli_options.Draws = 1,
    seed: cli_options.Seed = 0,
    device: cli_options.Device = "auto",
    dtype: cli_options.Dtype = "float32",
    bos: cli_options.Bos = "always",
    attention: cli_options.Attention = "sdpa",
    chat_template: cli_options.ChatTemplate = False,
    as_json: cli_options.Json = False,
) -> None:
    """Measure what comparisons need of several models, compare, and draw the figures."""
    from xatlas.api import ATLAS, FIGURES, make_settings, resolve_all
    from xatlas.comparing import compare as compare_models
    from xatlas.comparing import pick_comparisons, plan_comparison
    from xatlas.store import Store

    settings = make_settings(
        suite, reference, parameters=_parameters(set_), draws=draws, seed=seed, device=device,
        dtype=dtype, bos=bos, attention=attention, chat_template=chat_template,
    )  # fmt: skip
    chosen = pick_comparisons(_names(comparisons))
    named = resolve_all(_names(models))
    store = Store(out / ATLAS)
    steps = plan_comparison(named, chosen, settings, _names(probes))
    bars = Bars(sum(store.state(step.job) != "done" for step in steps))
    done = compare_models(named, chosen, settings, store, out / FIGURES, bars, _names(probes))
    if as_json:
        print_json(_comparing_record(done, steps, settings, store))
    else:
        _print_comparing(done, settings, out)
    _end(done.failures)


@app.command()
@told
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="Name or path of a model; several comma-separated.",
            autocompletion=cli_options.complete("models"),
        ),
    ],
    probes: cli_options.Probes = "",
    suite: cli_options.SuiteName = "",
    reference: cli_options.Reference = "",
    out: cli_options.Out = Path("."),
    set_: cli_options.Set = None,
    draws: cli_options.Draws = 1,
    seed: cli_options.Seed = 0,
    device: cli_options.Device = "auto",
    dtype: cli_options.Dtype = "float32",
    bos: cli_options.Bos = "always",
    attention: cli_options.Attention = "sdpa",
    chat_template: cli_options.ChatTemplate = False,
    as_json: cli_options.Json = False,
) -> None:
    """Measure one model with probes; what the atlas holds is not measured again."""
    from xatlas.api import ATLAS, make_settings, resolve_all
    from xatlas.run import run as run_steps
    from xatlas.store import Store

    settings = make_settings(
        suite, reference, parameters=_parameters(set_), draws=draws, seed=seed, device=device,
        dtype=dtype, bos=bos, attention=attention, chat_template=chat_template,
    )  # fmt: skip
    store = Store(out / ATLAS)
    steps = _steps(resolve_all(_names(model)), _names(probes), settings)
    done = run_steps(steps, store, settings, Bars(sum(store.state(step.job) != "done" for step in steps)))
    rows = [_step_row(step, store, step in done.measured) for step in steps if store.state(step.job) == "done"]
    if as_json:
        print_json({"jobs": rows, "failures": [str(failure) for failure in done.failures]})
    elif rows:
        print_table(rows)
    _end(done.failures)


@app.command()
@told
def plan(
    models: cli_options.Models,
    probes: cli_options.Probes = "",
    comparisons: cli_options.Comparisons = "",
    suite: cli_options.SuiteName = "",
    reference: cli_options.Reference = "",
    out: cli_options.Out = Path("."),
    set_: cli_options.Set = None,
    draws: cli_options.Draws = 1,
    seed: cli_options.Seed = 0,
    device: cli_options.Device = "auto",
    dtype: cli_options.Dtype = "float32",
    bos: cli_options.Bos = "always",
    attention: cli_options.Attention = "sdpa",
    chat_template: cli_options.ChatTemplate = False,
    as_json: cli_options.Json = False,
) -> None:
    """List the jobs that compare (or run, with --probes) would do, with estimated minutes and memory."""
    from xatlas.api import ATLAS, make_settings, resolve_all
    from xatlas.comparing import pick_comparisons, plan_comparison
    from xatlas.estimate import estimate
    from xatlas.store import Store

    settings = make_settings(
        suite, reference, parameters=_parameters(set_), draws=draws, seed=seed, device=device,
        dtype=dtype, bos=bos, attention=attention, chat_template=chat_template,
    )  # fmt: skip
    named = resolve_all(_names(models), hub=False)
    if probes:
        steps = _steps(named, _names(probes), settings)
    else:
        steps = plan_comparison(named, pick_comparisons(_names(comparisons)), settings)
    store = Store(out / ATLAS)
    rows = []
    for step in steps:
        held = store.state(step.job) == "done"
        cost = estimate(step, settings)
        row = {"model": step.job.model, "probe": step.job.probe, "key": step.job.key}
        minutes = 0.0 if held else round(cost.minutes, 2)
        rows.append({**row, "state": "done" if held else "to do", "minutes": minutes, "GB": cost.gigabytes})
    if as_json:
        print_json(rows)
        return
    print_table(rows)
    total = sum(row["minutes"] for row in rows if isinstance(row["minutes"], float))
    typer.echo(f"\n{_rests_on(settings)}; about {total:.1f} min on this processor, less on a GPU.")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parameters(texts: list[str] | None) -> dict[str, dict[str, str]]:
    from xatlas.plan import parse_parameters

    return parse_parameters(texts or [])


def _steps(models: Sequence[Resolved], probes: Sequence[str], settings: Settings) -> list[Step]:
    from xatlas import manager
    from xatlas.plan import steps_for
    from xatlas.probe import Requirement

    wanted = [Requirement(name) for name in (probes or manager.probes())]
    return [step for model in models for step in steps_for(model, wanted, settings)]


def _step_row(step: Step, store: Any, fresh: bool) -> dict[str, Any]:
    return {
        "model": step.job.model,
        "probe": step.job.probe,
        "state": "measured" if fresh else "was there",
        "file": str(store.file(step.job)),
    }


def _comparing_record(done: Comparing, steps: Sequence[Step], settings: Settings, store: Any) -> dict[str, Any]:
    from dataclasses import asdict

    fresh = {step.job.key for step in done.outcome.measured}
    return {
        "suite": {"name": settings.suite.name, "hash": settings.suite.hash, "prompts": len(settings.suite)},
        "jobs": [_step_row(step, store, step.job.key in fresh) | {"key": step.job.key} for step in steps],
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


def _print_comparing(done: Comparing, settings: Settings, out: Path) -> None:
    from xatlas import manager
    from xatlas.api import ATLAS, FIGURES
    from xatlas.plan import larger_suite

    for result in done.results:
        print_result(result, manager.comparisons()[result.name].summary)
    if not done.results:
        return
    typer.echo(f"\n{_rests_on(settings)}.")
    if not done.outcome.measured and all(result.reused for result in done.results):
        typer.echo("Nothing has changed: all of it was there.")
    typer.echo(f"Results are in {out / ATLAS}, figures and their data in {out / FIGURES}.")
    larger = larger_suite(settings.suite)
    if larger is not None:
        typer.echo(f"On suite '{larger.name}' ({len(larger)} prompts): {_again('--suite', larger.name)}")


def _again(option: str, value: str) -> str:
    """Return the command that was given, with one option more or another value of it."""
    import sys

    words: list[str] = []
    given = iter(sys.argv[1:])
    for word in given:
        if word == option:
            next(given, None)
        elif not word.startswith(f"{option}="):
            words.append(word)
    return command_line("xatlas", *words, option, value)


def _rests_on(settings: Settings) -> str:
    suite = settings.suite
    return f"Suite '{suite.name}': {len(suite)} prompts of {len(suite.families)} families"


def _end(failures: Sequence[Failure]) -> None:
    """Name what failed, and leave with its exit code."""
    if failures:
        say(f"{len(failures)} failed: {'; '.join(failure.what for failure in failures)}. The rest is kept.")
        raise typer.Exit(FAILED)


cli_steer.add_to(app)
cli_lists.add_to(app)


def main() -> None:
    """Run the command line."""
    # Standard error is for this program's own words; a wish of the user's goes before.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except KeyboardInterrupt:  # before a command had begun
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
