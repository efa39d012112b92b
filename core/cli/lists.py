"""Commands that list, explain and show what there is: rows are collected, then printed as a table or JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas import manager
from xatlas.cli import options
from xatlas.cli.app import FAILED, app, command, reports_errors
from xatlas.cli.output import Rows, echo, fitting, print_json, print_rows, print_table, summarised
from xatlas.contracts.parameters import as_text
from xatlas.errors import XatlasError, unknown
from xatlas.text import interval, one_line

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.suites import SuiteSpec

#: What can be explained by its name.
_EXPLAINED = ("probe", "comparison", "suite", "architecture")
_ROLES: dict[str | None, str] = {"measure": "to measure on", "reference": "for means and donors"}

models_app = typer.Typer(help="List models by name, or fetch one.", rich_markup_mode=None)
app.add_typer(models_app, name="models", invoke_without_command=True)


@command()
def show(
    path: Annotated[Path, typer.Argument(help="An atlas, its folder, one of its files, or a figure's .nc.")],
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Of a figure's .nc: every finding under every other setting, and which runs the atlas lacks.",
        ),
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Of a result that keeps them: what the model wrote, prompt by prompt.")
    ] = False,
    beside: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --texts: another model's result, side by side.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what an atlas or one of its files holds."""
    from xatlas.results.store import Store, atlas_folder

    if beside is not None and not texts:
        raise XatlasError("--beside goes with --texts: it shows what two models wrote.")
    if texts:
        print_rows(_texts([each for each in (path, beside) if each is not None]), as_json)
    elif sensitivity:
        _show_sensitivity(path, as_json)
    elif path.is_file():
        _show_file(path, as_json)
    else:
        rows = [
            {
                "model": entry.job.model,
                "probe": entry.job.probe,
                "suite": entry.name_of("suite") if entry.job.suite else "–",
                "bos": entry.job.bos,
                "dtype": entry.job.dtype,
                "started": str(entry.provenance.get("started", ""))[:19],  # to the second
                "seconds": entry.provenance.get("wall_time_s", ""),
                "file": entry.path.name,
            }
            for entry in Store(atlas_folder(path)).entries()
        ]
        print_rows(rows, as_json)


def _show_file(path: Path, as_json: bool) -> None:
    from xatlas.results.store import read_entry

    tables: dict[str, Mapping[str, Any]]
    dataset = _figure_data(path)
    if dataset is not None:
        record, tables = dataset.to_dict(data=False), {"attribute": dataset.attrs}
    else:
        entry = read_entry(path, placed=False)
        dataset, job = entry.dataset(), entry.job.record()
        record, tables = {"job": job, **entry.provenance}, {"job": job, "measured": entry.provenance}
    if as_json:
        print_json(record)
        return
    echo(str(dataset.drop_attrs(deep=False)))
    print_table(fitting(summarised(dataset))[0])
    for head, fields in tables.items():
        print_table([{head: name, "value": value} for name, value in _flat(fields)])


def _texts(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what models wrote, a row for each prompt, and condition, that the first was given; a column a model."""
    from xatlas.results.store import read_entry

    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.is_file():
            raise XatlasError(f"{path} is no file: --texts takes the result of a probe that keeps texts.")
        entry = read_entry(path, placed=False)
        dataset, slug = entry.dataset(), entry.job.model
        answer = dataset.coords.get("answer")
        if answer is None:
            raise XatlasError(f"{path} keeps no texts: --texts takes results of probes such as qualitative.")
        column = slug if not any(slug in row for row in rows.values()) else f"{slug} ({path.stem})"
        first = str(answer.dims[0])
        for cell in answer.stack(cell=answer.dims):
            at = {str(dim): cell[dim].item() for dim in answer.dims}
            name = ", ".join(map(str, at.values()))
            row = rows.get(name)
            if row is None and path == paths[0]:
                row = rows[name] = {first: name, "read": str(dataset["text"].sel({first: at[first]}).item())}
            if row is not None:
                mark = {1.0: "+ ", 0.0: "- "}.get(float(dataset["passed"].sel(at)), "") if "passed" in dataset else ""
                row[column] = mark + str(cell.item())
    return list(rows.values())


def _show_sensitivity(path: Path, as_json: bool) -> None:
    """Print every finding under every setting, the main one first; people read of others what differs from it."""
    dataset = _figure_data(path) if path.is_file() else None
    if dataset is None or "sensitivity" not in dataset:
        raise XatlasError(f"{path} holds no findings: --sensitivity takes the .nc beside a comparison's figure.")
    missing = json.loads(dataset.attrs.get("not_run", "[]"))
    rows: list[dict[str, Any]] = []
    settings = [str(setting).split(", ") for setting in dataset["setting"].values]
    for i, finding in enumerate(map(str, dataset["finding"].values)):
        for j, parts in enumerate(settings):
            bounds = tuple(map(float, dataset["sensitivity"].values[i, j]))
            if bounds[0] != bounds[0]:
                continue
            if as_json:
                row = {"setting": ", ".join(parts), **dict(zip(("value", "low", "high"), bounds, strict=True))}
            else:
                own = [part for part in parts if part not in settings[0]]
                row = {"setting": ", ".join(own) or "main", "number": interval(*bounds)}
            rows.append({"finding": finding, **row})
    if as_json:
        print_json({"sensitivity": rows, "not_run": missing})
        return
    print_table(rows)
    echo(f"\nThe main setting: {', '.join(settings[0])}")
    if missing:
        echo("\nNot run")
        print_table([{name: cell or "–" for name, cell in row.items()} for row in missing])


def _figure_data(path: Path) -> xr.Dataset | None:
    """Return the data beside a figure, which no hash stands beside; None where the file is anything else."""
    from xatlas.results.store import RECORD, read_unproved

    if path.suffix != ".nc" or Path(f"{path}.sha256").exists():
        return None
    try:
        dataset = read_unproved(path)
    except XatlasError:
        return None
    record = json.loads(dataset.attrs.get(RECORD, "{}"))  # a comparison's own, or that of a result
    return None if record and "comparison" not in record else dataset


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in sorted(record.items()):
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif value not in (None, ""):
            yield f"{before}{name}", as_text(value)


@command()
def verify(
    path: Annotated[Path, typer.Argument(help="An atlas, or the folder that holds it.")] = Path("."),
    repair: Annotated[
        bool, typer.Option("--repair", help="Set aside what is wrong as .damaged; remove what killed runs left.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check every file of an atlas, and say what is wrong; exit code 1 if anything stays so."""
    from xatlas.results.atlas import verify as check_atlas

    problems = list(check_atlas(path, repair=repair))
    if as_json:
        print_json(problems)
    else:
        repaired = [f" It was {problem.repaired}." if problem.repaired else "" for problem in problems]
        lines = [one_line(problem.what + after) for problem, after in zip(problems, repaired, strict=True)]
        echo("\n".join(lines or ["Nothing is wrong."]))
    if not all(problem.repaired for problem in problems):
        raise typer.Exit(FAILED)


@command()
def explain(
    name: Annotated[
        str, options.argument("Name of a probe, comparison, suite or architecture; or: verdicts.", *_EXPLAINED)
    ],
) -> None:
    """Explain a probe, comparison, suite or architecture, or how verdicts come about."""
    from xatlas.findings.verdict import VERDICTS

    registries = {kind: manager.REGISTRIES[kind]() for kind in _EXPLAINED}
    found = {kind: registry[name] for kind, registry in registries.items() if name in registry}
    if name in ("verdict", "verdicts", *VERDICTS):
        print_table([{"verdict": verdict, "when": text} for verdict, text in VERDICTS.items()])
        return
    if not found:
        raise unknown("name", name, {each for registry in registries.values() for each in registry})
    for number, (kind, item) in enumerate(found.items()):
        version = f", version {item.version}" if hasattr(item, "version") else ""
        echo("\n" * bool(number) + f"{kind} {name}{version}\n")
        if kind == "suite":
            _explain_suite(item)
            continue
        if kind == "comparison":
            echo(f"{item.summary}\n")
        echo(inspect.cleandoc(item.__doc__ or "It has no description."))  # an inherited one is another's
        if kind == "architecture":
            echo(f"\nAdapter {item.__module__}.{item.__qualname__} for {', '.join(item.architectures)}.")
            continue
        if claims := getattr(item, "claims", ()):
            echo("\nClaims (xatlas explain verdicts says how they are judged)")
            print_table([{"claim": claim.name, "question": claim.question, "unit": claim.unit} for claim in claims])
        for title, rows in _tables(item, kind == "probe").items():
            echo(f"\n{title}" + ("" if rows else ": none"))
            print_table(rows)
        if kind == "probe":
            echo(f"\nSites: {', '.join(item.sites) or 'none'}")
        else:
            echo(f"\nMade when no comparison is named: {'yes' if item.default else 'no'}.")


def _tables(found: type[Any], is_probe: bool) -> dict[str, Rows]:
    made = found()
    parameters = [
        {"name": f"{found.name}.{name}", "default": as_text(value)} for name, value in asdict(made.parameters).items()
    ]
    requires = [
        {
            "probe": needed.probe,
            "with": " ".join(f"{name}={as_text(value)}" for name, value in needed.parameters.items()) or "defaults",
            "needed": "where the atlas holds it" if needed.optional else "always",
        }
        for needed in made.requires
    ]
    tables: dict[str, Rows] = {}
    if is_probe:
        tables["Variables"] = [
            {"name": name, "unit": each.units, "dimensions": ", ".join(each.dims), "what": each.long_name}
            for name, each in found.variables.items()
        ]
    return tables | {"Parameters (--set NAME.PARAMETER=VALUE, or --PARAMETER VALUE)": parameters, "Requires": requires}


def _explain_suite(found: SuiteSpec) -> None:
    from xatlas.config import find_suite

    suite = find_suite(found.name)
    use = f" Used {_ROLES[found.default_for]} when none is named." if found.default_for else ""
    echo(f"{found.summary}{use}\n\n{len(suite)} prompts of {len(suite.families)} families, hash {suite.hash[:12]}")
    rows = []
    for family in suite.families:
        own = [prompt for prompt in suite if prompt.family == family]
        templates = {prompt.template for prompt in own if prompt.template}
        first = f"{own[0].text} →{own[0].target or ''}"
        rows.append({"family": family, "prompts": len(own), "templates": len(templates), "first": first})
    print_table(rows)


@command()
def probes(as_json: options.Json = False) -> None:
    """List the probes."""
    rows = [
        {"name": name, "version": item.version, "on": item.measures_on, "what": _first_line(item)}
        for name, item in manager.probes().items()
    ]
    print_rows(rows, as_json)


@command()
def architectures(as_json: options.Json = False) -> None:
    """List the model architectures that have an adapter."""
    rows = [
        {"architecture": name, "adapter": f"{item.__module__}.{item.__qualname__}", "what": _first_line(item)}
        for name, item in manager.adapters().items()
    ]
    print_rows(rows, as_json)


@command()
def comparisons(as_json: options.Json = False) -> None:
    """List the comparisons."""
    rows = []
    for name, item in manager.comparisons().items():
        needed = ", ".join(requirement.probe for requirement in item().requires)
        rows.append({"name": name, "version": item.version, "requires": needed, "what": item.summary})
    print_rows(rows, as_json)


@command()
def suites(as_json: options.Json = False) -> None:
    """List the suites that have a name, and which are used when none is named."""
    rows = [
        {"name": name, "default": _ROLES.get(item.default_for, ""), "what": item.summary}
        for name, item in manager.suites().items()
    ]
    print_rows(rows, as_json)


@models_app.callback()
@reports_errors
def models(context: typer.Context, as_json: options.Json = False) -> None:
    """List the models that have a name, and which of them work now."""
    if context.invoked_subcommand:
        return
    from xatlas.loading.model_names import available

    known = manager.models()
    rows = [
        {"name": alias, "state": state, "what": known[alias].summary, "from": known[alias].location}
        for alias, state in available().items()
    ]
    print_rows(rows, as_json)


@command(models_app)
def fetch(
    name: Annotated[str, options.argument("Name or hub id.", "model")],
) -> None:
    """Get a model now, so that later runs need no network."""
    from xatlas.loading.model_names import resolve

    model = resolve(name)
    echo(f"{model.name}: {model.architecture} in {model.folder}")


def _first_line(item: type[Any]) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]
