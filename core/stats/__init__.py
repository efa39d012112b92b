"""Statistics, in numpy only: per-prompt values in, intervals and p-values out."""

from xatlas.stats.clusters import DRAWS, PERMUTATIONS, Clusters
from xatlas.stats.inference import holm, mcnemar, wilson
from xatlas.stats.values import EPSILON, LEVEL, Floats, agree, log_ratio, quantile

__all__ = [
    "DRAWS",
    "EPSILON",
    "LEVEL",
    "PERMUTATIONS",
    "Clusters",
    "Floats",
    "agree",
    "holm",
    "log_ratio",
    "mcnemar",
    "quantile",
    "wilson",
]
