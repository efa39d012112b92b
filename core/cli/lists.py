"""Commands that list, explain, show and check what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas.cli import options
from xatlas.cli.output import FAILED, echo, print_json, print_table, say, told
from xatlas.errors import XatlasError, unknown
from xatlas.text import one_line

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.contracts.adapter import Adapter
    from xatlas.contracts.comparison import Comparison
    from xatlas.contracts.probe import Probe, Requirement
    from xatlas.suites import SuiteSpec

_ROLES: dict[str | None, str] = {"measure": "to measure on", "reference": "for means and donors"}

models_app = typer.Typer(help="List models by name, or fetch one.", rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to the app."""
    for command in (show, verify, explain, probes, architectures, comparisons, suites, check):
        app.command()(told(command))
    app.add_typer(models_app, name="models", invoke_without_command=True)


@models_app.callback()
@told
def models(context: typer.Context, as_json: options.Json = False) -> None:
    """List the models that have a name, and which of them work now."""
    if context.invoked_subcommand:
        return
    from xatlas.loading.names import available

    rows = [
        {"name": item.alias, "state": item.state, "what": item.summary, "from": item.location} for item in available()
    ]
    _print(rows, as_json)


@models_app.command()
@told
def fetch(
    name: Annotated[str, typer.Argument(help="Name or hub id.", autocompletion=options.complete("models"))],
) -> None:
    """Get a model now, so that later runs need no network."""
    from xatlas.loading.names import fetch as fetch_model

    model = fetch_model(name)
    echo(f"{model.name}: {model.architecture} in {model.folder}")


def show(
    path: Annotated[Path, typer.Argument(help="An atlas, its folder, one of its files, or a figure's .nc.")],
    as_json: options.Json = False,
) -> None:
    """Show what an atlas or one of its files holds."""
    from xatlas.results.store import Store, atlas_folder, read_entry, read_result

    if path.is_file() and path.suffix == ".nc" and not Path(f"{path}.sha256").exists():
        figure = _figure_data(path)
        if figure is not None:
            if as_json:
                print_json(figure.to_dict(data=False))
                return
            echo(str(figure.drop_attrs(deep=False)))
            print_table([{"about": name, "is": value} for name, value in _flat(figure.attrs)])
            return
    if path.is_file():
        entry, dataset = read_entry(path, placed=False), read_result(path, placed=False)
        if as_json:
            print_json({"job": entry.job.record(), **entry.provenance})
            return
        echo(str(dataset.drop_attrs(deep=False)))
        print_table([{"about": name, "is": value} for name, value in _flat(entry.job.record())])
        print_table([{"measured": name, "is": value} for name, value in _flat(entry.provenance)])
        return
    rows = [
        {
            "model": entry.job.model,
            "probe": entry.job.probe,
            "suite": entry.name_of("suite") if entry.job.suite else "–",
            "bos": entry.job.bos,
            "dtype": entry.job.dtype,
            "started": entry.provenance.get("started", ""),
            "seconds": entry.provenance.get("wall_time_s", ""),
            "file": entry.path.name,
        }
        for entry in Store(atlas_folder(path)).entries()
    ]
    _print(rows, as_json)


def _figure_data(path: Path) -> xr.Dataset | None:
    """Return the data beside a figure, which no hash stands beside; None where the file is anything else."""
    from xatlas.results.store import RECORD, read_unproved

    try:
        dataset = read_unproved(path)
    except XatlasError:
        return None
    return None if RECORD in dataset.attrs else dataset


def verify(
    path: Annotated[Path, typer.Argument(help="An atlas, or the folder that holds it.")] = Path("."),
    repair: Annotated[
        bool, typer.Option("--repair", help="Set aside what is wrong as .damaged; remove what killed runs left.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check every file of an atlas, and say what is wrong; exit code 1 if anything stays so."""
    from dataclasses import asdict

    from xatlas.results.atlas import verify as check_atlas

    found = list(check_atlas(path, repair=repair))
    if as_json:
        print_json([asdict(problem) for problem in found])
    for problem in () if as_json else found:
        echo(one_line(f"{problem.what} {problem.repaired and f'It was {problem.repaired}.'}"))
    if not found and not as_json:
        echo("Nothing is wrong.")
    if not all(problem.repaired for problem in found):
        raise typer.Exit(FAILED)


def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a probe, comparison, suite or architecture.",
            autocompletion=options.complete("probes", "comparisons", "suites", "adapters"),
        ),
    ],
) -> None:
    """Explain a probe, comparison, suite or architecture: what it is, its parameters, and what it rests on."""
    from xatlas import manager

    kinds: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
        "probe": (dict(manager.probes()), _explain_probe),
        "comparison": (dict(manager.comparisons()), _explain_comparison),
        "suite": (dict(manager.suites()), _explain_suite),
        "architecture": (dict(manager.adapters()), _explain_adapter),
    }
    found = [kind for kind, (known, _) in kinds.items() if name in known]
    if not found:
        raise unknown("name", name, {each for known, _ in kinds.values() for each in known})
    for number, kind in enumerate(found):
        known, tell = kinds[kind]
        version = getattr(known[name], "version", None)
        echo(f"{chr(10) * bool(number)}{kind} {name}{f', version {version}' if version else ''}\n")
        tell(known[name])


def _explain_probe(found: type[Probe]) -> None:
    echo(_described(found))
    echo("\nVariables")
    print_table(
        [
            {"name": name, "unit": item.units, "dimensions": ", ".join(item.dims), "what": item.long_name}
            for name, item in found.variables.items()
        ]
    )
    _print_parameters(found)
    echo(f"\nSites: {', '.join(found.sites) or 'none'}.")
    _print_required(found().requires)


def _explain_comparison(found: type[Comparison]) -> None:
    echo(f"{found.summary}\n\n{_described(found)}")
    _print_parameters(found)
    _print_required(found().requires)
    echo(f"Made when no comparison is named: {'yes' if found.default else 'no'}.")


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


def _explain_adapter(found: type[Adapter]) -> None:
    echo(
        f"{_described(found)}\n\nAdapter {found.__module__}.{found.__qualname__} for {', '.join(found.architectures)}."
    )


def _described(item: type[Any]) -> str:
    """Return a class's own description: an inherited one is another's."""
    return inspect.cleandoc(item.__doc__ or "It has no description.")


def _print_parameters(found: type[Probe] | type[Comparison]) -> None:
    values = found().canonical_parameters()
    if values:
        echo("\nParameters (--set NAME.PARAMETER=VALUE, or --PARAMETER VALUE)")
        print_table([{"name": f"{found.name}.{name}", "default": _text(item)} for name, item in values.items()])


def _print_required(requires: Iterable[Requirement]) -> None:
    rows = [
        {
            "probe": needed.probe,
            "with": " ".join(f"{name}={_text(value)}" for name, value in needed.parameters.items()) or "defaults",
            "": "where the atlas holds it" if needed.optional else "",
        }
        for needed in requires
    ]
    echo("\nRequires" + ("" if rows else " nothing."))
    if rows:
        print_table(rows)


def probes(as_json: options.Json = False) -> None:
    """List the probes."""
    from xatlas import manager

    rows = [
        {"name": name, "version": item.version, "on": item.measures_on, "what": _first_line(item)}
        for name, item in manager.probes().items()
    ]
    _print(rows, as_json)


def architectures(as_json: options.Json = False) -> None:
    """List the model architectures that have an adapter."""
    from xatlas import manager

    rows = [
        {"architecture": name, "adapter": f"{item.__module__}.{item.__qualname__}", "what": _first_line(item)}
        for name, item in manager.adapters().items()
    ]
    _print(rows, as_json)


def comparisons(as_json: options.Json = False) -> None:
    """List the comparisons."""
    from xatlas import manager

    rows = []
    for name, item in manager.comparisons().items():
        needed = ", ".join(requirement.probe for requirement in item().requires)
        rows.append({"name": name, "version": item.version, "requires": needed, "what": item.summary})
    _print(rows, as_json)


def suites(as_json: options.Json = False) -> None:
    """List the suites that have a name, and which are used when none is named."""
    from xatlas import manager

    rows = [
        {"name": name, "default": _ROLES.get(item.default_for, ""), "what": item.summary}
        for name, item in manager.suites().items()
    ]
    _print(rows, as_json)


def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Adapters, probes, comparisons, suites or models; all when left out.")
    ] = None,
) -> None:
    """Check adapters, probes, comparisons, suites and named models against their contracts, installed ones included."""
    from xatlas import manager
    from xatlas.checks.adapters import check_adapter
    from xatlas.checks.comparisons import check_comparison, check_source, check_suite
    from xatlas.checks.probes import check_probe

    known: list[tuple[str, str, Any, Any]] = [
        *(("architecture", name, item, check_adapter) for name, item in manager.adapters().items()),
        *(("probe", name, item, check_probe) for name, item in manager.probes().items()),
        *(("comparison", name, item, check_comparison) for name, item in manager.comparisons().items()),
        *(("suite", name, item, check_suite) for name, item in manager.suites().items()),
        *(("model", name, item, check_source) for name, item in manager.models().items()),
    ]
    for asked in names or []:
        manager.pick("plugin", asked, {name: item for _, name, item, _ in known})
    failed = 0
    for kind, name, item, function in known:
        if names and name not in names:
            continue
        try:
            function(item)
            echo(f"ok      {kind} {name}")
        except (Exception, SystemExit) as error:  # whatever a plugin raises is its failure, told like any other
            failed += 1
            echo(f"FAILED  {kind} {name}: {one_line(str(error))}")
    if failed:
        say(f"{failed} failed their checks.")
        raise typer.Exit(FAILED)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        echo("none")


def _first_line(item: type[Probe] | type[Any]) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]


def _text(value: Any) -> str:
    """Return a value as an option takes it: texts as they are."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return value if isinstance(value, str) else str(value).lower() if value in (True, False, None) else str(value)


def _flat(record: dict[str, Any] | Any, before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in sorted(record.items()):
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif value not in (None, ""):
            yield f"{before}{name}", _text(value)
