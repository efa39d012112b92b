"""What a run has found, in one paragraph of plain words; and in which order findings are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from xatlas.contracts.comparison import Finding

#: Why a claim is open, as far as the word before the first colon or number goes.
_ORDER = ("supported", "artefact", "refuted", "undecided")


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with what differs between models first, and what is open last."""

    def place(finding: Finding) -> tuple[int, int]:
        differs = bool(finding.model_other) and finding.short.endswith("differs")
        return _ORDER.index(finding.verdict), 0 if differs else 1 if finding.model_other else 2

    return sorted(findings, key=place)


def closing(findings: Sequence[Finding], models: Sequence[str]) -> str:
    """Say what is supported, of which models, and what can't be said and why."""
    parts = []
    for said, about in _grouped(
        f for f in findings if f.verdict == "supported" and f.short and not f.model_other
    ).items():
        names = [finding.model for finding in about]
        beyond = [finding.learnt for finding in about if finding.learnt is not None]
        learnt = "" if not beyond else " (learnt)" if all(beyond) else " (untrained networks of its kind do so, too)"
        parts.append(f"{_who(names, models)} {said}{learnt}.")
    pairs = len(models) * (len(models) - 1) // 2
    for said, about in _grouped(f for f in findings if f.verdict == "supported" and f.short and f.model_other).items():
        names = [f"{finding.model} and {finding.model_other}" for finding in about]
        where = " in every pair of models" if len(names) == pairs > 1 else " between " if "differs" in said else " in "
        parts.append(f"{said[0].upper()}{said[1:]}{where}{'' if len(names) == pairs > 1 else '; '.join(names)}.")
    refuted = [finding for finding in findings if finding.verdict in ("refuted", "artefact")]
    if refuted:
        parts.append(f"{len(refuted)} of {len(findings)} claims are refuted or artefacts.")
    undecided = [finding for finding in findings if finding.verdict == "undecided"]
    if undecided:
        reasons = Counter(_kind(finding.reason) for finding in undecided)
        counted = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        parts.append(f"{len(undecided)} of {len(findings)} claims can't be decided from this suite: {counted}.")
    if not any(finding.verdict == "supported" for finding in findings):
        parts.insert(0, "Nothing is supported.")
    return " ".join(parts)


def _grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.short, []).append(finding)
    return groups


def _who(names: Sequence[str], models: Sequence[str]) -> str:
    """Return "In all three models", or the names."""
    if len(models) > 1 and set(names) == set(models):
        counts = {2: "both", 3: "all three", 4: "all four", 5: "all five"}
        return f"In {counts.get(len(models), f'all {len(models)}')} models"
    listed = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    return f"In {listed}"


def _kind(reason: str) -> str:
    """Return what kind of reason it is, without its particulars."""
    if reason.startswith("p = "):
        return "p above 0.05"
    if reason.startswith("it ties"):
        return "a tie"
    return reason.split(":")[0]
