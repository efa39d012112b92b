"""Comparing models: what comparisons need is measured, lined up, drawn and put into words."""

from __future__ import annotations

import importlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.comparison import Comparison, Finding
from xatlas.probe import Requirement
from xatlas.run.lineup import build_tree, lacking, nodes_for
from xatlas.run.outcome import Failure, Outcome, Reporter, Silent
from xatlas.run.plan import Settings, Step, steps_for
from xatlas.run.runner import explain, run
from xatlas.stats import holm
from xatlas.store import Store, file_state
from xatlas.store.files import hash_path, locked, read_hashed, sha256, write_hashed
from xatlas.store.jobs import digest

if TYPE_CHECKING:
    from xatlas.loading.names import Resolved

log = logging.getLogger("xatlas")

#: Writes figures; named as the packages of plugins are, so that core imports no comparison.
REPORT = "xatlas.comparisons.report"


@dataclass(frozen=True)
class Compared:
    """What one comparison came to.

    Parameters
    ----------
    name : str
        Name of the comparison.
    table : list of dict
        Rows to print.
    findings : list of Finding
        With p-values adjusted across all comparisons of the run.
    files : list of Path
        Figure and data.
    reused : bool
        Nothing that it rests on has changed since it was made.
    """

    name: str
    table: list[dict[str, Any]]
    findings: list[Finding]
    files: list[Path]
    reused: bool = False


@dataclass
class Comparing:
    """What a whole ``compare`` came to.

    Parameters
    ----------
    outcome : Outcome
        Of the measurements.
    results : list of Compared
        Of the comparisons, in the order asked for.
    failures : list of Failure
        Of measurements and comparisons.
    """

    outcome: Outcome
    results: list[Compared] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def pick_comparisons(names: Sequence[str] | None) -> list[Comparison]:
    """Return the comparisons of those names; those that run by default when none is named.

    Raises
    ------
    XatlasError
        A name is unknown.
    """
    known = manager.comparisons()
    chosen = names or [name for name, comparison in known.items() if comparison.default]
    return [manager.pick("comparison", name, known)() for name in chosen]


def plan_comparison(
    models: Iterable[Resolved], comparisons: Iterable[Comparison], settings: Settings, probes: Sequence[str] = ()
) -> list[Step]:
    """Return the union of what the comparisons require, and further probes, model by model.

    Raises
    ------
    XatlasError
        As :func:`xatlas.run.plan.steps_for`.
    """
    requirements = [needed for comparison in comparisons for needed in comparison.requires]
    requirements += [Requirement(name) for name in probes]
    return [step for model in models for step in steps_for(model, requirements, settings)]


def compare(
    models: Sequence[Resolved],
    comparisons: Sequence[Comparison],
    settings: Settings,
    store: Store,
    figures: Path,
    reporter: Reporter | None = None,
    probes: Sequence[str] = (),
) -> Comparing:
    """Measure what is missing, then compare; a comparison whose inputs are unchanged is not made again.

    Parameters
    ----------
    models : sequence of Resolved
        In the order in which they are to be shown.
    comparisons : sequence of Comparison
        What is asked.
    settings : Settings
        How to measure.
    store : Store
        Where results are looked for and kept.
    figures : Path
        Folder for figures and their data.
    reporter : Reporter, optional
        Hears how it goes.
    probes : sequence of str
        Measured besides what the comparisons require.

    Returns
    -------
    Comparing
        A comparison that fails does not stop the others.
    """
    outcome = run(plan_comparison(models, comparisons, settings, probes), store, settings, reporter)
    done = Comparing(outcome, failures=list(outcome.failures))
    for comparison in comparisons:
        # A model that could not be measured is left out of what is still comparable, and named.
        complete = [model for model in models if not lacking(comparison, model, settings, store)]
        failures = [
            Failure(f"{comparison.name} of {model.slug}", "left out, for it could not be measured.")
            for model in models
            if model not in complete
        ]
        try:
            if complete:
                done.results.append(_one(comparison, complete, settings, store, figures))
        except Exception as error:
            log.debug("comparison %s failed", comparison.name, exc_info=True)
            failures.append(Failure(comparison.name, explain(error)))
        for failure in failures:
            (reporter or Silent()).fail(failure)
        done.failures += failures
    done.results = _adjusted(done.results)
    return done


def _one(
    comparison: Comparison, models: Sequence[Resolved], settings: Settings, store: Store, figures: Path
) -> Compared:
    nodes = nodes_for(comparison, models, settings, store)
    key = digest(
        {
            "comparison": comparison.name,
            "version": comparison.version,
            "parameters": comparison.canonical_parameters(),
            "suite": settings.suite.name,
            "inputs": [[node, path.name, _hash_of(path)] for node, path in nodes],
        }
    )
    record = store.path / ".comparisons" / f"{comparison.name}-{key[:16]}.json"
    with locked(record.with_suffix(".lock"), f"another run is making {comparison.name}: waiting for it."):
        kept = _kept(record, comparison, figures)
        return kept or _make(comparison, nodes, store, record, figures)


def _make(comparison: Comparison, nodes: list[tuple[str, Path]], store: Store, record: Path, figures: Path) -> Compared:
    dataset = comparison.compare(build_tree(nodes))
    export = importlib.import_module(REPORT).export
    files = [Path(file) for file in export(comparison.name, comparison, dataset, figures)]
    made = Compared(comparison.name, comparison.table(dataset), comparison.findings(dataset), files)
    table = [{name: _plain(value) for name, value in row.items()} for row in made.table]
    content = {
        "table": table,
        "findings": [{name: _plain(value) for name, value in asdict(item).items()} for item in made.findings],
        "files": {file.name: sha256(file.read_bytes()) for file in files},
    }
    write_hashed(record, json.dumps(content).encode())
    return replace(made, table=table)


def _kept(record: Path, comparison: Comparison, figures: Path) -> Compared | None:
    """Return what was made of the same inputs before, if its record and all its files are still whole."""
    if file_state(record) != "done":
        return None
    content = json.loads(read_hashed(record))
    files = [figures / name for name in content["files"]]
    for file, expected in zip(files, content["files"].values(), strict=True):
        if not file.is_file() or sha256(file.read_bytes()) != expected:
            return None
    findings = [Finding(**item) for item in content["findings"]]
    return Compared(comparison.name, content["table"], findings, files, reused=True)


def _plain(value: Any) -> Any:
    """Return numbers of numpy as Python's."""
    return value.item() if hasattr(value, "item") else value


def _adjusted(results: list[Compared]) -> list[Compared]:
    """Adjust all p-values of the run together (Holm)."""
    known = [item.p for result in results for item in result.findings if not math.isnan(item.p)]
    adjusted = iter(holm(known)) if known else iter(())
    return [
        replace(
            result,
            findings=[
                item if math.isnan(item.p) else replace(item, p_adjusted=float(next(adjusted)))
                for item in result.findings
            ],
        )
        for result in results
    ]


def _hash_of(path: Path) -> str:
    return hash_path(path).read_text().split()[0]
