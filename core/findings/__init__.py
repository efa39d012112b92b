"""What comparisons are made from: claims, the statistics that speak for them, the verdict, and the sentence."""

from xatlas.findings.claims import RATIO_MARGIN, SHARE_MARGIN, Claim, Evidence
from xatlas.findings.closing import closing, ranked
from xatlas.findings.conclude import ClaimComparison, Estimates, findings_of
from xatlas.findings.estimates import Place, Sample, Statistic, largest, layer_types
from xatlas.findings.readings import Effects

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
