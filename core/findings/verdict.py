"""What a comparison claims, what speaks for it, and the one rule that turns that into a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from xatlas.contracts.comparison import Verdict
from xatlas.stats import Floats, holm
from xatlas.text import number

if TYPE_CHECKING:
    from xatlas.findings.estimates import Statistic

#: p-values at or below it count, as 95 % intervals do.
ALPHA = 0.05
#: Ratios within it count as equal; so do correlations, shares and probabilities that differ by less.
RATIO_MARGIN, SHARE_MARGIN = (0.80, 1.25), 0.10

#: What a claim is about, and the test of: a network, the layers of a type, an architecture.
Unit = Literal["network", "layer type", "architecture"]
#: Value, lower and upper end of a 95 % interval.
Bounds = tuple[float, float, float]
UNKNOWN: Bounds = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Claim:
    """One thing that a comparison says about every model, and, with ``pair``, about every two.

    Parameters
    ----------
    name : str
        Key of the numbers in what ``estimate`` or ``between`` returns.
    question : str
        What is asked, for ``xatlas explain``.
    sentence : str
        With places for ``{model}`` (or ``{first}`` and ``{second}``), ``{number}``, ``{control}`` and the
        evidence's ``words``; no full stop.
    label : str
        Head of the number's column; the name without one.
    unit : {'network', 'layer type', 'architecture'}
        What the test is of.
    margin : float, optional
        Two values count as equal when they differ by less; of ratios (1 + margin and its inverse are not the same)
        give ``RATIO_MARGIN``, which is applied to their quotient. Without one equality is never claimed.
    short : str
        The same in a few words without numbers ("layer {layer} matters most"), for the closing paragraph.
    pair : str
        What is compared between two models, as a noun ("the ratio of early to late layers"); empty for nothing.
    alike : str
        What is said of two models whose numbers are equal, with places for ``{first}``, ``{second}`` and the
        evidence's ``words``; by default that ``pair`` is the same in both.
    kinds : bool
        Whether every other ablation kind that was measured has to give the same answer.
    advice : str
        What to do where another kind of ablation is all that is missing for a verdict.
    contrast : str
        A name that three claims have in common when each number is the difference of the other two: if one differs
        from 0, at most one of the others does not, and p-values are adjusted for no more than can be so.
    units : str
        Unit of the number.
    """

    name: str
    question: str
    sentence: str
    label: str = ""
    short: str = ""
    unit: Unit = "network"
    margin: float | tuple[float, float] | None = None
    pair: str = ""
    alike: str = ""
    kinds: bool = True
    advice: str = ""
    contrast: str = ""
    units: str = "1"


@dataclass(frozen=True)
class Evidence:
    """What speaks for or against one claim about one model or pair, under one setting.

    ``side`` is 1 where the interval (and that over the control) lies on the claimed side, -1 on the other, 0 for
    neither. ``answer`` is what has to stay the same under other ablation kinds and settings: by default the
    side of the point estimate.
    """

    number: Bounds = UNKNOWN
    p: float = math.nan  # raw
    against: str = ""  # what p is against, in words
    side: int = 0
    answer: Any = None  # None: nothing was measured
    control: Bounds = UNKNOWN
    equal_p: float = math.nan  # two one-sided tests of the margin, the larger
    equal: bool = False  # the 90 % interval lies within the margin
    margin: float | tuple[float, float] | None = None
    near: bool = False  # the point does
    log: bool = False  # the number is a ratio, and none is 1
    least_p: float = 0.0  # the smallest p-value that a sample of this size can give
    sample: str = ""  # what that sample consists of, where it is not the claim's unit that says so
    own: int | None = None  # ``side`` of the number's own interval alone, where that over a control counts, too
    blocked: str = ""  # why nothing can be decided, in words
    open: str = ""  # why the interval decides nothing, where that isn't told by a control or by chance
    artefact: str = ""  # why the usual way of measuring says so nevertheless
    descriptive: bool = False  # number and interval are cross-fitted: the verdict rests on the test alone
    scale_free: Bounds = UNKNOWN  # what is compared with untrained twins; the number unless given
    words: Mapping[str, str] = field(default_factory=dict)
    statistic: Statistic | None = None  # what differences between models are made from
    draws: Floats | None = None  # or bootstrap draws of it, paired between models

    def agrees(self, other: Evidence) -> bool:
        """Tell whether evidence under another ablation kind or setting gives the same answer."""
        return other.near if self.equal and self.near else bool(other.answer == self.answer)

    @property
    def compared(self) -> Bounds:
        """What is compared with untrained twins."""
        return self.number if math.isnan(self.scale_free[0]) else self.scale_free


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
    """Judge a claim, the only place where it is decided; say why in words, where it is not supported.

    ``p`` is adjusted for the other claims of the comparison about the same model; ``kinds`` holds what there is under
    the other ablation kinds that were measured, None where there are no kinds. Of a pair (``about``), either of two
    claims can be supported: that the numbers are equal, or that they differ.
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
