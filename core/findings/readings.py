"""Results in a tree as the arithmetic of comparisons sees them: under one setting at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.findings.estimates import Sample, averaged
from xatlas.twins import twins
from xatlas.vocabulary import BOS_HABITS, SCOPES, STANDARD_ABLATIONS

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.contracts.probe import Requirement

#: What every number rests on unless a row says otherwise.
ABLATION, SCOPE = "mean", "last"
#: All kinds, in the order in which they are shown.
ABLATIONS = (ABLATION, *(kind for kind in STANDARD_ABLATIONS if kind != ABLATION))


@dataclass(frozen=True, slots=True)
class Setting:
    """What sensitivity rows vary: ablation kind, scope, position 0, suite, with or without layer 0."""

    ablation: str
    scope: str
    bos: str
    suite: str
    layer0: bool = True

    def __str__(self) -> str:
        ending = "" if self.layer0 else ", layer 0 excluded"
        return f"{self.ablation}, {self.scope}, bos {self.bos}, {self.suite}{ending}"


@dataclass(frozen=True, eq=False)
class Reading:
    """One probe's result for one model, and what it was measured on."""

    model: str  # slug
    called: str  # the name that the user asked for it by
    probe: str
    dataset: xr.Dataset
    suite: str
    bos: str  # always or native

    @cached_property
    def about(self) -> dict[str, Any]:
        """How and on what it was measured, as it is stored with it."""
        found: dict[str, Any] = json.loads(self.dataset.attrs.get("xatlas", "{}"))
        return found

    @cached_property
    def sample(self) -> Sample:
        """Templates within families of the prompts that were measured."""
        return sample_of(self.dataset)

    def holds(self, dim: str, label: str) -> bool:
        """Tell whether a label of a dimension was measured; of a dimension that the result lacks, it was."""
        return dim not in self.dataset.dims or label in self.labels(dim)

    def labels(self, dim: str) -> list[str]:
        """Return the labels of a dimension; none when the result lacks it."""
        return list(map(str, self.dataset[dim].values)) if dim in self.dataset.dims else []


def sample_of(dataset: xr.Dataset) -> Sample:
    """Return the templates within families of a dataset's prompts; of a result without prompts, none."""
    if "prompt" not in dataset.dims:
        return Sample((), ())
    return Sample(dataset["family"].values.tolist(), dataset["template"].values.tolist())


class Effects:
    """One probe's result of one model under one setting: ``effects["kl"]`` is an array of it.

    Arrays are narrowed down to the setting's ablation kind and scope where they have these dimensions, and
    averaged over draws of a control; without layer 0 where the setting says so.
    """

    def __init__(self, reading: Reading, setting: Setting, *, main: bool = True) -> None:
        self.reading, self.setting = reading, setting
        self.model, self.sample = reading.model, reading.sample if main else reading.sample.briefly()
        data = reading.dataset
        if not setting.layer0:
            data = data.isel(layer=slice(1, None))
        for dim, label in (("ablation", setting.ablation), ("scope", setting.scope)):
            if dim in data.dims:
                data = data.sel({dim: label}, drop=True)
        #: All of it.
        self.dataset = data

    def __getitem__(self, name: str) -> xr.DataArray:
        return averaged(self.dataset[name])

    def __contains__(self, name: str) -> bool:
        return name in self.dataset

    @property
    def control(self) -> xr.DataArray | None:
        """``kl_control``, the control of the main ablation kind, with its draws; None under other kinds."""
        own = "kl_control" in self and (
            "ablation" not in self.reading.dataset.dims or self.setting.ablation == ABLATION
        )
        return self.dataset["kl_control"] if own else None

    @property
    def first_layer(self) -> int:
        """Index in the model of the first layer that is looked at."""
        return 0 if self.setting.layer0 else 1


def find(tree: xr.DataTree, model: str, probe: str) -> list[Reading]:
    """Return a model's results of ``probe``: the main one, which must be there, then the variants by name.

    The main one is refused where it has ablations without ``mean`` or scopes without ``last``.
    """
    nodes = tree.children[model].children
    names = sorted(name for name in nodes if name == probe or name.startswith(f"{probe}@"))
    if probe not in names:
        raise XatlasError(
            f"the atlas holds no {probe} of {model}; measure it with: xatlas run {model} --probes {probe}"
        )
    found = [_reading(nodes[name].to_dataset(), model, probe, name.partition("@")[2]) for name in names]
    for dim, label in (("ablation", ABLATION), ("scope", SCOPE)):
        if not found[0].holds(dim, label):
            raise XatlasError(
                f"{probe} of {model} lacks {dim} '{label}', which comparisons rest on; "
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


class Source:
    """All that a comparison may read of one model: a list of results for each of its requirements."""

    def __init__(self, tree: xr.DataTree, model: str, requires: Sequence[Requirement]) -> None:
        nodes = tree.children[model].children
        self.model, self.requires = model, requires
        self.readings = [
            find(tree, model, needed.probe) if needed.probe in nodes or not needed.optional else []
            for needed in requires
        ]
        #: The main results.
        self.mains = [each[0] for each in self.readings if each]

    @property
    def first(self) -> Reading:
        """The main result of the first requirement."""
        return self.mains[0]

    @property
    def usual(self) -> Setting:
        """The main setting."""
        return Setting(ABLATION, SCOPE, self.first.bos, self.first.suite)

    @cached_property
    def settings(self) -> list[Setting]:
        """Every setting under which there is a result, the main one first."""
        found = dict.fromkeys([self.usual])
        for reading in self.readings[0]:
            kinds = [kind for kind in ABLATIONS if kind in reading.labels("ablation")] or [ABLATION]
            scopes: list[str] = [scope for scope in SCOPES if scope in reading.labels("scope")] or [SCOPE]
            layers = (True, False) if reading.dataset.sizes.get("layer", 0) > 1 else (True,)
            for kind in kinds:
                for scope in scopes:
                    for layer0 in layers:
                        found[Setting(kind, scope, reading.bos, reading.suite, layer0)] = None
        return [setting for setting in found if self.effects(setting) is not None]

    @cached_property
    def kinds(self) -> dict[str, Setting] | None:
        """Other ablation kinds that were measured as the main one was; None where there are no kinds."""
        main = self.settings[0]
        if "ablation" not in self.first.dataset.dims:
            return None
        return {each.ablation: each for each in self.settings[1:] if replace(each, ablation=main.ablation) == main}

    def effects(self, setting: Setting, *, brief: bool = False) -> tuple[Effects | None, ...] | None:
        """Return the results under a setting, one a requirement; None where one that is needed lacks it."""
        found: list[Effects | None] = []
        for needed, readings in zip(self.requires, self.readings, strict=True):
            fitting = [
                each
                for each in readings
                if (each.suite, each.bos) == (setting.suite, setting.bos)
                and each.holds("ablation", setting.ablation)
                and each.holds("scope", setting.scope)
            ]
            if not fitting and not needed.optional:
                return None
            found.append(Effects(fitting[0], setting, main=setting == self.usual and not brief) if fitting else None)
        return tuple(found)


def models(tree: xr.DataTree) -> dict[str, list[str]]:
    """Return the slugs of the models in the tree, in its order, each with its untrained twins'; none is an error."""
    found = twins(tree)
    if not found:
        raise XatlasError("the atlas holds no model; measure one with: xatlas run MODEL")
    return found
