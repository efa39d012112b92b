"""What the comparisons share: finding results in a tree, and reducing them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.errors import XatlasError
from xatlas.stats import Clusters, Floats
from xatlas.vocabulary import BOS_HABITS, STANDARD_ABLATIONS

if TYPE_CHECKING:
    import xarray as xr

#: What every number rests on unless a row says otherwise.
ABLATION, SCOPE = "mean", "last"
#: All kinds, in the order in which they are shown.
ABLATIONS = (ABLATION, *(kind for kind in STANDARD_ABLATIONS if kind != ABLATION))


@dataclass(frozen=True, eq=False)
class Reading:
    """One probe's result for one model, and what it was measured on.

    Parameters
    ----------
    model : str
        The model's slug.
    called : str
        The name that the user asked for it by.
    probe : str
        Name of the probe.
    dataset : Dataset
        The stored result.
    suite, bos : str
        Name of the suite, and ``always`` or ``native``.
    """

    model: str
    called: str
    probe: str
    dataset: xr.Dataset
    suite: str
    bos: str

    @cached_property
    def about(self) -> dict[str, Any]:
        """How and on what it was measured, as it is stored with it."""
        found: dict[str, Any] = json.loads(self.dataset.attrs.get("xatlas", "{}"))
        return found

    @cached_property
    def clusters(self) -> Clusters:
        """Templates within families of the prompts that were measured."""
        return Clusters(self.dataset["family"].values.tolist(), self.dataset["template"].values.tolist())

    @cached_property
    def _drawn(self) -> dict[tuple[str, ...], tuple[Floats, Floats]]:
        return {}

    def holds(self, ablation: str, scope: str) -> bool:
        """Tell whether this ablation kind and scope were measured."""
        return ablation in self.ablations and scope in self.scopes

    @cached_property
    def ablations(self) -> frozenset[str]:
        """Ablation kinds that were measured."""
        return frozenset(map(str, self.dataset["ablation"].values))

    @cached_property
    def scopes(self) -> frozenset[str]:
        """Scopes that were measured."""
        return frozenset(map(str, self.dataset["scope"].values))

    def values(self, variable: str, ablation: str = ABLATION, scope: str = SCOPE) -> Floats:
        """Return ``(prompt, layer, component or head)`` of one variable, the mean of its draws; NaN if not measured."""
        if variable not in self.dataset:
            return np.full_like(self.values("kl", ablation, scope), np.nan)
        chosen = self.dataset[variable].sel(scope=scope)
        chosen = chosen.sel(ablation=ablation) if "ablation" in chosen.dims else chosen
        chosen = chosen.mean("draw", skipna=False) if "draw" in chosen.dims else chosen
        return np.asarray(chosen.values, dtype=float)

    def macro(self, variable: str, ablation: str = ABLATION, scope: str = SCOPE) -> tuple[Floats, Floats]:
        """Return the family-macro average ``(layer, …)`` and its bootstrap draws ``(draw, layer, …)``."""
        key = (variable, ablation, scope)
        if key not in self._drawn:
            values = self.values(*key)
            self._drawn[key] = self.clusters.macro(values), self.clusters.macro_draws(values)
        return self._drawn[key]


def find(tree: xr.DataTree, model: str, probe: str) -> list[Reading]:
    """Return a model's results of ``probe``: the main one first, then the variants by name.

    Raises
    ------
    XatlasError
        The main result is missing.
    """
    nodes = tree.children[model].children
    names = sorted(name for name in nodes if name == probe or name.startswith(f"{probe}@"))
    if probe not in names:
        raise XatlasError(
            f"the atlas holds no {probe} of {model}; measure it with: xatlas run {model} --probes {probe}"
        )
    return [_reading(nodes[name].to_dataset(), model, probe, name.partition("@")[2]) for name in names]


def read(tree: xr.DataTree, model: str, probe: str) -> list[Reading]:
    """Return what :func:`find` does, of a probe that ablates.

    Raises
    ------
    XatlasError
        The main result is missing, or lacks ablation ``mean`` or scope ``last``.
    """
    found = find(tree, model, probe)
    if not found[0].holds(ABLATION, SCOPE):
        raise XatlasError(
            f"{probe} of {model} lacks ablation '{ABLATION}' or scope '{SCOPE}', which comparisons rest on; "
            f"measure it with: xatlas run {found[0].called} --probes {probe}"
        )
    return found


def _reading(dataset: xr.Dataset, model: str, probe: str, variant: str) -> Reading:
    about = json.loads(dataset.attrs.get("xatlas", "{}"))
    said = dict(part.split("=", 1) for part in variant.split(",") if "=" in part)
    suite = (about.get("suite") or {}).get("name") or said.get("suite", "unnamed")
    bos = (about.get("job") or {}).get("bos") or said.get("bos", BOS_HABITS[0])
    asked = about.get("model")
    called = (asked.get("name") if isinstance(asked, dict) else None) or model
    return Reading(model, called, probe, dataset, str(suite), str(bos))


def models(tree: xr.DataTree) -> list[str]:
    """Return the slugs of the models in the tree, in its order.

    Raises
    ------
    XatlasError
        There is none.
    """
    found = [str(name) for name in tree.children]
    if not found:
        raise XatlasError("the atlas holds no model; measure one with: xatlas run MODEL")
    return found


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval, under one setting."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
