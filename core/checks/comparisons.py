"""What every comparison must keep to: what it requires, and what it makes of two models' results."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import xarray as xr

from xatlas import manager
from xatlas.checks.probes import check_abstract, check_name, check_requirement, checked, measure_small
from xatlas.contracts.comparison import Comparison, Finding, Verdict
from xatlas.errors import XatlasError, unknown
from xatlas.loading.hub import ModelSource
from xatlas.loading.weights import check_folder
from xatlas.prompts.reader import Reader
from xatlas.suites import Suite, SuiteSpec
from xatlas.testing import byte_tokenizer, model_with

if TYPE_CHECKING:
    from xatlas.contracts.probe import Probe


def check_suite(suite: SuiteSpec | Suite) -> None:
    """Check a suite: the same each time it is made, with a foil for each twin, and read by a tokenizer of bytes.

    Parameters
    ----------
    suite : SuiteSpec or Suite
        As a plugin returns it, or the suite itself.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    if isinstance(suite, SuiteSpec):
        _check_summary(suite, f"suite '{suite.name}'")
        if suite.default_for not in ("measure", "reference", None):
            raise unknown(f"default_for of suite '{suite.name}'", str(suite.default_for), ("measure", "reference"))
        made, again = suite.load(), suite.load()
        if not isinstance(made, Suite):
            raise XatlasError(f"suite '{suite.name}': load must return a Suite, not {type(made).__name__}.")
        if made.name != suite.name:
            raise XatlasError(f"suite '{suite.name}' calls itself '{made.name}' when it is made: results show that.")
        if made.hash != again.hash:
            raise XatlasError(f"suite '{suite.name}' is another each time it is made: draw from a fixed seed.")
        suite = made
    if not isinstance(suite, Suite):
        raise XatlasError(f"check_suite takes a SuiteSpec or a Suite, not {suite!r}.")
    for prompt in suite:
        if prompt.corrupt_text is not None and prompt.foil is None:
            raise XatlasError(f"suite '{suite.name}': prompt '{prompt.id}' has a twin, but no foil, the twin's answer.")
    # Single prompts may drop out with one tokenizer or another; a family that does is lost.
    dropped = Reader(byte_tokenizer()).suite(suite).dropped
    for family in suite.families:
        left_out = [dropped.get(prompt.id) for prompt in suite if prompt.family == family]
        if all(left_out):
            raise XatlasError(f"suite '{suite.name}': no prompt of family '{family}' can be read: {left_out[0]}")


def check_source(source: ModelSource) -> None:
    """Check what an alias stands for, as far as this machine knows: the hub is not asked.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    if not isinstance(source, ModelSource):
        raise XatlasError(f"check_source takes a ModelSource, not {source!r}.")
    who = f"model '{source.alias}'"
    _check_summary(source, who)
    kinds = ("hub", "folder", "wheel-gguf")
    if source.kind not in kinds:
        raise unknown(f"kind of {who}", str(source.kind), kinds)
    if source.kind == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.location):
        raise XatlasError(f"{who} is at {source.location!r}: a hub id is owner/model, without a revision.")
    if source.kind == "folder":
        if not Path(source.location).is_absolute():
            raise XatlasError(f"{who} is at {source.location!r}: a folder is given by its absolute path.")
        check_folder(Path(source.location))
    pinned = source.filename and re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "")
    if source.kind == "wheel-gguf" and not (pinned and re.fullmatch(r"[\w.-]+==[\w.]+", source.location)):
        raise XatlasError(f"{who} needs a pinned wheel (name==version), the file's name in it and that file's sha256.")


def _check_summary(described: SuiteSpec | ModelSource, who: str) -> None:
    summary = described.summary
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise XatlasError(f"{who} has no summary: one sentence for the list.")


VERDICTS = get_args(Verdict)


@checked
def check_comparison(comparison_class: type[Comparison], tree: xr.DataTree | None = None) -> None:
    """Check a comparison: what it requires, and what it makes of two models' results.

    Parameters
    ----------
    comparison_class : type of Comparison
        The comparison.
    tree : DataTree, optional
        ``/{model}/{probe}`` as :func:`xatlas.open` returns it; by default what it requires is measured on two
        small random models.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    from matplotlib.figure import Figure

    comparison = _declared_comparison(comparison_class)
    who = f"comparison '{comparison.name}'"
    tree = _small_tree(comparison) if tree is None else tree
    models = [str(name) for name in tree.children]
    dataset = comparison.compare(tree)
    if not isinstance(dataset, xr.Dataset) or "model" not in dataset.dims:
        raise XatlasError(f"{who}: compare must return an xarray.Dataset with a 'model' dimension.")
    if "model" not in dataset.coords or [str(name) for name in dataset["model"].values] != models:
        raise XatlasError(f"{who}: the coordinate 'model' must name the models of the tree: {', '.join(models)}.")
    figure = comparison.plot(dataset)
    if not isinstance(figure, Figure):
        raise XatlasError(f"{who}: plot must return a matplotlib Figure, not {type(figure).__name__}.")
    if not figure.axes:
        raise XatlasError(f"{who}: plot returned a figure without axes.")
    findings = comparison.findings(dataset)
    if not findings:
        raise XatlasError(f"{who}: findings must return at least one finding.")
    for finding in findings:
        _check_finding(finding, who)
    _check_table(comparison.table(dataset), models, who)


def _declared_comparison(cls: type[Comparison]) -> Comparison:
    if not (isinstance(cls, type) and issubclass(cls, Comparison)):
        raise XatlasError(f"check_comparison takes a subclass of Comparison, not {cls!r}.")
    check_abstract(cls)
    check_name(cls, "comparison")
    summary = getattr(cls, "summary", "")
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise XatlasError(f"comparison '{cls.name}' has no summary: one sentence for xatlas comparisons.")
    comparison = cls()
    if all(needed.optional for needed in comparison.requires):
        raise XatlasError(f"comparison '{cls.name}' requires no probe: it has nothing to compare.")
    for needed in comparison.requires:
        check_requirement(needed, f"comparison '{cls.name}'")
    return comparison


def _small_tree(comparison: Comparison) -> xr.DataTree:
    """Return what a comparison requires, measured on two small models that differ in their weights."""
    needed = [item for item in comparison.requires if not item.optional]
    kinds = frozenset(kind for item in needed for kind in manager.probes()[item.probe].sites)
    nodes = {
        f"/small-{seed}/{item.probe}": _measured(
            manager.probes()[item.probe], json.dumps(dict(item.parameters), sort_keys=True), kinds, seed
        ).copy(deep=True)
        for seed in (0, 1)
        for item in needed
    }
    return xr.DataTree.from_dict(nodes)


@cache
def _measured(probe: type[Probe], parameters: str, kinds: frozenset[str], seed: int) -> xr.Dataset:
    """Measure once what several comparisons rest on."""
    return measure_small(probe(**json.loads(parameters)), model_with(kinds, seed=seed))


def _check_finding(finding: Any, who: str) -> None:
    if not isinstance(finding, Finding):
        raise XatlasError(f"{who}: findings must return Finding objects, not {type(finding).__name__}.")
    told = f"{who}: the finding '{finding.sentence}'"
    if not isinstance(finding.sentence, str) or not any(c.isalpha() for c in finding.sentence):
        raise XatlasError(f"{who}: a finding has no sentence.")
    if finding.verdict not in VERDICTS:
        raise XatlasError(f"{told} has the verdict '{finding.verdict}'. Valid: {', '.join(VERDICTS)}.")
    numbers = (finding.value, finding.low, finding.high)
    if not all(math.isfinite(number) for number in numbers):
        if finding.verdict == "supported":
            raise XatlasError(f"{told} is supported without a number and its interval.")
    elif not finding.low <= finding.value <= finding.high:
        raise XatlasError(f"{told} has a value outside its interval: {numbers}.")
    if not (math.isnan(finding.p) or 0 <= finding.p <= 1):
        raise XatlasError(f"{told} has the p-value {finding.p}.")


def _check_table(rows: Any, models: list[str], who: str) -> None:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise XatlasError(f"{who}: table must return a list of rows, each a dict.")
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, str | int | float | np.number):
                raise XatlasError(
                    f"{who}: the table's column '{name}' holds {type(value).__name__}: use text or numbers."
                )
    missing = [model for model in models if not any(str(row.get("model", "")) == model for row in rows)]
    if missing:
        raise XatlasError(f"{who}: the table has no row for the model '{missing[0]}' in its column 'model'.")
