"""The checks of probes, comparisons, suites and named models."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray as xr

from xatlas import manager, testing
from xatlas.checks.adapters import ABSOLUTE, RELATIVE, check_complete, checked, must
from xatlas.contracts.comparison import Comparison, Finding, Verdict
from xatlas.contracts.probe import Checkpoint, Inputs, Probe, ReadingProbe, Requirement, Variable
from xatlas.errors import XatlasError, unknown
from xatlas.loading.download import ModelSource
from xatlas.loading.model_files import check_folder
from xatlas.model import HookedModel
from xatlas.prompts.reader import Reader
from xatlas.run.runner import measure_in_memory
from xatlas.suites import Suite, SuiteSpec
from xatlas.vocabulary import SITE_KINDS

#: Kind of model source → what its location looks like, and how to write it.
_LOCATIONS = {
    "hub": (r"[\w.-]+/[\w.-]+", "a hub id is owner/model, without a revision"),
    "folder": (r"/.*", "a folder is given by its absolute path"),
    "wheel-gguf": (r"[\w.-]+==[\w.]+", "a wheel is pinned, as name==version"),
}


def _check_class(cls: Any, contract: type[Any]) -> str:
    """Check a class against its contract, its name and its version; return what errors call it."""
    kind = contract.__name__.lower()
    fits = isinstance(cls, type) and issubclass(cls, contract)
    must(fits, f"check_{kind} takes a subclass of {contract.__name__}, not {cls!r}.")
    check_complete(cls)
    name, version = getattr(cls, "name", None), getattr(cls, "version", None)
    fits = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
    must(fits, f"{cls.__name__}.name is {name!r}: a {kind}'s name is lower-case words joined by '_'.")
    fits = isinstance(version, int) and version >= 1
    must(fits, f"{cls.__name__}.version is {version!r}: a whole number from 1, raised when numbers change.")
    return f"{kind} '{name}'"


def _check_summary(described: Any, who: str) -> None:
    summary = getattr(described, "summary", "")
    fits = isinstance(summary, str) and summary.strip() and "\n" not in summary
    must(fits, f"{who} has no summary: one sentence for the list.")


def _check_requirements(requirements: tuple[Any, ...], who: str) -> None:
    for needed in requirements:
        must(isinstance(needed, Requirement), f"{who} requires {needed!r}: it must be a Requirement.")
        try:
            manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
        except XatlasError as error:
            raise XatlasError(f"{who} requires what can't be measured: {error}") from None


@checked
def check_probe(probe_class: type[Probe], model: HookedModel | None = None) -> None:
    """Check a probe: what it declares, and what it returns for a tiny model and suite.

    It must return what it declared, with reasons for NaN; leave model, tokenizer and torch as they were, weights too
    unless it mutates; and return the same numbers for the same seed, with a checkpoint, and when it is resumed from
    one that holds a part of a run. ``model`` is by default a tiny random one.
    """
    who = _check_class(probe_class, Probe)
    _check_declared(probe_class, who)
    probe = probe_class()
    _check_requirements(probe.requires, who)
    model = model or testing.model_with(probe.sites)
    dataset = _measure_tiny(probe_class(**probe_class.check_parameters), model, Checkpoint())
    if probe.replicate is not None and all(probe.replicate not in v.dims for v in probe.variables.values()):
        advice = "keep values per replicate, or declare replicate = None."
        raise XatlasError(f"{who} has no variable with the dimension '{probe.replicate}': {advice}")
    if probe.replicate == "prompt" and not probe.mutates:
        _check_repeated(probe_class, model, dataset)


def _check_declared(cls: type[Probe], who: str) -> None:
    documented = (cls.__doc__ or "").lower()
    for word in ("unit", "control", "source"):
        rule = "it gives definition, unit, control and source, for xatlas explain prints it."
        must(word in documented, f"the docstring of {who} does not say its {word}: {rule}")
    declared = getattr(cls, "variables", None)
    must(isinstance(declared, Mapping) and declared, f"{who} declares no variables.")
    for name, variable in cls.variables.items():
        described = isinstance(variable, Variable) and variable.units and variable.long_name
        must(described, f"variable '{name}' of {who} must be Variable(dims, units, long_name).")
        twice = len(set(variable.dims)) < len(variable.dims)
        must(not twice, f"variable '{name}' of {who} has a dimension twice: {variable.dims}.")
    kinds = {*SITE_KINDS, *(kind for adapter in manager.adapters().values() for kind in adapter.extra_kinds)}
    for kind in cls.sites:
        if kind not in kinds:
            raise unknown(f"site kind of {who}", kind, kinds)
    try:
        json.dumps(cls().canonical_parameters())
    except TypeError as error:
        raise XatlasError(f"the default parameters of {who} don't fit their types: {error}.") from None


def _check_repeated(probe_class: type[Probe], model: HookedModel, first: xr.Dataset) -> None:
    """Measure again with an empty checkpoint, and once more as a killed run goes on: with half of its parts."""

    def check(checkpoint: Checkpoint, when: str) -> None:
        again = _measure_tiny(probe_class(**probe_class.check_parameters), model, checkpoint)
        for name in map(str, first.data_vars):
            one, other = first[name].values, again[name].values
            if one.dtype.kind == "f":
                same = np.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
            else:
                same = bool((one == other).all())
            must(same, f"probe '{probe_class.name}' gives other numbers for '{name}' {when}.")

    kept = testing.CountingCheckpoint()
    try:
        check(kept, "with the same seed")
    except XatlasError:
        if not kept.found:
            raise
        check(Checkpoint(), "with the same seed")
        when = f"with a checkpoint: two of its parts have one key ({kept.found[0]})"
        raise XatlasError(f"probe '{probe_class.name}' gives other numbers {when}.") from None
    if kept.parts:
        for key in list(kept.parts)[1::2]:
            del kept.parts[key]
        check(kept, "when it is resumed from a checkpoint: its parts depend on what was done before them")


def _measure_tiny(probe: Probe, model: HookedModel, checkpoint: Checkpoint) -> xr.Dataset:
    suite, reference = testing.answered_suite(model), testing.tiny_reference()
    if isinstance(probe, ReadingProbe):  # it costs little, and may need many tokens
        suite = Suite(suite.name, (*suite, *reference))
    return measure_in_memory(probe, model, suite, Inputs(reference=reference, checkpoint=checkpoint))


@checked
def check_comparison(comparison_class: type[Comparison], tree: xr.DataTree | None = None) -> None:
    """Check a comparison: what it requires, and what it makes of two models' results.

    These are ``tree``, ``/{model}/{probe}`` as :func:`xatlas.open` returns it; by default what the comparison requires
    is measured on two tiny random models.
    """
    from matplotlib.figure import Figure

    who = _check_class(comparison_class, Comparison)
    _check_summary(comparison_class, who)
    comparison = comparison_class()
    needed = [item for item in comparison.requires if not getattr(item, "optional", False)]
    must(needed, f"{who} requires no probe: it has nothing to compare.")
    _check_requirements(comparison.requires, who)
    if tree is None:
        kinds = frozenset(kind for item in needed for kind in manager.probes()[item.probe].sites)
        nodes = {}
        for seed, item in itertools.product((0, 1), needed):
            asked = json.dumps(dict(item.parameters), sort_keys=True)
            nodes[f"/small-{seed}/{item.probe}"] = _measured(item.probe, asked, kinds, seed).copy(deep=True)
        tree = xr.DataTree.from_dict(nodes)
    models = [str(name) for name in tree.children]
    dataset = comparison.compare(tree)
    fits = isinstance(dataset, xr.Dataset) and "model" in dataset.dims
    must(fits, f"{who}: compare must return an xarray.Dataset with a 'model' dimension.")
    fits = "model" in dataset.coords and [str(name) for name in dataset["model"].values] == models
    must(fits, f"{who}: the coordinate 'model' must name the models of the tree: {', '.join(models)}.")
    figure = comparison.plot(dataset)
    must(isinstance(figure, Figure), f"{who}: plot must return a matplotlib Figure, not {type(figure).__name__}.")
    must(figure.axes, f"{who}: plot returned a figure without axes.")
    findings = comparison.findings(dataset)
    must(findings, f"{who}: findings must return at least one finding.")
    for finding in findings:
        _check_finding(finding, who)
    rows = comparison.table(dataset)
    fits = isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
    must(fits, f"{who}: table must return a list of rows, each a dict.")
    for name, value in (item for row in rows for item in row.items()):
        fits = isinstance(value, str | int | float | np.number)
        must(fits, f"{who}: the table's column '{name}' holds {type(value).__name__}: use text or numbers.")
    missing = set(models) - {str(row.get("model", "")) for row in rows}
    must(not missing, f"{who}: the table has no row for the model '{min(missing, default='')}' in its column 'model'.")


@functools.cache
def _measured(probe: str, parameters: str, kinds: frozenset[str], seed: int) -> xr.Dataset:
    """Measure once what several comparisons rest on."""
    known = manager.probes()[probe]
    asked = known(**known.check_parameters | json.loads(parameters))
    return _measure_tiny(asked, testing.model_with(kinds, seed=seed), Checkpoint())


def _check_finding(finding: Any, who: str) -> None:
    must(isinstance(finding, Finding), f"{who}: findings must return Finding objects, not {type(finding).__name__}.")
    fits = isinstance(finding.sentence, str) and any(c.isalpha() for c in finding.sentence)
    must(fits, f"{who}: a finding has no sentence.")
    which = f"{who}: the finding '{finding.sentence}'"
    valid = get_args(Verdict)
    must(finding.verdict in valid, f"{which} has the verdict '{finding.verdict}'. Valid: {', '.join(valid)}.")
    numbers = (finding.value, finding.low, finding.high)
    if all(math.isfinite(number) for number in numbers):
        must(finding.low <= finding.value <= finding.high, f"{which} has a value outside its interval: {numbers}.")
    else:
        must(finding.verdict != "supported", f"{which} is supported without a number and its interval.")
    must(math.isnan(finding.p) or 0 <= finding.p <= 1, f"{which} has the p-value {finding.p}.")


def check_suite(suite: SuiteSpec | Suite) -> None:
    """Check a suite: the same each time it is made, with a foil for each twin, and read by a tokenizer of bytes."""
    if isinstance(suite, SuiteSpec):
        who = f"suite '{suite.name}'"
        _check_summary(suite, who)
        if suite.default_for not in ("measure", "reference", None):
            raise unknown(f"default_for of {who}", str(suite.default_for), ("measure", "reference"))
        made, again = suite.load(), suite.load()
        must(isinstance(made, Suite), f"{who}: load must return a Suite, not {type(made).__name__}.")
        must(made.name == suite.name, f"{who} calls itself '{made.name}' when it is made: results show that.")
        must(made.hash == again.hash, f"{who} is another each time it is made: draw from a fixed seed.")
        suite = made
    must(isinstance(suite, Suite), f"check_suite takes a SuiteSpec or a Suite, not {suite!r}.")
    for prompt in suite:
        fits = prompt.corrupt_text is None or prompt.foil is not None
        must(fits, f"suite '{suite.name}': prompt '{prompt.id}' has a twin, but no foil, the twin's answer.")
    # Single prompts may drop out with one tokenizer or another; a family that does is lost.
    dropped = Reader(testing.byte_tokenizer()).suite(suite).dropped
    for family in suite.families:
        left_out = [dropped.get(prompt.id) for prompt in suite if prompt.family == family]
        fault = f"no prompt of family '{family}' can be read: {left_out[0]}"
        must(not all(left_out), f"suite '{suite.name}': {fault}")


def check_source(source: ModelSource) -> None:
    """Check what an alias stands for, as far as this machine knows: the hub is not asked."""
    must(isinstance(source, ModelSource), f"check_source takes a ModelSource, not {source!r}.")
    who = f"model '{source.alias}'"
    _check_summary(source, who)
    if source.kind not in _LOCATIONS:
        raise unknown(f"kind of {who}", str(source.kind), _LOCATIONS)
    shape, rule = _LOCATIONS[source.kind]
    must(re.fullmatch(shape, source.location), f"{who} is at {source.location!r}: {rule}.")
    if source.kind == "folder":
        check_folder(Path(source.location))
    if source.kind == "wheel-gguf":
        fits = source.filename and re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "")
        must(fits, f"{who} needs the name of a file in its wheel, and that file's sha256.")
