"""Who comes first, as comparisons tell it: no P(rank 1) where nothing can be resampled."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from xatlas.stats import Clusters, Floats, Winner, probability_first, winner


def leader(clusters: Clusters, point: Floats, draws: Floats, family: str | None = None) -> Winner | None:
    """Return the largest of ``point (item)``; of one family's averages where ``family`` names it."""
    resamples = clusters.resamples if family is None else family in clusters.varying
    found = winner(point, draws, resamples=resamples)
    return found if found is None or resamples else replace(found, probability=math.nan)


def chances(clusters: Clusters, draws: Floats) -> Floats:
    """Return P(rank 1) per item of draws ``(draw, item)``."""
    return probability_first(draws) if clusters.resamples else np.full(draws.shape[1], np.nan)
