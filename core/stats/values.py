"""Numbers as measures give them: agreement, logarithms of ratios, means and quantiles of what is present."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Added to effects before a logarithm, in nats: effects below it can't be told from rounding.
EPSILON = 1e-4
#: Numerical agreement of two values, in nats and relative.
AGREEMENT = (1e-4, 1e-5)
LEVEL = 0.95


def agree(a: Any, b: Any) -> NDArray[np.bool_]:
    """Return where ``a`` and ``b`` are equal within numerical agreement (NaN agrees with nothing)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= AGREEMENT[0] + AGREEMENT[1] * np.maximum(np.abs(a), np.abs(b))
    return np.asarray(close, dtype=bool)


def log_ratio(effect: Any, control: Any) -> Floats:
    """Return log((effect + ε) / (control + ε)), ε = 1e-4 nat."""
    return np.asarray(
        np.log((np.asarray(effect, dtype=float) + EPSILON) / (np.asarray(control, dtype=float) + EPSILON))
    )


def divide(top: Floats, bottom: Floats) -> Floats:
    """Return ``top / bottom``, NaN where ``bottom`` is not above zero."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def mean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is finite, NaN where nothing is."""
    finite = np.isfinite(values)
    return divide(np.where(finite, values, 0.0).sum(0), finite.sum(0).astype(float))


def quantile(values: Any, q: float) -> Floats:
    """Return the linear quantile over the first axis of what is finite, NaN where nothing is."""
    array = np.asarray(values, dtype=float)
    ordered = np.sort(np.where(np.isfinite(array), array, np.nan), axis=0)  # NaN sorts last
    count = np.isfinite(ordered).sum(0)
    place = q * np.maximum(count - 1, 0)
    below = np.floor(place).astype(int)
    low = np.take_along_axis(ordered, below[None], axis=0)[0]
    high = np.take_along_axis(ordered, np.ceil(place).astype(int)[None], axis=0)[0]
    return np.asarray(low + (high - low) * (place - below))
