"""The commands that measure, compare and draw. A command imports what is heavy when it runs."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas import manager
from xatlas.cli import options
from xatlas.cli.app import FAILED, command, end
from xatlas.cli.output import echo, fitting, print_json, print_table, summarised, wrapped
from xatlas.errors import XatlasError
from xatlas.text import say_on_stderr, split_names

if TYPE_CHECKING:
    from xatlas.run.reporting import Failure, Report
    from xatlas.suites import Suite


@command(context_settings=options.SHORT)
@options.configured()
def compare(
    context: typer.Context,
    models: options.Models,
    comparisons: options.Comparisons = None,
    probes: options.MoreProbes = None,
    *,
    null: options.Null = None,
    out: options.Out = Path("."),
    set_: options.Set = None,
    minutes: options.Minutes = None,
    refresh: options.Refresh = False,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Measure what comparisons need of several models, compare, and draw the figures."""
    from xatlas import api

    asked = _asked(context, _names(comparisons) or None, _names(probes), set_)
    asked |= {"null": null, "minutes": minutes, "refresh": refresh}
    report = api.compare(_names(models), out=out, reporter="console", **asked, **config)
    if as_json:
        suite = report.plan.config.suite
        record = {
            "suite": {"name": suite.name, "hash": suite.hash, "prompts": len(suite)},
            "jobs": _jobs(report, out),
            "comparisons": {each.name: {"findings": each.findings, "files": each.files} for each in report.results},
            "failures": list(map(str, report.failures)),
        }
        print_json(record)
    else:
        _print_results(report, out)
    _end(report.failures)


@command(context_settings=options.SHORT)
@options.configured()
def run(
    context: typer.Context,
    model: Annotated[str, options.argument("Name or path of a model; several comma-separated.", "model")],
    probes: options.Probes = None,
    *,
    out: options.Out = Path("."),
    set_: options.Set = None,
    minutes: options.Minutes = None,
    refresh: options.Refresh = False,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Measure one model with probes; what the atlas holds is not measured again."""
    from xatlas import api

    if model.startswith("-"):
        raise XatlasError(f"'{model}' stands where the model's name belongs: write xatlas run MODEL, then options.")
    asked = _asked(context, (), _names(probes) or _usual_probes(), set_)
    asked |= {"minutes": minutes, "refresh": refresh}
    report = api.compare(split_names(model), out=out, reporter="console", **asked, **config)
    rows = _jobs(report, out)
    if as_json:
        print_json({"jobs": rows, "failures": list(map(str, report.failures))})
    else:
        print_table([{name: cell for name, cell in row.items() if name != "key"} for row in rows])
        for step in report.measured + report.reused:
            echo(f"\n{step.job.probe} of {step.job.model}")
            print_table(fitting(summarised(api.store_in(out).read(step.job)))[0])
    _end(report.failures)


@command(context_settings=options.SHORT)
@options.configured()
def plan(
    context: typer.Context,
    models: options.Models,
    probes: options.Probes = None,
    comparisons: options.Comparisons = None,
    *,
    null: options.Null = None,
    out: options.Out = Path("."),
    set_: options.Set = None,
    minutes: options.Minutes = None,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """List the jobs that compare (or run, with --probes) would do, with estimated minutes and memory."""
    from xatlas import api
    from xatlas.run.cost import estimate, training

    store = api.store_in(out)
    asked = _asked(context, () if probes and not comparisons else _names(comparisons) or None, _names(probes), set_)
    planned = api.plan(_names(models), null=null, fetch="config", minutes=minutes, store=store, **asked, **config)
    rows, total, left = [], 0.0, []
    for step in planned.steps:
        done = store.state(step.job) == "done"
        minutes, gigabytes = estimate(step, planned.config)
        minutes = 0.0 if done else round(minutes, 2)
        total += 0.0 if math.isnan(minutes) else minutes
        left += [] if done else [step]
        here = bool(step.model.weights_hash)  # else the config alone is, and no key can be known
        row = {"model": step.job.model, "probe": step.job.probe, "key": step.job.key if here else None}
        state = "done" if done else "to do" if here else "needs download"
        rows.append({**row, "state": state, "minutes": minutes, "GB": gigabytes})
    if as_json:
        print_json(rows)
        return
    print_table(rows)
    runs = training(left)
    besides = f", and {runs}" if runs else ""
    echo(f"\n{_described(planned.config.suite)}; about {total:.1f} min on this machine{besides}.")


#: Findings of one comparison that are printed; of others it is said how many there are.
_FINDINGS = 40


@command()
def figures(
    path: Annotated[Path, typer.Argument(help="A folder that holds figures/, that folder, or a figure's .nc.")] = Path(
        "."
    ),
    comparisons: Annotated[
        list[str] | None,
        options.several("Comparisons, comma-separated; all that are stored when left out.", "comparison"),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMATS", help="png, svg and pdf, comma-separated.")
    ] = "pdf",
    width: Annotated[
        str, typer.Option(metavar="column|page|INCHES", help="Width of the figures: 3.4 in, 7.0 in, or inches.")
    ] = "page",
    *,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("paper"),
) -> None:
    """Draw figures again from the data stored beside them, as wide as a paper wants them; nothing is measured."""
    from xatlas.drawing import draw

    written, failures = draw(path, out, _names(comparisons), split_names(format_), width)
    for file in written:
        echo(str(file))
    for failure in failures:
        say_on_stderr(failure)
    if failures:
        raise end(f"{len(failures)} of the figures could not be drawn.", FAILED)


def _usual_probes() -> list[str]:
    """Return the probes that are measured when none is named: training and tests of capability take long."""
    return [name for name, probe in manager.probes().items() if not probe.mutates and probe.measures_on != "tests"]


def _names(texts: Sequence[str] | None) -> list[str]:
    return [name for text in texts or () for name in split_names(text)]


def _asked(
    context: typer.Context, comparisons: Sequence[str] | None, probes: list[str], texts: Sequence[str] | None
) -> dict[str, Any]:
    """Return what is asked for, as :mod:`xatlas.api` takes it: comparisons, probes, and the parameters of both."""
    from xatlas.run.plan import pick_comparisons

    names = pick_comparisons(comparisons)
    required = [needed.probe for name in names for needed in manager.comparisons()[name]().requires]
    measured = list(dict.fromkeys(required + probes)) or _usual_probes()
    parameters = options.parameters(context, texts or (), measured, names)
    return {"comparisons": names, "probes": probes, "parameters": parameters}


def _jobs(report: Report, out: Path) -> list[dict[str, Any]]:
    from xatlas import api

    store, measured = api.store_in(out), {step.job.key for step in report.measured}
    return [
        {
            "model": step.job.model,
            "probe": step.job.probe,
            "state": "measured" if step.job.key in measured else "was there",
            "file": str(store.file(step.job)),
            "key": step.job.key,
        }
        for step in report.plan.steps
        if store.state(step.job) == "done"
    ]


def _print_results(report: Report, out: Path) -> None:
    from xatlas.api import ATLAS, FIGURES
    from xatlas.config import larger_suite
    from xatlas.findings.sentences import closing, ranked
    from xatlas.run.reporting import describe, judged

    found = [item for result in report.results for item in result.findings]
    reason, count = Counter(item.reason for item in found).most_common(1)[0] if found else ("", 0)
    said = reason if 2 * count > len(found) else ""  # what holds for most is said once, at the end
    for result in report.results:
        echo("\n" + wrapped(f"{result.name}: {manager.comparisons()[result.name].summary}") + "\n")
        rows, others = fitting(result.table)
        print_table(rows)
        if others:
            echo(f"(in the CSV: {', '.join(others)})")
        for item in ranked(result.findings)[:_FINDINGS]:
            echo(wrapped(f"{judged(item, said)}: {describe(item)}", "  ", "    "))
        if len(result.findings) > _FINDINGS:
            echo(f"  … and {len(result.findings) - _FINDINGS} more, which --json prints")
    if not report.results:
        return
    shown = [model.slug for model in report.plan.models]
    echo("\n" + "\n".join(wrapped(line, rest="  ") for line in closing(found, shown).split("\n")))
    suite = report.plan.config.suite
    read = any(manager.probes()[step.job.probe].measures_on == "suite" for step in report.plan.steps)
    echo("\n" + (f"{_described(suite)}. " if read else "") + "In brackets: 95 % intervals.")
    if read:
        echo("Operator: what a layer does before its MLP (attention, convolution). Family: a kind of task;")
        echo("template: one of its wordings; most intervals are over templates.")
    columns = {name for result in report.results for row in result.table for name, cell in row.items() if cell != "–"}
    if "control" in columns:
        echo("Control: what a random change of equal size does there, or chance.")
    if "sensitivity" in columns:
        echo("Sensitivity: how many other settings give the same answer, and what changes it: 2/5: layer 0 means")
        echo("2 of 5, and not without layer 0; robust: all, numbers inside the interval; same: all, other sizes.")
    if found:
        echo("p: adjusted (Holm) for the claims of one comparison about the same model or pair.")
        if any(item.descriptive for item in found):
            echo("Numbers of what was chosen by looking (the largest, the five strongest) are cross-fitted: chosen on")
            echo("half of the templates, measured on the other half; curves and maps in figures show all templates.")
        asked = report.results[0].name
        echo(f"How a claim is judged: xatlas explain verdicts; what is asked: xatlas explain {asked}, for one.")
    if not report.measured and all(result.reused for result in report.results):
        echo("Nothing has changed: all of it was there.")
    echo(f"Results are in {out / ATLAS}, figures and their data in {out / FIGURES}.")
    larger = larger_suite(suite) if read else None
    if larger is not None:
        echo(f"On suite '{larger.name}' ({len(larger)} prompts): {_again('--suite', larger.name)}")


def _again(option: str, value: str) -> str:
    """Return the command that was given, with one option more or another value of it, and no end of minutes."""
    words, replaced = ["xatlas"], (option, "--minutes")
    rest = iter(sys.argv[1:])
    for word in rest:
        if word in replaced:
            next(rest, None)
        elif word.partition("=")[0] not in replaced:
            words.append(word)
    return shlex.join([*words, option, value])


def _described(suite: Suite) -> str:
    return f"Suite '{suite.name}': {len(suite)} prompts of {len(suite.families)} families"


def _end(failures: Sequence[Failure]) -> None:
    if failures:
        names = "; ".join(failure.what for failure in failures)
        raise end(f"{len(failures)} failed: {names}. The rest is kept.", FAILED)
