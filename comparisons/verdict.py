"""The rule of verdicts: what it takes for a claim to be supported, for all comparisons alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from xatlas.contracts.comparison import Verdict

if TYPE_CHECKING:
    import xarray as xr

#: p-values at or below it count, as 95 % intervals do.
ALPHA = 0.05
#: What stays as in the main run where ablation kinds are compared.
_HELD = ("scope", "bos", "suite", "layer0")


def verdict(
    clears: bool, kinds_agree: bool, *, against: bool = False, published: bool = False, fails: bool = False
) -> Verdict:
    """Judge a claim.

    Parameters
    ----------
    clears : bool
        The 95 % interval clears the control.
    kinds_agree : bool
        All ablation kinds that were measured say the same.
    against : bool
        The interval lies on the other side of the control.
    published : bool
        The claim holds in the form that is usually published, which the definition here corrects.
    fails : bool
        The interval as defined here does not clear the control (see :func:`fails`): without that, a claim
        that holds as published only lacks power.
    """
    if clears:
        return "supported" if kinds_agree else "undecided"
    if published and fails:
        return "artefact"
    return "refuted" if against else "undecided"


def side(low: float, high: float, *marks: float) -> int:
    """Return 1 when the interval lies above all marks, -1 when below all, else 0 (NaN marks don't count)."""
    known = [mark for mark in marks if not math.isnan(mark)]
    if known and low > max(known):
        return 1
    return -1 if known and high < min(known) else 0


def fails(low: float, high: float, claim: int, *marks: float) -> bool:
    """Tell whether an interval does not lie on the claimed side of the marks; one that is unknown tells nothing."""
    return math.isfinite(low) and math.isfinite(high) and side(low, high, *marks) != claim


def kinds(dataset: xr.Dataset, model: int, prefix: str = "sensitivity") -> Iterator[tuple[float, float, float]]:
    """Yield (value, low, high) under each other ablation kind that was measured, all else as in the main run.

    A kind that gave no number, for instance ``resample`` where no prompt has a donor, is passed over.
    """
    varied = np.column_stack([dataset[f"setting_{name}"].values.astype(str) for name in _HELD])
    ran = dataset["sensitivity_status"].values[model] == "ok"
    for row in np.flatnonzero((varied == varied[0]).all(1) & ran)[1:]:  # the first is the main one
        value, low, high = (float(dataset[f"{prefix}{end}"].values[model, row]) for end in ("", "_low", "_high"))
        if math.isfinite(value):
            yield value, low, high
