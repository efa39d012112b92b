"""Commands for those who write plugins: checks against the contracts, and a first adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from xatlas import manager
from xatlas.cli.app import FAILED, app, command, end
from xatlas.cli.output import echo
from xatlas.errors import XatlasError
from xatlas.text import one_line

adapter_app = typer.Typer(help="Help with adapters of one's own.", rich_markup_mode=None)
app.add_typer(adapter_app, name="adapter")


@command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Adapters, probes, comparisons, suites or models; all when left out.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Check the adapter of this model on its own weights, and nothing else."
        ),
    ] = None,
) -> None:
    """Check adapters, probes, comparisons, suites and named models against their contracts, installed ones included."""
    from xatlas.checks import check_adapter, check_comparison, check_probe, check_source, check_suite

    if model is not None:
        from xatlas import api

        if names:
            raise XatlasError("--model stands alone: name plugins or a model, not both.")
        loaded = api.load(model)
        _report({f"model {model}": lambda: check_adapter(loaded)})
        return
    checks: dict[str, Callable[[Any], None]] = {
        "architecture": check_adapter,
        "probe": check_probe,
        "comparison": check_comparison,
        "suite": check_suite,
        "model": check_source,
    }
    known = [(kind, name, item) for kind in checks for name, item in manager.REGISTRIES[kind]().items()]
    for asked in names or ():
        manager.pick("plugin", asked, {name: item for _, name, item in known})
    chosen = [each for each in known if not names or each[1] in names]
    _report({f"{kind} {name}": partial(checks[kind], item) for kind, name, item in chosen})


def _report(checks: Mapping[str, Callable[[], None]]) -> None:
    """Make checks and say what came of each; with a failure, end in an error."""
    failed = 0
    for what, run in checks.items():
        try:
            run()
            echo(f"ok      {what}")
        except (Exception, SystemExit) as error:  # whatever a plugin raises is its failure
            failed += 1
            echo(f"FAILED  {what}: {one_line(str(error))}")
    if failed:
        raise end(f"{failed} failed their checks.", FAILED)


@command(adapter_app)
def suggest(
    model: Annotated[
        str,
        typer.Argument(help="Name or folder of a model, or its class in transformers.", metavar="MODEL|FOLDER|CLASS"),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("adapter.py"),
) -> None:
    """Write a first adapter for an architecture that has none, with questions where it is not certain, and check it."""
    from xatlas.files import write_atomic
    from xatlas.loading.model_files import read_json
    from xatlas.loading.model_names import resolve
    from xatlas.testing import model_class

    architecture, config = model, {}
    try:
        model_class(model)
    except XatlasError:  # a name or a folder
        found = resolve(model, fetch="config")
        architecture, config = found.architecture, read_json(found.folder / "config.json")
    if out.exists():
        raise XatlasError(f"{out} is there already: name another file with --out.")
    source, questions, verdict = manager.part("suggest")(architecture, config)
    write_atomic(out, source.encode())
    echo(f"{out}: an adapter for {architecture}.")
    for question in questions:
        echo(f"question: {question}")
    if verdict:
        advice = "Mend that place in the file; docs/adapters.md says what each part of it is."
        raise end(f"its check fails on a tiny model: {verdict} {advice}", FAILED)
    echo("Its check passes on a tiny model. docs/adapters.md says how to register it.")
