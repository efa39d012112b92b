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
    bounds: Any,
    colour: str,
    *,
    types: Any = None,
    edges: tuple[float, float] = (0.0, math.inf),
    **look: Any,
) -> bool:
    """Draw a band ``(3, x)`` and a curve through what was measured, with markers; return whether any is clipped.

    ``types`` are operator types, which have markers of their own. What lies beyond ``edges`` is marked there, as not
    measured: with a hollow triangle, and no line leads to it.
    """
    bounds = np.asarray(bounds)
    value, *band = bounds if bounds.ndim > 1 else [bounds]
    x, inside = np.asarray(x), (value >= edges[0]) & (value <= edges[1])
    if band:
        low, high = (np.where(inside, np.clip(end, *edges), np.nan) for end in band)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        if len(x) == 1:  # a band of one point can't be seen
            axes.vlines(x, low, high, color=colour, lw=1)
    marks = {"lw": 1.4, "ms": 3, "marker": "." if types is None else ""}
    axes.plot(x, np.where(inside, value, np.nan), **(marks | look | {"color": colour}))
    for kind in sorted(set(types if types is not None else ()) - {""}):
        at = inside & (np.asarray(types) == kind)
        axes.plot(x[at], value[at], style.marker(kind), color=colour, ms=4)
    for beyond, mark, edge in ((value > edges[1], "^", edges[1]), (value < edges[0], "v", edges[0])):
        if beyond.any():
            look = style.BEYOND | {"marker": mark, "color": colour, "clip_on": False}
            axes.plot(x[beyond], np.full(int(beyond.sum()), edge), **look)
    return bool((np.isfinite(value) & ~inside).any())


def untrained(axes: Axes, x: Any, one: xr.Dataset, name: str, *, edges: tuple[float, float] = (0.0, math.inf)) -> bool:
    """Draw a variable of a model's untrained twins as thin grey curves; return whether any is clipped."""
    values = one[f"{name}_untrained"].transpose("untrained", ...).values if f"{name}_untrained" in one else ()
    look = {key: value for key, value in TWIN.items() if key != "color"}
    clipped = [draw(axes, x, each, TWIN["color"], edges=edges, **look, gid="twin") for each in values]
    return any(clipped)


def twin_entries(dataset: xr.Dataset) -> style.Entries:
    """Return what explains those curves, where there are any."""
    return [("untrained twins", TWIN)] if "untrained" in dataset.dims else []
