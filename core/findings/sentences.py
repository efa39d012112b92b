"""From rows to findings: judged, put into sentences, kept in a dataset, and summed up in a few lines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.contracts.comparison import Comparison, Finding
from xatlas.findings.estimates import BOUND
from xatlas.findings.readings import Setting
from xatlas.findings.verdict import ONE_KIND, Claim, Evidence, adjusted, margin, verdict
from xatlas.text import interval, number

if TYPE_CHECKING:
    import xarray as xr

#: Order in which findings are shown.
_ORDER = ("supported", "artefact", "refuted", "undecided")
#: Reasons that are told, the others being counted together; models, and pairs of them, that are named.
_REASONS, _MODELS, _PAIRS = 4, 5, 3


@dataclass
class Row:
    """A claim about a model or a pair on its way to a finding."""

    claim: Claim
    models: tuple[str, ...]
    evidence: Evidence
    kinds: dict[str, Evidence] | None = None  # under other ablation kinds
    settings: dict[Setting, Evidence] = field(default_factory=dict)
    twins: list[Evidence] = field(default_factory=list)


def decide(rows: Iterable[Any]) -> list[Finding]:
    """Judge claims: p-values are adjusted over those about the same model, pair or architectures."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.models, row.claim.unit == "architecture"), []).append(row)
    found = []
    for group in groups.values():
        evidence, contrasts = [row.evidence for row in group], [row.claim.contrast for row in group]
        ps, leasts = (adjusted(evidence, contrasts, least=least) for least in (False, True))
        for row, p, least in zip(group, ps, leasts, strict=True):
            judged = replace(row.evidence, least_p=0.0 if math.isnan(least) else least)
            found.append(_finding(replace(row, evidence=judged), p))
    return found


def _finding(row: Row, p: float) -> Finding:
    claim, evidence = row.claim, row.evidence
    # a claim about two models that is no difference of two numbers is judged like one about a model
    differs = len(row.models) > 1 and bool(claim.pair)
    about = "pair" if differs else "claim"
    said, reason = verdict(evidence, p, row.kinds, unit=claim.unit, about=about)
    others = list(row.settings.items())[1:]
    other = {setting: each for setting, each in others if each.answer is not None}
    differing = [setting for setting, each in other.items() if not evidence.agrees(each)]
    learnt = _learnt(row)
    value, low, high = evidence.number
    return Finding(
        sentence=_sentence(row, said, differs, learnt) + (claim.advice if reason == ONE_KIND else ""),
        value=value,
        low=low,
        high=high,
        control=evidence.control[0],
        p=evidence.equal_p if evidence.equal else evidence.p,
        against="a larger difference" if evidence.equal else evidence.against,
        verdict=said,
        model=row.models[0],
        p_adjusted=None if math.isnan(p) else p,
        reason=reason,
        name=claim.name,
        model_other=row.models[1] if len(row.models) > 1 else "",
        control_low=evidence.control[1],
        control_high=evidence.control[2],
        settings=len(other),
        agree=len(other) - len(differing),
        alike=sum(
            claim.units != "1" or low <= each.number[0] <= high for each in other.values() if evidence.agrees(each)
        ),
        depends_on=_varied(next(iter(row.settings), None), differing),
        learnt=learnt,
        short=_short(row, said, differs),
        descriptive=evidence.descriptive,
        unit=claim.unit,
    )


def _sentence(row: Row, said: str, differs: bool, learnt: bool | None) -> str:
    number, control = (interval(*bounds) for bounds in (row.evidence.number, row.evidence.control))
    if differs:
        one, two = row.models
        noun = row.claim.pair[0].upper() + row.claim.pair[1:]
        if said == "supported" and row.evidence.equal:
            alike = row.claim.alike or f"{noun} is the same in {{first}} and {{second}}"
            text = alike.format_map({**row.evidence.words, "first": one, "second": two})
        elif said == "supported":
            text = f"{noun} differs between {one} and {two}"
        elif said == "refuted":
            text = f"{noun} differs between {one} and {two} beyond their controls"
        else:
            text = f"Whether {row.claim.pair} differs between {one} and {two} is open"
        relation = "ratio" if row.evidence.log else "difference"
        beside = f", control {control}" if row.evidence.own is not None else ""
        within = f", {margin(row.evidence)}" if row.evidence.equal else ""
        return f"{text}: {relation} {number}{beside}{within}."
    places = dict(zip(("first", "second"), row.models, strict=False)) | {"model": row.models[0]}
    text = row.claim.sentence.format_map({**row.evidence.words, **places, "number": number, "control": control})
    if learnt is not None and said == "supported":
        count = len(row.twins)
        text += f"; learnt: beyond {count} untrained twins" if learnt else f"; no more than in {count} untrained twins"
    return f"{text}."


def _short(row: Row, said: str, differs: bool) -> str:
    if differs and said == "supported":
        return f"{row.claim.pair} {'is the same' if row.evidence.equal else 'differs'}"
    if differs:
        return row.claim.pair
    if said != "supported":  # no side is taken that the verdict does not support
        return row.claim.label.partition(",")[0] or row.claim.name
    return row.claim.short.format_map(dict(row.evidence.words)) if row.claim.short else ""


def _learnt(row: Row) -> bool | None:
    """Tell whether the interval lies beyond every twin's, all on one side; None where one is unknown."""
    low, high = row.evidence.compared[1:]
    if not row.twins or math.isnan(low):
        return None
    ends = [twin.compared[1:] for twin in row.twins if not math.isnan(twin.compared[1])]
    beyond = all(low > end[1] for end in ends) or all(high < end[0] for end in ends)
    return None if beyond and len(ends) < len(row.twins) else beyond


def _varied(main: Setting | None, differing: Sequence[Setting]) -> str:
    """Name what the settings with another answer vary: those that vary one thing only, if there are any."""
    if main is None:
        return ""
    words = {"ablation": "ablation kind", "scope": "scope", "bos": "position 0", "suite": "suite", "layer0": "layer 0"}
    varied = [[name for name in words if getattr(each, name) != getattr(main, name)] for each in differing]
    single = [names for names in varied if len(names) == 1]
    counted = Counter(name for names in single or varied for name in names)
    return ", ".join(words[name] for name in words if name in counted)


def robustness(finding: Finding) -> str:
    """Return in a few words whether a finding is the same under other settings.

    ``robust``: the answer (the layer, the side of 1) is the same under all, and no number lies outside the interval
    (in nats, which differ between settings, none is compared). ``same answer``: the answer is, the size is not.
    """
    if not finding.settings:
        return "–"
    if finding.agree == finding.settings:
        word = "robust" if finding.alike == finding.settings else "same answer"
        return f"{word} {finding.agree} of {finding.settings}"
    return f"{finding.agree} of {finding.settings}: depends on {finding.depends_on}"


#: Cells of what was not tested.
DASHES = {"control": "–", "verdict": "–", "sensitivity": "–"}


def in_full(finding: Finding) -> dict[str, str]:
    """Return the cells of a table: the number, its control, the verdict, and how robust the answer is."""
    return {
        "value": interval(finding.value, finding.low, finding.high),
        "control": interval(finding.control, finding.control_low, finding.control_high),
        "verdict": finding.verdict,
        "sensitivity": robustness(finding),
    }


def in_short(finding: Finding) -> dict[str, str]:
    """Return the cells of a narrow table: the number, its control, the verdict, and how robust the answer is."""
    reason = "tie" if finding.reason.startswith("it ties") else finding.reason.replace("p = ", "p ")
    varied = finding.depends_on.replace("ablation kind", "kind").replace("position 0", "bos")
    same = robustness(finding).replace("same answer", "same").replace(" of ", "/")
    return {
        "value": interval(finding.value, finding.low, finding.high),
        "control": number(finding.control),
        "verdict": f"{finding.verdict}: {reason}" if 0 < len(reason) < 10 else str(finding.verdict),
        "sensitivity": same.partition(":")[0] + (f": {varied}" if 0 < len(varied) < 10 else ""),
    }


_BOUNDS = {"finding_number": ("value", "low", "high"), "finding_control": ("control", "control_low", "control_high")}
#: Name → type of the others, as the dataclass spells it.
_SINGLE = {item.name: str(item.type) for item in fields(Finding) if item.name not in chain(*_BOUNDS.values())}


def dataset_of(rows: Sequence[Row]) -> xr.Dataset:
    """Return findings, and what they rest on under other settings and in twins, as arrays."""
    import xarray as xr

    found = decide(rows)
    by_key = {(row.claim.name, *row.models, "")[:3]: row for row in reversed(rows)}
    ordered = [by_key[f.name, f.model, f.model_other] for f in found]
    settings = list(dict.fromkeys(setting for row in ordered for setting in row.settings))
    twins = max((len(row.twins) for row in ordered), default=0)
    nothing: list[Any] = [math.nan] * 3
    data: dict[str, Any] = {}
    for name, bounds in _BOUNDS.items():
        numbers = [[getattr(finding, each) for each in bounds] for finding in found]
        data[name] = (("finding", "bound"), np.array(numbers, dtype=float).reshape(-1, 3))
    for name, kind in _SINGLE.items():
        values = [getattr(finding, name) for finding in found]
        texts = kind in ("str", "Verdict")
        known = values if texts else [math.nan if value is None else float(value) for value in values]
        data[f"finding_{name}"] = ("finding", np.array(known, dtype=object if texts else float))
    under = [[row.settings[s].number if s in row.settings else nothing for s in settings] for row in ordered]
    data["sensitivity"] = (
        ("finding", "setting", "bound"),
        np.array(under, dtype=float).reshape(len(found), len(settings), 3),
    )
    beside = [[*(list(twin.compared) for twin in row.twins), *[nothing] * (twins - len(row.twins))] for row in ordered]
    data["twin"] = (("finding", "twin", "bound"), np.array(beside, dtype=float).reshape(len(found), twins, 3))
    labels = ["|".join(filter(None, (f.name, f.model, f.model_other))) for f in found]
    coords: dict[str, Any] = {"finding": labels, "bound": list(BOUND), "setting": list(map(str, settings))}
    for name in ("ablation", "scope", "bos", "suite"):
        coords[f"setting_{name}"] = ("setting", np.array([getattr(s, name) for s in settings], dtype=object))
    coords["setting_layer0"] = ("setting", np.array([int(s.layer0) for s in settings], dtype=int))
    made = xr.Dataset(data, coords=coords)
    for called in made.data_vars:
        made[called].attrs = {"units": "1", "long_name": str(called).replace("_", " ")}
    return made


def described(
    data: xr.Dataset, comparison: Comparison, suite: str, absent: Mapping[str, str], more: Any = (), **about: Any
) -> xr.Dataset:
    """Return a comparison's dataset with its attributes: what it rests on, why values are absent, what made it."""
    made = {"name": comparison.name, "version": comparison.version, **dict(more)}
    return data.assign_attrs(
        title=comparison.summary,
        suite=suite,
        absent=json.dumps(absent),
        xatlas=json.dumps({"comparison": made, **about}, sort_keys=True),
        Conventions="CF-1.11",
    )


def findings_of(dataset: xr.Dataset) -> Iterable[Finding]:
    """Yield the findings of a dataset that :class:`ClaimComparison` made."""
    for index in range(dataset.sizes.get("finding", 0)):
        one = dataset.isel(finding=index)
        given: dict[str, Any] = {}
        for name, bounds in _BOUNDS.items():
            given |= dict(zip(bounds, map(float, one[name].values), strict=True))
        for name, kind in _SINGLE.items():
            if f"finding_{name}" in one:  # else of an earlier version
                value = one[f"finding_{name}"].item()
                exact = {"int": int, "bool": bool}.get(kind.removesuffix(" | None"), type(value))
                given[name] = None if value != value and kind.endswith("None") else exact(value)
        yield Finding(**given)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings: about architectures, then with what differs between models first, and what is open last."""

    def place(finding: Finding) -> tuple[bool, int, int]:
        differs = bool(finding.model_other) and finding.short.endswith("differs")
        kind = 0 if differs else 1 if finding.model_other else 2
        return finding.unit != "architecture", _ORDER.index(finding.verdict), kind

    return sorted(findings, key=place)


def closing(findings: Sequence[Finding], models: Sequence[str]) -> str:
    """Say what is supported, of which models, and what can't be said and why: a line for what the same models share."""
    found = [finding for finding in findings if finding.verdict == "supported" and finding.short]
    two = [each for each in found if each.model_other and each.unit != "architecture"]
    compared = {(f.model, f.model_other) for f in findings if f.model_other and f.unit != "architecture"}
    lines = [
        *_told([each for each in found if each.unit == "architecture"], models, 0),
        *_told([each for each in found if not each.model_other], models, len(models)),
        *_told(two, models, len(compared)),
    ] or ["Nothing is supported."]
    lines += ["* Not so without layer 0."] if any(map(_on_layer0, found)) else []
    refuted = sum(finding.verdict in ("refuted", "artefact") for finding in findings)
    counted = [f"{refuted} {'is' if refuted == 1 else 'are'} refuted or artefacts"] if refuted else []
    undecided = Counter(_kind(finding.reason) for finding in findings if finding.verdict == "undecided").most_common()
    if undecided:
        reasons = [f"{reason} ({count})" for reason, count in undecided[:_REASONS]]
        left = sum(count for _, count in undecided[_REASONS:])
        reasons += [f"other reasons ({left})"] if left else []
        total = sum(count for _, count in undecided)
        counted.append(f"{total} can't be decided from these data: {', '.join(reasons)}")
    count = "1 claim" if len(findings) == 1 else f"{len(findings)} claims"
    lines += [f"Of {count} {'; '.join(counted)}."] if counted else []
    return "\n".join(lines)


def _told(findings: Sequence[Finding], models: Sequence[str], every: int) -> list[str]:
    """Return a sentence for each group of models, or of pairs, with all that is said of exactly these."""
    about: dict[tuple[str, str], dict[str, None]] = {}
    for finding in findings:
        name = f"{finding.model} and {finding.model_other}" if finding.model_other else finding.model
        about.setdefault(_said(finding), {})[name or "Over all"] = None
    if findings and findings[0].model_other and every > _PAIRS:
        counted = [(kind, f"{text} ({len(names)})") for (kind, text), names in about.items()]
        return [f"Of {every} pairs of models: {_joined(counted)}."]
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for said, names in about.items():
        groups.setdefault(tuple(names), []).append(said)
    ordered = sorted(groups.items(), key=lambda group: -len(group[0]))
    return [f"{_who(names, models, every)}: {_joined(said)}." for names, said in ordered]


def _said(finding: Finding) -> tuple[str, str]:
    """Return what a finding says in short: for pairs whether they are alike in it; marked where layer 0 makes it so."""
    beyond = {None: "", True: " (learnt)", False: " (as in untrained networks of its kind)"}
    marks = "*" * _on_layer0(finding) + beyond[finding.learnt]
    for kind, ending in (("alike in", " is the same"), ("different in", " differs")):
        if finding.model_other and finding.short.endswith(ending):
            return kind, finding.short.removesuffix(ending) + marks
    return "", finding.short + marks


def _joined(said: Sequence[tuple[str, str]]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind, text in said:
        kinds.setdefault(kind, []).append(text)
    return "; ".join(f"{kind} {', '.join(texts)}" if kind else "; ".join(texts) for kind, texts in kinds.items())


def _on_layer0(finding: Finding) -> bool:
    return "layer 0" in finding.depends_on


def _who(names: Sequence[str], models: Sequence[str], every: int) -> str:
    """Return "All three models", "Every pair of models", or the names."""
    if len(names) == every > 1:
        counts = {2: "Both", 3: "All three", 4: "All four", 5: "All five"}
        return "Every pair of models" if names[0] not in models else f"{counts.get(every, f'All {every}')} models"
    left = [model for model in models if model not in names]
    if every and len(names) > _MODELS and len(left) < len(names):
        return f"All {every} models but {_listed(left)}"
    return "; ".join(names) if names[0] not in models else _listed(names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _kind(reason: str) -> str:
    """Return what kind of reason it is, without its particulars."""
    if reason.startswith("p = "):
        return "p above 0.05"
    if reason.startswith("it ties"):
        return "a tie"
    return reason.split(":")[0]
