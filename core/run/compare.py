"""Comparing models: what comparisons need is measured, collected, compared, drawn and put into words."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from xatlas import __version__, manager
from xatlas.config import MeasureConfig, settings
from xatlas.contracts.comparison import Comparison, Finding
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.files import digest, hash_path, locked, read_hashed, sha256, write_hashed
from xatlas.findings.sensitivity import as_asked
from xatlas.loading.model_names import Resolved
from xatlas.manager import calling, explain
from xatlas.results.jobs import Job
from xatlas.results.store import Entry, Store, read_entry
from xatlas.run.plan import Plan
from xatlas.run.reporting import ComparisonResult, Failure, Report, ReporterChoice, reporting
from xatlas.run.runner import run
from xatlas.stats import holm
from xatlas.twins import is_twin

#: Fields of a job in which a sensitivity run may differ from the main one.
VARIED = tuple(setting.name for setting in settings("varied"))

log = logging.getLogger("xatlas")


def compare(
    plan: Plan, store: Store, figures: Path, reporter: ReporterChoice = None, *, refresh: bool = False
) -> Report:
    """Measure what is missing, then compare; a comparison whose inputs are unchanged is not made again.

    Figures and their data go to the folder ``figures``. A comparison that fails does not stop the others.
    """
    if len(plan.models) == 1 and plan.comparisons:
        log.warning("one model is named, '%s': its numbers are shown, and compared with nothing.", plan.models[0].name)
    if plan.twins and not any(comparison.uses_twins for comparison in plan.comparisons):
        log.warning("untrained twins are measured and kept, but none of these comparisons shows them.")
    report = run(plan, store, reporter, refresh=refresh)
    with reporting(reporter) as shown:
        for comparison in plan.comparisons:
            failures: list[Failure] = []
            try:
                with calling(type(comparison)):
                    result = _compare_one(comparison, plan, store, figures, failures)
                report.results += [result] if result else []
            except Exception as error:
                log.debug("comparison %s failed", comparison.name, exc_info=error.__cause__ or error)
                failures.append(Failure(comparison.name, explain(error)))
            for failure in failures:
                shown.fail(failure)
            report.failures += failures
    return report


def of_shapes(named: Resolved, figures: Path) -> list[ComparisonResult]:
    """Make the comparisons that rest on shapes of weights alone, of one model; its config is enough."""
    import xarray as xr

    from xatlas.run.cost import shapes
    from xatlas.schema import validate

    model, suite, made = shapes(named), MeasureConfig.make().suite, []
    for comparison in (kind() for kind in manager.comparisons().values()):
        probes = [manager.probes()[each.probe](**each.parameters) for each in comparison.requires if not each.optional]
        if any(probe.needs_weights for probe in probes):
            continue
        nodes = {}
        for probe in probes:
            with calling(type(probe)):
                nodes[f"/{named.slug}/{probe.name}"] = probe.measure(model, suite, Inputs())
            validate(nodes[f"/{named.slug}/{probe.name}"], probe, model)
        with calling(type(comparison)):
            dataset = comparison.compare(xr.DataTree.from_dict(nodes))
            about = {"comparison": comparison.name, "source": source_of(type(comparison)) or secrets.token_hex()}
            dataset = dataset.assign_attrs(about)
            table, findings = comparison.table(dataset), comparison.findings(dataset)
            files = manager.part("report")(f"{comparison.name}-{named.slug}", comparison, dataset, figures)
        made.append(ComparisonResult(comparison.name, table, findings, files))
    return made


def collect(comparison: Comparison, plan: Plan, store: Store) -> tuple[dict[str, Path], list[Resolved], list[str]]:
    """Return tree node → file of all that the comparison may read, the models that it can show, and who is left out.

    Nodes are ``/{model}/{probe}``, or with ``@`` and what differs; with a model, its twins are left out.
    """
    nodes: dict[str, Path] = {}
    shown: list[Resolved] = []
    left_out = []
    for model in [*plan.models, *(plan.twins if comparison.uses_twins else ())]:
        if model in plan.twins and not any(is_twin(model.slug, each.slug) for each in shown):
            continue
        answers = [(needed, plan.answer(model, needed).job) for needed in comparison.requires]
        held = [job for _, job in answers if store.state(job) == "done"]
        if all(needed.optional or job in held for needed, job in answers):
            shown.append(model)
            for job in held:
                nodes[f"/{model.slug}/{job.probe}"] = store.file(job)
                nodes |= {} if model in plan.twins else variants(job, plan.config, store)
        else:
            left_out.append(model.slug)
    return nodes, shown, left_out


def variants(main: Job, config: MeasureConfig, store: Store) -> dict[str, Path]:
    """Return the same probe's results that differ from ``main`` in what sensitivity runs vary, and in nothing else.

    They are named ``/{model}/{probe}@{what differs}``, for instance ``@bos=native,suite=standard``.
    """
    found: dict[str, Path] = {}
    for entry in store.entries([main.model], [main.probe]):
        same = replace(entry.job, **{name: getattr(main, name) for name in VARIED})
        # The same suite by name with other prompts in it is an older one, or a part of it, not another one.
        named = re.sub(r"\[\d+\]$", "", str(entry.name_of("suite")))
        stale = entry.job.suite != main.suite and named == (config.suite.whole or config.suite).name
        name = _difference(entry, main)
        if same == main and name and not stale:
            found[f"/{main.model}/{main.probe}@{name}"] = entry.path
    return found


def _difference(entry: Entry, main: Job) -> str:
    parts: dict[str, Any] = {}
    for name in VARIED:
        value, usual = getattr(entry.job, name), getattr(main, name)
        if name == "parameters":
            parts |= {each: given for each, given in sorted(value.items()) if usual.get(each) != given}
        elif value != usual:
            parts[name] = entry.name_of(name) or str(value)[:12] if name == "suite" else value
    texts = {name: "+".join(map(str, value)) if isinstance(value, list) else value for name, value in parts.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items()).replace("/", "_")


def _compare_one(
    comparison: Comparison, plan: Plan, store: Store, figures: Path, failures: list[Failure]
) -> ComparisonResult | None:
    """Make one comparison, or take it from its record; what goes wrong beside it is added to ``failures``."""
    name, folder = comparison.name, store.path / ".comparisons"
    nodes, models, left_out = collect(comparison, plan, store)
    failures += [Failure(f"{name} of {slug}", "left out, for it could not be measured.") for slug in left_out]
    if not models:
        return None
    source = source_of(type(comparison))
    key = digest(
        {
            "comparison": name,
            "version": comparison.version,
            "source": source,
            "parameters": comparison.canonical_parameters(),
            "suite": plan.config.suite.name,
            "inputs": [[node, path.name, hash_path(path).read_text().split()[0]] for node, path in nodes.items()],
        }
    )
    # what can't be distinguished from another comparison of this name is made every time
    record = None if source is None else folder / f"{name}-{key[:16]}.json"
    kept = _kept(record, key, figures)  # needs neither lock nor write access
    if kept:
        return kept
    with contextlib.ExitStack() as stack:
        try:  # one lock a name, for all of that name write the same figure
            waiting = f"another run is making {name}: waiting for it."
            stack.enter_context(locked(folder / f"{name}.lock", waiting))
        except XatlasError as error:
            log.warning("%s is made, but not kept: %s", name, error)
            record = None
        kept = _kept(record, key, figures)  # made while we waited
        if kept:
            return kept
        import xarray as xr  # only where something has changed

        tree = xr.DataTree.from_dict({node: read_entry(path).dataset() for node, path in nodes.items()})
        suites = {"suite": plan.config.suite, "reference": plan.config.reference}
        tree.attrs["xatlas"] = as_asked(suites, str(store.path.parent))
        dataset = comparison.compare(tree).assign_attrs(
            comparison=name,
            measured=_measured(comparison, models, plan.config),
            source=source or secrets.token_hex(),  # a figure of another source is drawn again
        )
        table, findings = comparison.table(dataset), list(map(asdict, _adjusted(comparison.findings(dataset))))
        made: dict[str, Any] = {"key": key, "name": name, "table": _plain(table), "findings": _plain(findings)}
        result = _result(made | {"files": {}}, figures)
        try:
            files = manager.part("report")(name, comparison, dataset, figures)
        except XatlasError as error:  # numbers without a figure are better than neither
            failures.append(Failure(name, explain(error)))
            return result
        made["files"] = {file.name: sha256(file.read_bytes()) for file in files}
        if record:
            write_hashed(record, json.dumps(made).encode())
        return replace(result, files=files)


def _adjusted(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with p-values adjusted over those about the same model or pair, where they aren't yet."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(findings):
        groups.setdefault((item.model, item.model_other), []).append(index)
    found = list(findings)
    for group in groups.values():
        if all(found[index].p_adjusted is None for index in group):
            for index, p in zip(group, holm([found[index].p for index in group]), strict=True):
                found[index] = replace(found[index], p_adjusted=None if math.isnan(p) else p)
    return found


def _measured(comparison: Comparison, models: Iterable[Resolved], config: MeasureConfig) -> str:
    """Say what a figure shows; figures of two of these are two figures."""
    required = {needed.probe for needed in comparison.requires}
    given = {probe: dict(values) for probe, values in config.parameters.items() if probe in required and values}
    about = {
        "models": [model.slug for model in models],
        "suite": {"name": config.suite.name, "hash": config.suite.hash},
        "reference": config.reference.hash if config.reference else None,
        **config.keyed(),
        "parameters": {comparison.name: comparison.canonical_parameters(), **given},
    }
    return json.dumps(about, sort_keys=True, default=str)


def _kept(record: Path | None, key: str, figures: Path) -> ComparisonResult | None:
    """Return what was made of the same inputs before, if its record and all its files are still whole."""
    if record is None:
        return None
    try:
        content = json.loads(read_hashed(record))
        if content["key"] != key:
            raise ValueError("it is another comparison's")
        kept = replace(_result(content, figures), reused=True)
        whole = all(file.is_file() and sha256(file.read_bytes()) == content["files"][file.name] for file in kept.files)
    except (XatlasError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
        log.debug("%s is made again: %s", record, error)
        return None
    return kept if whole else None


def _result(content: dict[str, Any], figures: Path) -> ComparisonResult:
    """Return what a record says, just made or kept; raises where it is none, or a cell is neither text nor number."""
    findings = [Finding(**item) for item in content["findings"]]
    cells = [cell for row in content["table"] for cell in row.values()]
    texts = [text for item in findings for text in (item.sentence, item.verdict, item.model)]
    numbers = [number for item in findings for number in (item.value, item.low, item.high, item.control, item.p)]
    for kinds, values in ((str | int | float, cells), (str, texts), (int | float, numbers)):
        for value in values:
            if not isinstance(value, kinds):
                raise TypeError(f"a table or finding holds {value!r}, where text or a number belongs")
    files = [figures / Path(name).name for name in content["files"]]
    return ComparisonResult(content["name"], content["table"], findings, files)


def _plain(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: cell.item() if hasattr(cell, "item") else cell for name, cell in row.items()} for row in rows]


# -- what a comparison is made of ------------------------------------------------------------------------

#: Constants that stand for themselves in a digest.
_CONSTANTS = (str, bytes, int, float, complex, type(None))


def source_of(cls: type) -> str | None:
    """Digest a class: every source file of its package, and what was loaded from them.

    Both count: while a file is newer than what was loaded from it, the records of neither version are used or made.
    None where the class can't be told from another: it was typed in, or holds what no file does.
    """
    bases = [base for base in cls.__mro__ if _package(base)]
    files = {path: name for package in {*map(_package, bases), "xatlas.stats"} for path, name in _files(package)}
    loaded = {os.path.normpath(getattr(module, "__file__", None) or ""): module for module in [*sys.modules.values()]}
    modules = {loaded[path].__name__ for path in files if path in loaded}
    parts = [__version__]
    try:
        for path, name in sorted(files.items(), key=lambda item: item[1]):
            parts += [name, Path(path).read_bytes().decode("utf-8", "replace")]
            parts += _held(vars(loaded[path]), loaded[path].__name__) if path in loaded else []
    except OSError:
        return None
    for base in bases:
        if base.__module__ not in modules:
            return None
        for name, item in vars(base).items():
            function = _function(item)
            if function and function.__module__ not in modules:
                return None
            # Code of no such file was made by a library, as in data classes.
            if function and str(Path(function.__code__.co_filename)) in files:
                cells = [cell.cell_contents for cell in function.__closure__ or ()]
                if not all(isinstance(value, (*_CONSTANTS, type)) for value in cells):
                    return None
                parts.append(f"{base.__qualname__}.{name} {cells}")
        parts += _held(vars(base), base.__module__, f"{base.__qualname__}.")
    return sha256("\0".join(parts).encode("utf-8", "replace"))


def _package(cls: type) -> str:
    """Return the package or module outside packages that a class is from; empty for Python's own and contracts."""
    top, _, inner = cls.__module__.partition(".")
    if top == "xatlas":
        inner = inner.partition(".")[0]
        return "" if inner == "contracts" else f"xatlas.{inner}"
    return "" if top in sys.stdlib_module_names else top


def _files(package: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of a package's source files; of a module outside packages, those beside it as well."""
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None)
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    patterns = ["**/*.py"]
    if not folders and package.startswith("xatlas."):
        yield str(Path(str(file))), package
    elif not folders and file:
        folders = [Path(file).parent]
        patterns = ["*.py"] if folders[0].name in ("site-packages", "dist-packages") else ["*.py", "*/*.py"]
    for folder in folders:
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            yield str(path), f"{package} {path.relative_to(folder)}"


def _held(space: Mapping[str, Any], module: str, prefix: str = "") -> Iterator[str]:
    """Yield what a module, or the class of that prefix, holds: plain constants by value, functions by their code."""
    for name, item in sorted(space.items()):
        function = _function(item)
        if function and function.__module__ == module:
            yield f"{prefix}{name} {_code(function.__code__)}"
        elif isinstance(item, type) and (item.__module__, item.__qualname__) == (module, prefix + name):
            yield from _held(vars(item), module, f"{prefix}{name}.")
        elif name[:2] != "__" and _is_constant(item):
            yield f"{prefix}{name} {item!r}"


def _function(item: Any) -> FunctionType | None:
    if isinstance(item, property):
        item = item.fget
    elif isinstance(item, staticmethod | classmethod):
        item = item.__func__
    return item if isinstance(item, FunctionType) else None


def _is_constant(item: Any) -> bool:
    return isinstance(item, _CONSTANTS) or (isinstance(item, tuple) and all(map(_is_constant, item)))


def _code(code: CodeType) -> str:
    ordered = (sorted(each, key=repr) if isinstance(each, frozenset) else each for each in code.co_consts)
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in ordered]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"
