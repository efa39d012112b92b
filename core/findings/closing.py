"""What a run has found, in a few lines of plain words; and in which order findings are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from xatlas.contracts.comparison import Finding

_ORDER = ("supported", "artefact", "refuted", "undecided")
#: Reasons that are told, the others being counted together; models, and pairs of them, that are named.
_REASONS, _MODELS, _PAIRS = 4, 5, 3


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
