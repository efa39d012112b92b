"""Curves through what was measured, with what lies beyond a panel marked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


#: How what untrained twins have is drawn.
TWIN: dict[str, Any] = {"color": "#B0B0B0", "lw": 0.8, "marker": ".", "ms": 3}


def draw(
    axes: Axes,
    x: Any,
    values: xr.DataArray,
    *,
    color: str,
    typed: bool = False,
    edges: tuple[float, float] = (0.0, math.inf),
    **look: Any,
) -> bool:
    """Draw a curve ``(x)`` through what was measured, of ``(x, bound)`` with its band; return whether any is clipped.

    Where it is ``typed``, operator types have markers of their own. What lies beyond ``edges`` is marked there, as not
    measured: with a hollow triangle, and no line leads to it.
    """
    value, *band = values.transpose("bound", ...).values if "bound" in values.dims else [values.values]
    x, inside = np.asarray(x), (value >= edges[0]) & (value <= edges[1])
    if band:
        low, high = (np.where(inside, np.clip(end, *edges), np.nan) for end in band)
        axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        if len(x) == 1:  # a band of one point can't be seen
            axes.vlines(x, low, high, color=color, lw=1)
    marks = {"lw": 1.4, "ms": 3, "marker": "" if typed else "."}
    axes.plot(x, np.where(inside, value, np.nan), **(marks | look | {"color": color}))
    types = values["operator_type"].values.astype(str) if typed else np.array([])
    for kind in sorted(set(types.tolist()) - {""}):
        at = inside & (types == kind)
        axes.plot(x[at], value[at], style.marker(kind), color=color, ms=4)
    for beyond, mark, edge in ((value > edges[1], "^", edges[1]), (value < edges[0], "v", edges[0])):
        if beyond.any():
            look = style.BEYOND | {"marker": mark, "color": color, "clip_on": False}
            axes.plot(x[beyond], np.full(int(beyond.sum()), edge), **look)
    return bool((np.isfinite(value) & ~inside).any())


def untrained(axes: Axes, x: Any, one: xr.Dataset, name: str, *, edges: tuple[float, float] = (0.0, math.inf)) -> bool:
    """Draw a variable of a model's untrained twins as thin grey curves; return whether any is clipped."""
    values = one[f"{name}_untrained"].transpose("untrained", ...) if f"{name}_untrained" in one else ()
    return any([draw(axes, x, each, edges=edges, **TWIN, gid="twin") for each in values])


def twin_entries(dataset: xr.Dataset) -> style.Entries:
    """Return what explains those curves, where there are any."""
    return [("untrained twins", TWIN)] if "untrained" in dataset.dims else []
