"""The figure of early and late layers: each model's profile over depth, and the ratios of the halves below."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, forest, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Smallest relative effect drawn.
_FLOOR = 1e-3
_OTHER: dict[str, Any] = {"marker": "|", "ls": "none", "ms": 9, "color": style.INK}
_OTHERS: dict[str, Any] = {"color": "#CCCCCC", "lw": 0.8, "ls": (0, (2, 1)), "marker": ".", "ms": 1.5}
_HALF = {"marker": "s", "ls": "none", "ms": 7, "color": "#EDEDED"}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw each model's effects relative to its mean layer over depth, and early over late below."""
    absent = "one layer: no halves"
    entries = [*style.kinds(dataset), ("first half", _HALF)]
    if ax is not None:
        entries = [*curves.twin_entries(dataset), *entries]
    else:
        entries += [("the other models", _OTHERS)] if dataset.sizes["model"] > 1 else []
        entries += [
            *forest.entries(dataset, "ratio"),
            ("other settings (xatlas show --sensitivity names them)", _OTHER),
        ]
    rows = forest.of_models(dataset, "early_over_late", absent)
    return style.by_model(
        dataset,
        ax,
        style.said(dataset, "early_over_late", absent),
        [(1.7, partial(_profile, every=dataset))],
        entries,
        below=(forest.height(rows), partial(_ratios, rows=rows)),
        after=_alike,
    )


def _profile(axes: Axes, one: xr.Dataset, colour: str, every: xr.Dataset) -> bool:
    """Draw a model's profile before those of the others."""
    for other in every["model"].values:
        if other != one["model"].item():
            theirs = style.layers(every.sel(model=other))["profile"].sel(bound="value")
            axes.plot(theirs["depth"], theirs.where(theirs >= _FLOOR), **_OTHERS, gid="other")
    axes.axvspan(-0.03, 0.5, color="#F4F4F4", lw=0, zorder=0)
    axes.axhline(1, color=style.CONTROL, lw=1)
    depth, edges = one["depth"], (_FLOOR, math.inf)
    clipped = curves.untrained(axes, depth, one, "profile", edges=edges)
    clipped |= curves.draw(axes, depth, one["profile"], color=colour, typed=True, edges=edges, gid="profile")
    style.log_axis(axes, about=(0.5, 2))
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    style.label_y(axes, "effect over mean layer's")
    return clipped


def _alike(panels: list[list[Axes]]) -> None:
    """Give all profiles one axis."""
    ends = np.array([axes.get_ylim() for (axes,) in panels])
    for (axes,) in panels:
        style.log_axis(axes, about=(ends.min(), ends.max()))


def _ratios(axes: Axes, rows: list[forest.Row]) -> bool:
    axes.axvline(1, color=style.CONTROL, lw=1)
    for y, (_, _, found) in enumerate(rows):
        if not isinstance(found, str):
            others = found["sensitivity"].sel(bound="value").values[1:]  # those that the column sensitivity counts
            axes.plot(others, [y] * len(others), **_OTHER)
    return forest.draw(axes, rows, "first half over second half, ratio")
