"""From results in a tree to findings: what every comparison of models shares."""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas.contracts.comparison import Comparison, Finding
from xatlas.findings import readings
from xatlas.findings.estimates import Statistic
from xatlas.findings.groups import welch
from xatlas.findings.readings import ABLATION, SCOPE, Setting, Source
from xatlas.findings.sensitivity import not_run
from xatlas.findings.sentences import DASHES, Row, dataset_of, described, findings_of, in_full, in_short
from xatlas.findings.verdict import Claim, Evidence
from xatlas.stats import DRAWS
from xatlas.twins import training_seed

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from xatlas.contracts.probe import Variable
    from xatlas.findings.readings import Effects

#: Name → evidence, or the number that it is made from; None where there is none.
Estimates = Mapping[str, Evidence | Statistic | None]
#: Training seeds of each architecture that a sentence about architectures needs.
SEEDS = 5


class ClaimComparison(Comparison):
    """A comparison that declares its claims and gets everything else from them.

    A subclass gives ``name``, ``version``, ``summary``, ``requires``, ``claims``, and :meth:`estimate`: a dozen lines
    of arithmetic on labelled arrays. Intervals, p-values, verdicts with reasons, sentences, rows of the table,
    sensitivity to other settings, pairs of models, architectures and untrained twins follow. For another figure than
    that of these numbers it gives :meth:`describe` with ``variables``, and :meth:`plot`.

    :meth:`compare` returns what ``variables`` declares with ``model`` as its first dimension, coordinates ``depth`` and
    ``operator_type (model, layer)``, and for every claim about a model or a pair: ``finding_number``,
    ``finding_control (finding, bound)``, ``finding_p``, ``finding_p_adjusted``, ``finding_verdict``,
    ``finding_reason``, ``finding_sentence (finding)`` and more, ``sensitivity (finding, setting, bound)`` and
    ``twin (finding, twin, bound)``. Its attribute ``not_run`` lists, as JSON, runs that the atlas lacks, with commands.
    """

    claims: ClassVar[tuple[Claim, ...]] = ()
    #: What :meth:`describe` returns, without the dimension ``model``.
    variables: ClassVar[Mapping[str, Variable]] = {}
    #: Why values of a variable are NaN.
    absent: ClassVar[Mapping[str, str]] = {}
    #: Variables that figures draw of untrained twins, too: what these have is ``NAME_untrained (model, untrained, …)``.
    curves: ClassVar[tuple[str, ...]] = ()
    uses_twins: ClassVar[bool] = True
    #: Whether the table is narrow: its cells are those of ``in_short``.
    narrow: ClassVar[bool] = False
    #: What the table says of a model about which nothing was found ("no attention"); empty: such have no row.
    nothing: ClassVar[str] = ""

    @abstractmethod
    def estimate(self, *effects: Effects) -> Estimates:
        """Return claim → its evidence for one model, from one argument per requirement (None: an optional one)."""

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return claim → evidence about two models that is no difference of two numbers."""
        return {}

    def pair(self, claim: Claim, first: Evidence, second: Evidence) -> Evidence | None:
        """Return evidence that two models differ in what a claim is about; by default from their statistics."""
        if first.statistic is None or second.statistic is None:
            return None
        found = (first.statistic - second.statistic).evidence(margin=claim.margin)
        if math.isnan(found.control[0]):  # numbers without a control differ from no difference
            found = replace(found, control=(1.0 if first.statistic.log else 0.0, math.nan, math.nan))
        beside = " and the difference of the controls" if math.isfinite(found.control[1]) else ""
        blocked = first.blocked or second.blocked or found.blocked
        return replace(found, against=f"no difference{beside}", blocked=blocked)

    def architectures(self, claim: Claim, first: Sequence[Evidence], second: Sequence[Evidence]) -> Evidence | None:
        """Return evidence that two architectures differ, from that of their training seeds: by default, its numbers."""
        held = [[each.statistic for each in some if each.statistic is not None] for some in (first, second)]
        if list(map(len, held)) != [len(first), len(second)]:
            return None
        log = held[0][0].log
        numbers = [[float(each.point) for each in some] for some in held]
        found = welch(*numbers, log=log, margin=claim.margin)
        controls = [[each.control for each in some if each.control is not None] for some in held]
        if list(map(len, controls)) != list(map(len, held)):
            return found
        chance = [[float(each.point) for each in some] for some in controls]
        beyond = [[a - b for a, b in zip(*both, strict=True)] for both in zip(numbers, chance, strict=True)]
        over, beside = welch(*beyond, log=log), welch(*chance, log=log)
        return replace(
            found,
            p=max(found.p, over.p),
            side=found.side * over.side * (1 if found.answer == over.answer else -1),
            own=found.side,
            against=f"{found.against}, and their controls",
            control=beside.number,
        )

    def describe(self, *effects: Effects) -> Mapping[str, Any]:
        """Return what figures and tables show of one model: arrays, or single numbers and texts."""
        return {}

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset that the class describes; a tree without a model or a required result is refused."""
        named = readings.models(tree)
        sources = {model: Source(tree, model, self.requires) for model in named}
        twins = {model: [Source(tree, twin, self.requires) for twin in own] for model, own in named.items()}
        about = {model: self._about(source, twins[model]) for model, source in sources.items()}
        rows = [row for each in about.values() for row in each]
        for first, second in pairs(list(named)):
            beside = list(zip(twins[first], twins[second], strict=False))
            rows += self._pair(sources[first], sources[second], about[first], about[second], beside)
        rows += self._architectures(about)
        missing = not_run(tree, sources.values())
        data = self._assemble(sources, rows).merge(self._untrained(twins), join="left")
        return data.assign_attrs(not_run=json.dumps(missing))

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Return the findings that a dataset holds, as they were decided."""
        return list(findings_of(dataset))

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw every number about a model with its interval."""
        return _forest(self.findings(dataset), self._labels(), self.summary)

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per finding about a model, and one with dashes for a model that has ``nothing``."""
        rows: list[dict[str, str | float]] = []
        for finding in self.findings(dataset):
            if not finding.model_other:
                called = self.called(finding.name, dataset.sel(model=finding.model))
                cells = in_short(finding) if self.narrow else in_full(finding)
                rows.append({"model": finding.model, "number": called, **cells})
        bare = set(map(str, dataset["model"].values if self.nothing else ())) - {str(row["model"]) for row in rows}
        return rows + [{"model": model, "number": self.nothing, "value": "–", **DASHES} for model in sorted(bare)]

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return what the table calls the number of a claim about one model."""
        return self._labels().get(name, name)

    def _labels(self) -> dict[str, str]:
        return {claim.name: claim.label or claim.name for claim in self.claims}

    def _under(self, source: Source, setting: Setting) -> dict[str, Evidence]:
        effects = source.effects(setting)
        return self._evidence(self.estimate(*effects) if effects else {})  # type: ignore[arg-type]

    def _evidence(self, found: Estimates) -> dict[str, Evidence]:
        margins = {claim.name: claim.margin for claim in self.claims}
        return {
            name: each if isinstance(each, Evidence) else each.evidence(margin=margins.get(name))
            for name, each in found.items()
            if each is not None
        }

    def _about(self, source: Source, twins: Sequence[Source]) -> list[Row]:
        under = {setting: self._under(source, setting) for setting in source.settings}
        beside = [self._under(twin, twin.settings[0]) for twin in twins]
        main = under[source.settings[0]]
        rows = []
        for claim in self.claims:
            if claim.name not in main:
                continue
            settings = {setting: each[claim.name] for setting, each in under.items() if claim.name in each}
            kinds = _kinds(claim, source, settings)
            near = [each[claim.name] for each in beside if claim.name in each]
            rows.append(Row(claim, (source.model,), main[claim.name], kinds, settings, near))
        return rows

    def _pair(
        self,
        one: Source,
        two: Source,
        first: Sequence[Row],
        second: Sequence[Row],
        twins: Sequence[tuple[Source, Source]],
    ) -> list[Row]:
        """Return the claims about two models: differences of their numbers, and what ``between`` says of them."""
        shared = [setting for setting in one.settings if setting in two.settings]
        rows = []
        for a, b in itertools.product(first, second):
            if a.claim is b.claim and a.claim.pair:
                both = {s: (a.settings[s], b.settings[s]) for s in shared if s in a.settings and s in b.settings}
                found = {setting: self.pair(a.claim, *each) for setting, each in both.items()}
                settings = {setting: each for setting, each in found.items() if each is not None}
                main = self.pair(a.claim, a.evidence, b.evidence)
                if main is not None:
                    kinds = _kinds(a.claim, one, settings)
                    rows.append(Row(a.claim, (one.model, two.model), main, kinds, settings))

        def between(*effects: tuple[Effects | None, ...] | None) -> dict[str, Evidence]:
            return self._evidence(self.between(*(each or () for each in effects)))  # type: ignore[arg-type]

        under = {s: between(one.effects(s), two.effects(s)) for s in shared}
        beside = [between(*(each.effects(each.settings[0], brief=True) for each in pair)) for pair in twins]
        for claim in self.claims:
            settings = {s: each[claim.name] for s, each in under.items() if claim.name in each}
            if settings and one.settings[0] in settings:
                main, kinds = settings[one.settings[0]], _kinds(claim, one, settings)
                near = [each[claim.name] for each in beside if claim.name in each]
                rows.append(Row(claim, (one.model, two.model), main, kinds, settings, near))
        return rows

    def _architectures(self, about: Mapping[str, Sequence[Row]]) -> list[Row]:
        """Return claims about architectures, where a name was given with several training seeds."""
        groups: dict[str, list[str]] = {}
        for model in about:
            groups.setdefault(training_seed(model)[0], []).append(model)
        rows = []
        for first, second in itertools.combinations(groups, 2):
            for claim in self.claims if max(len(groups[first]), len(groups[second])) > 1 else ():
                seeds = [
                    [
                        row.evidence
                        for model in groups[name]
                        for row in about[model]
                        if row.claim is claim and not math.isnan(row.evidence.number[0])
                    ]
                    for name in (first, second)
                ]
                found = self.architectures(claim, *seeds) if claim.pair and all(seeds) else None
                if found is not None:
                    if min(map(len, seeds)) < SEEDS:
                        found = replace(found, blocked="too few training seeds")
                    counts = {name: len(groups[name]) for name in (first, second)}
                    names = [f"{name} ({count} seed{'s' if count > 1 else ''})" for name, count in counts.items()]
                    rows.append(Row(replace(claim, unit="architecture"), (names[0], names[1]), found))
        return rows

    def _untrained(self, twins: Mapping[str, Sequence[Source]]) -> xr.Dataset:
        """Return the curves of every model's untrained twins, without intervals."""
        import xarray as xr

        held = {}
        for model, own in twins.items():
            effects = [twin.effects(twin.settings[0], brief=True) for twin in own if self.curves]
            described = [self.describe(*each) for each in effects if each is not None]  # type: ignore[arg-type]
            each = [xr.Dataset({name: found[name] for name in self.curves if name in found}) for found in described]
            if each:
                of_model = xr.concat(each, xr.Variable("untrained", range(len(each))))
                held[model] = of_model.sel(bound="value", drop=True) if "bound" in of_model.dims else of_model
        if not held:
            return xr.Dataset()
        data = xr.concat(list(held.values()), xr.Variable("model", list(held)), join="outer")
        for name in data.data_vars:
            promised = self.variables[str(name)]
            order = ("model", "untrained", *(dim for dim in promised.dims if dim != "bound"))
            data[name] = data[name].transpose(*order)
            data[name].attrs = {"units": promised.units, "long_name": f"{promised.long_name}, in untrained twins"}
        return data.rename({name: f"{name}_untrained" for name in data.data_vars})

    def _assemble(self, sources: Mapping[str, Source], rows: Sequence[Row]) -> xr.Dataset:
        import xarray as xr

        shown = [self.describe(*(source.effects(source.settings[0]) or ())) for source in sources.values()]  # type: ignore[arg-type]
        each = [
            xr.Dataset(dict(found)).assign_coords(_layers(source))
            for found, source in zip(shown, sources.values(), strict=True)
        ]
        data = xr.concat(each, xr.Variable("model", list(sources)), join="outer", combine_attrs="drop")
        for name in data.variables:
            if data[name].dtype == object:  # padding of texts
                data[name] = data[name].fillna("").astype(str)
        data = data.merge(dataset_of(rows), compat="override")  # assigning would lose ``twin``: its dimension's name
        for name, promised in self.variables.items():
            if name in data:  # an optional result may be one that no model has
                data[name] = data[name].transpose("model", *promised.dims)
                data[name].attrs = {"units": promised.units, "long_name": promised.long_name}
        if "depth" in data:
            data["depth"].attrs = {"units": "1", "long_name": "layer / (number of layers - 1)"}
        inputs = {model: json.loads(s.first.dataset.attrs.get("xatlas", "{}")) for model, s in sources.items()}
        suite = footer([source.first for source in sources.values()])
        return described(data, self, suite, dict(sorted(self.absent.items())), {"draws": DRAWS}, inputs=inputs)


def pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the models that are compared: every two, or of several training seeds those trained from the same one.

    Where two architectures both come in several training seeds, data and order of training are the same seed by seed.
    How much seeds of one architecture differ is asked where no other is named.
    """
    of = {model: training_seed(model) for model in models}
    seeds = Counter(name for name, _ in of.values())

    def compared(first: str, second: str) -> bool:
        (one, a), (other, b) = of[first], of[second]
        return len(seeds) == 1 if one == other else a == b or min(seeds[one], seeds[other]) == 1

    return [pair for pair in itertools.combinations(models, 2) if compared(*pair)]


def _kinds(claim: Claim, source: Source, settings: Mapping[Setting, Evidence]) -> dict[str, Evidence] | None:
    if not claim.kinds or source.kinds is None:
        return None
    found = {kind: settings[setting] for kind, setting in source.kinds.items() if setting in settings}
    return {kind: each for kind, each in found.items() if each.answer is not None}


def _layers(source: Source) -> dict[str, Any]:
    data = source.first.dataset
    return {name: data[name] for name in ("depth", "operator_type") if name in data.coords and data[name].dims}


def footer(mains: Sequence[readings.Reading], measured: str = "") -> str:
    """Say what numbers rest on: suites, families, prompts, what was done and read, position 0."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for main in mains:
        key = (main.suite, len(main.sample.clusters.families), main.bos)
        groups.setdefault(key, []).append(main.dataset.sizes.get("prompt", 0))
    parts = []
    for (suite, families, bos), sizes in groups.items():
        count = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        of = "1 family" if families == 1 else f"{families} families"
        parts.append(f"suite {suite} ({of}, {count} prompts), bos {bos}" if families else f"suite {suite}, bos {bos}")
    if not measured and "ablation" in mains[0].dataset.dims:
        measured = f"ablation {ABLATION}, KL at the {SCOPE} position"
    over = "templates" if "prompt" in mains[0].dataset.dims else "training seeds"
    return "; ".join([*parts, *([measured] if measured else []), f"95 % intervals over {over}"])


def _forest(findings: Sequence[Finding], labels: Mapping[str, str], title: str) -> Figure:
    """Return one panel a claim about models: points with 95 % intervals, filled where supported, and controls."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [finding for finding in findings if not finding.model_other]
    names = list(dict.fromkeys(finding.name for finding in shown)) or [""]
    models = list(dict.fromkeys(finding.model for finding in shown))
    size = (2.4 + 2.8 * len(names), 1.4 + 0.32 * max(1, len(models)))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(title, int(11 * size[0])), fontsize="medium")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        for finding in (each for each in shown if each.name == name):
            row, filled = models.index(finding.model), finding.verdict == "supported"
            axes.plot([finding.low, finding.high], [row, row], color="black", lw=1)
            axes.plot(finding.value, row, "o", color="black", mfc="black" if filled else "white")
            axes.plot(finding.control, row, "x", color="0.5")
        axes.set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.5))
        axes.set_xlabel(labels.get(name, name))
    marks = {
        "supported": ("o", "black", "black"),
        "not supported": ("o", "black", "white"),
        "control": ("x", "0.5", "0.5"),
    }
    handles = [Line2D([], [], ls="", marker=m, color=c, mfc=f, label=what) for what, (m, c, f) in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure
