"""Comparing models: what comparisons need is measured, lined up, drawn and put into words."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.config import MeasureConfig
from xatlas.config import settings as config_fields
from xatlas.contracts.comparison import Comparison, Finding
from xatlas.contracts.probe import Requirement
from xatlas.errors import XatlasError, unknown
from xatlas.files import digest, hash_path, locked, read_hashed, sha256, write_hashed
from xatlas.guard import calling, explain
from xatlas.results.jobs import Job
from xatlas.results.store import Entry, Store, read_result
from xatlas.run.plan import Step, steps_for
from xatlas.run.reporting import Failure, Outcome, Reporter, Silent
from xatlas.run.runner import run
from xatlas.run.source import source_of
from xatlas.stats import holm

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.loading.names import Resolved


#: Fields of a job in which a sensitivity run may differ from the main one.
VARIED = tuple(field.name for field in config_fields("varied"))


def lacking(comparison: Comparison, model: Resolved, settings: MeasureConfig, store: Store) -> list[str]:
    """Return the probes without whose results the comparison can't show the model."""
    needed = [requirement for requirement in comparison.requires if not requirement.optional]
    steps = [steps_for(model, [requirement], settings)[-1] for requirement in needed]
    return [step.job.probe for step in steps if store.state(step.job) != "done"]


def nodes_for(
    comparison: Comparison, models: Sequence[Resolved], settings: MeasureConfig, store: Store
) -> list[tuple[str, Path]]:
    """Return tree node → file of everything that the comparison may read.

    Parameters
    ----------
    comparison : Comparison
        Says what it requires.
    models : sequence of Resolved
        In the order in which they are to be shown.
    settings : MeasureConfig
        How the main results were measured.
    store : Store
        Where they are; see :func:`lacking`.

    Returns
    -------
    list of (str, Path)
        ``/{model}/{probe}``, or with ``@`` and what differs, and the file.
    """
    nodes: dict[str, Path] = {}
    for model in models:
        for needed in comparison.requires:
            step = steps_for(model, [replace(needed, optional=False)], settings)[-1]
            if store.state(step.job) == "done":
                nodes[f"/{model.slug}/{needed.probe}"] = store.file(step.job)
                nodes |= variants(step.job, settings, store)
    return list(nodes.items())


def variants(main: Job, settings: MeasureConfig, store: Store) -> dict[str, Path]:
    """Return the same probe's results that differ from ``main`` in suite, BOS habit or parameters only.

    They are named ``/{model}/{probe}@{what differs}``, for instance ``@bos=native,suite=standard``.
    """
    found: dict[str, Path] = {}
    for entry in store.entries([main.model], [main.probe]):
        same = replace(entry.job, **{name: getattr(main, name) for name in VARIED})
        # The same suite by name with other prompts in it is an older one, not another one.
        stale = entry.job.suite != main.suite and entry.name_of("suite") == settings.suite.name
        name = _difference(entry, main)
        if same == main and name and not stale:
            found[f"/{main.model}/{main.probe}@{name}"] = entry.path
    return found


def _difference(entry: Entry, main: Job) -> str:
    parts: dict[str, str] = {}
    if entry.job.bos != main.bos:
        parts["bos"] = entry.job.bos
    if entry.job.suite != main.suite:
        parts["suite"] = entry.name_of("suite") or str(entry.job.suite)[:12]
    for name, value in sorted(entry.job.parameters.items()):
        if main.parameters.get(name) != value:
            parts[name] = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return ",".join(f"{name}={value}" for name, value in parts.items()).replace("/", "_")


def build_tree(nodes: Iterable[tuple[str, Path]]) -> xr.DataTree:
    """Open results as the tree that comparisons read.

    Raises
    ------
    XatlasError
        A file is missing or damaged.
    """
    import xarray as xr

    return xr.DataTree.from_dict({node: read_result(path) for node, path in nodes})


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


def pick_comparisons(
    names: Sequence[str] | None, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Comparison]:
    """Return the comparisons of those names, each once; those that run by default when none is named.

    Raises
    ------
    XatlasError
        A name is unknown, or a parameter does not fit.
    """
    known = manager.comparisons()
    chosen = names or [name for name, comparison in known.items() if comparison.default]
    # Each once: a claim made twice would be counted twice when p-values are adjusted.
    return [
        manager.pick("comparison", name, known)(**(parameters or {}).get(name, {})) for name in dict.fromkeys(chosen)
    ]


def part_parameters(
    given: Mapping[str, Mapping[str, Any]], chosen: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Part parameters into those of probes and those of comparisons; a name that is both takes what each knows.

    Raises
    ------
    XatlasError
        A name is neither, or that of a comparison that is not chosen.
    """
    known, probes = manager.comparisons(), manager.probes()
    parted: tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]] = ({}, {})
    for owner, values in given.items():
        if owner not in known and owner not in probes:
            raise unknown("probe or comparison" if chosen else "probe", owner, [*probes, *(known if chosen else ())])
        of_probe = probes[owner]().canonical_parameters() if owner in probes else {}
        of_comparison = known[owner]().canonical_parameters() if owner in known else {}
        for name, value in values.items():
            of_both = name in of_comparison or owner not in probes, name in of_probe or owner not in known
            if of_both[0]:
                parted[1].setdefault(owner, {})[name] = value
            if of_both[1] or not of_both[0]:
                parted[0].setdefault(owner, {})[name] = value
    for owner in parted[1]:
        if owner not in chosen:
            raise XatlasError(f"'{owner}' is a comparison that is not asked for: setting its parameters does nothing.")
    return parted


def plan_comparison(
    models: Iterable[Resolved], comparisons: Iterable[Comparison], settings: MeasureConfig, probes: Sequence[str] = ()
) -> list[Step]:
    """Return the union of what the comparisons require, and further probes, model by model.

    Raises
    ------
    XatlasError
        As :func:`xatlas.run.plan.steps_for`; or parameters are set of a probe that nothing asks for.
    """
    requirements = [needed for comparison in comparisons for needed in comparison.requires]
    requirements += [Requirement(name) for name in probes]
    steps = [step for model in models for step in steps_for(model, requirements, settings)]
    used = {needed.probe for needed in requirements} | {step.job.probe for step in steps}
    for probe in settings.parameters:
        if settings.parameters[probe] and probe not in used:
            raise XatlasError(f"'{probe}' would not be measured: setting its parameters does nothing.")
    return steps


def compare(
    models: Sequence[Resolved],
    comparisons: Sequence[Comparison],
    settings: MeasureConfig,
    store: Store,
    figures: Path,
    reporter: Reporter | None = None,
    probes: Sequence[str] = (),
    *,
    refresh: bool = False,
) -> Comparing:
    """Measure what is missing, then compare; a comparison whose inputs are unchanged is not made again.

    Parameters
    ----------
    models : sequence of Resolved
        In the order in which they are to be shown.
    comparisons : sequence of Comparison
        What is asked.
    settings : MeasureConfig
        How to measure.
    store : Store
        Where results are looked for and kept.
    figures : Path
        Folder for figures and their data.
    reporter : Reporter, optional
        Hears how it goes.
    probes : sequence of str
        Measured besides what the comparisons require.
    refresh : bool
        Measure again what is there; see :func:`xatlas.run.runner.run`.

    Returns
    -------
    Comparing
        A comparison that fails does not stop the others.
    """
    if len(models) == 1:
        log.warning("one model is named, '%s': its numbers are shown, and compared with nothing.", models[0].name)
    outcome = run(plan_comparison(models, comparisons, settings, probes), store, settings, reporter, refresh=refresh)
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
                with calling(type(comparison)):
                    done.results.append(_one(comparison, complete, settings, store, figures, failures))
        except Exception as error:
            log.debug("comparison %s failed", comparison.name, exc_info=error.__cause__ or error)
            failures.append(Failure(comparison.name, explain(error)))
        for failure in failures:
            (reporter or Silent()).fail(failure)
        done.failures += failures
    done.results = _adjusted(done.results)
    return done


def _one(
    comparison: Comparison,
    models: Sequence[Resolved],
    settings: MeasureConfig,
    store: Store,
    figures: Path,
    failures: list[Failure],
) -> Compared:
    nodes = nodes_for(comparison, models, settings, store)
    source = source_of(type(comparison))
    key = digest(
        {
            "comparison": comparison.name,
            "version": comparison.version,
            "source": source,
            "parameters": comparison.canonical_parameters(),
            "suite": settings.suite.name,
            "inputs": [[node, path.name, _hash_of(path)] for node, path in nodes],
        }
    )
    # what can't be told from another comparison of this name is made every time
    record = None if source is None else store.path / ".comparisons" / f"{comparison.name}-{key[:16]}.json"
    kept = _kept(record, key, figures)  # needs neither lock nor write access
    if kept:
        return kept
    with contextlib.ExitStack() as stack:
        try:  # one lock a name, for all of that name write the same figure
            waiting = f"another run is making {comparison.name}: waiting for it."
            stack.enter_context(locked(store.path / ".comparisons" / f"{comparison.name}.lock", waiting))
        except XatlasError as error:
            log.warning("%s is made, but not kept: %s", comparison.name, error)
            record = None
        kept = _kept(record, key, figures)
        if kept:
            return kept
        dataset = comparison.compare(build_tree(nodes)).assign_attrs(
            measured=_measured(comparison, models, settings),
            source=source or secrets.token_hex(),  # a figure of another source is drawn again
        )
        made: dict[str, Any] = {"key": key, "name": comparison.name, "files": {}}
        made["table"] = [{name: _plain(cell) for name, cell in row.items()} for row in comparison.table(dataset)]
        findings = [asdict(item) for item in comparison.findings(dataset)]
        made["findings"] = [{name: _plain(value) for name, value in item.items()} for item in findings]
        result = _compared(made, figures)
        try:
            files = importlib.import_module(REPORT).export(comparison.name, comparison, dataset, figures)
        except XatlasError as error:  # numbers without a figure are better than neither
            failures.append(Failure(comparison.name, explain(error)))
            return result
        made["files"] = {file.name: sha256(file.read_bytes()) for file in files}
        if record:
            write_hashed(record, json.dumps(made).encode())
        return replace(result, files=files)


def _measured(comparison: Comparison, models: Sequence[Resolved], settings: MeasureConfig) -> str:
    """Say what a figure shows; figures of two of these are two figures."""
    told = {
        "models": [model.slug for model in models],
        "suite": {"name": settings.suite.name, "hash": settings.suite.hash},
        "reference": settings.reference.hash if settings.reference else None,
        "template_date": settings.template_date if settings.chat_template else None,
        **{name: getattr(settings, name) for name in ("dtype", "attention", "bos", "chat_template", "seed", "draws")},
        "parameters": {
            comparison.name: comparison.canonical_parameters(),
            **{
                needed.probe: dict(settings.parameters[needed.probe])
                for needed in comparison.requires
                if settings.parameters.get(needed.probe)
            },
        },
    }
    return json.dumps(told, sort_keys=True, default=str)


def _kept(record: Path | None, key: str, figures: Path) -> Compared | None:
    """Return what was made of the same inputs before, if its record and all its files are still whole."""
    if record is None:
        return None
    try:
        content = json.loads(read_hashed(record))
        if content["key"] != key:
            raise ValueError("it is another comparison's")
        kept = _compared(content, figures, reused=True)
        whole = all(file.is_file() and sha256(file.read_bytes()) == content["files"][file.name] for file in kept.files)
    except (XatlasError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
        log.debug("%s is made again: %s", record, error)
        return None
    return kept if whole else None


def _compared(content: dict[str, Any], figures: Path, reused: bool = False) -> Compared:
    """Return what a record says: the same when it was just made and when it was kept.

    Raises
    ------
    LookupError, TypeError, ValueError, AttributeError
        It is no record, or a cell is neither text nor number.
    """
    findings = [Finding(**item) for item in content["findings"]]
    cells = [cell for row in content["table"] for cell in row.values()]
    texts = [text for item in findings for text in (item.sentence, item.verdict, item.model)]
    numbers = [number for item in findings for number in (item.value, item.low, item.high, item.control, item.p)]
    for kinds, values in ((str | int | float, cells), (str, texts), (int | float, numbers)):
        for value in values:
            if not isinstance(value, kinds):
                raise TypeError(f"a table or finding holds {value!r}, where text or a number belongs")
    files = [figures / Path(name).name for name in content["files"]]
    return Compared(content["name"], content["table"], findings, files, reused)


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
