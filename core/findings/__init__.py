"""What comparisons are made from: claims, the statistics that speak for them, the verdict, and the sentence."""

from xatlas.findings.comparison import ClaimComparison, Estimates
from xatlas.findings.estimates import Sample, Statistic
from xatlas.findings.groups import layer_types
from xatlas.findings.places import Place, largest
from xatlas.findings.readings import Effects
from xatlas.findings.sentences import closing, findings_of, ranked
from xatlas.findings.verdict import RATIO_MARGIN, SHARE_MARGIN, Claim, Evidence

__all__ = [
    "RATIO_MARGIN",
    "SHARE_MARGIN",
    "Claim",
    "ClaimComparison",
    "Effects",
    "Estimates",
    "Evidence",
    "Place",
    "Sample",
    "Statistic",
    "closing",
    "findings_of",
    "largest",
    "layer_types",
    "ranked",
]
