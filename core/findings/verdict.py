"""The one rule that turns what speaks for a claim into a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xatlas.contracts.comparison import Verdict
from xatlas.findings.claims import ALPHA, Evidence, Unit
from xatlas.stats import holm
from xatlas.text import number

#: What the sample of a claim consists of.
SAMPLES: dict[str, str] = {"network": "templates", "layer type": "layers", "architecture": "training seeds"}
#: Why a claim is open that nothing but another kind of ablation can decide.
ONE_KIND = "one kind"
#: What each verdict means, for ``xatlas explain``.
VERDICTS: dict[Verdict, str] = {
    "supported": "p, adjusted over the claims about the same model, is at most 0.05; the 95 % interval of the effect, "
    "and that of effect over control (by more than the standard error of the control's draws), lie on the claimed "
    "side; every other ablation kind that was run gives the same answer. Equality of two models is supported when the "
    "90 % interval of their difference lies within the margin.",
    "refuted": "the interval of the effect, or that of effect over control, lies on the other side (its control does "
    "so even more), or the numbers are equal within the margin.",
    "undecided": "anything else; the reason says what is missing: too few templates, layers, heads or seeds (no p of "
    "theirs could be at most 0.05), too few draws of the control (more of them: --draws), a tie, kinds that disagree, "
    "one kind alone, an effect that is no more than its control.",
    "artefact": "holds as it is usually published, and not as it is defined here.",
}


def verdict(
    evidence: Evidence,
    p: float,
    kinds: Mapping[str, Any] | None = None,
    *,
    unit: Unit = "network",
    about: str = "claim",
) -> tuple[Verdict, str]:
    """Judge a claim: the only place where it is decided.

    Parameters
    ----------
    evidence : Evidence
    p : float
        Adjusted for the other claims of the comparison about the same model.
    kinds : mapping, optional
        What there is under the other ablation kinds that were measured; None where there are no kinds.
    unit : {'network', 'layer type', 'architecture'}
    about : {'claim', 'pair'}
        Of a pair, either of two claims can be supported: that the numbers are equal, or that they differ.

    Returns
    -------
    verdict, reason
        ``supported``, ``refuted``, ``undecided`` or ``artefact``, and why in words (empty where it is supported).
    """
    known = not math.isnan(evidence.number[0]) and evidence.answer is not None
    if not known or evidence.blocked:
        return "undecided", evidence.blocked or "nothing was measured"
    differing = sorted(kind for kind, other in (kinds or {}).items() if not evidence.agrees(other))
    if evidence.equal:
        if about == "claim":
            return ("artefact", evidence.artefact) if evidence.artefact else ("refuted", f"equal {margin(evidence)}")
        return ("undecided", f"kinds disagree: {', '.join(differing)}") if differing else ("supported", "")
    if not math.isfinite(evidence.number[1]):
        return "undecided", f"too few {evidence.sample or SAMPLES[unit]}"
    decided = p <= ALPHA
    if evidence.side > 0 and decided:
        if kinds is not None and not kinds:
            return "undecided", ONE_KIND
        return ("undecided", f"kinds disagree: {', '.join(differing)}") if differing else ("supported", "")
    if evidence.artefact:
        return "artefact", evidence.artefact
    if evidence.side < 0:
        return (
            "refuted",
            "its control does so even more" if evidence.own == 1 else "the interval lies on the other side",
        )
    if evidence.least_p > ALPHA or math.isnan(p):
        return "undecided", f"too few {evidence.sample or SAMPLES[unit]}"
    if evidence.side > 0:
        return "undecided", f"p = {p:.2g}"
    if evidence.open:
        return "undecided", evidence.open
    if evidence.own == 0 or (about == "pair" and evidence.own is None):
        return "undecided", "the interval includes no difference"
    known = math.isfinite(evidence.control[1])
    return "undecided", "no more than its control" if known else "the interval includes chance"


def margin(evidence: Evidence) -> str:
    """Say within which margin numbers are equal."""
    ends = evidence.margin
    if ends is None:
        return "within the margin"
    return "within the margin of " + (
        f"{ends[0]:.2f} to {ends[1]:.2f}" if isinstance(ends, tuple) else f"±{number(ends)}"
    )


def adjusted(
    evidence: Sequence[Evidence], contrasts: Sequence[str] | None = None, *, least: bool = False
) -> list[float]:
    """Return p-values after Holm, over the claims of one comparison about one model or pair."""
    raw = [math.nan if each.blocked else each.least_p if least else _stated(each) for each in evidence]
    return holm(raw, contrasts)


def _stated(evidence: Evidence) -> float:
    """Return the p-value of what is stated: equality, where that holds."""
    return evidence.equal_p if evidence.equal else evidence.p
