"""The figure of early and late layers: each model's profile over depth, and the ratios of the halves below."""

from __future__ import annotations

import math
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
    models = list(map(str, dataset["model"].values))
    said = style.said(dataset, "early_over_late", models, "one layer: no halves")
    if ax is not None:
        return style.alone(ax, dataset, _profile, said[0], _entries(dataset))
    palette = style.colours(models)
    with style.context():
        made, panels, below = style.blocks(dataset, models, said, (1.7,), forest.height(models))
        assert below is not None
        clipped = False
        for model, (axes,) in zip(models, panels, strict=True):
            for other in models:
                if other != model:
                    one = style.layers(dataset.sel(model=other))
                    values = one["profile"].sel(bound="value")
                    axes.plot(one["depth"], values.where(values >= _FLOOR), **_OTHERS, gid="other")
            clipped |= _profile(axes, dataset.sel(model=model), palette[model])
        ends = np.array([axes.get_ylim() for (axes,) in panels])
        for (axes,) in panels:
            style.log_axis(axes, about=(ends.min(), ends.max()))
        clipped |= _ratios(below, dataset, palette)
        entries = [*style.kinds(dataset), ("first half", _HALF)]
        entries += [("the other models", _OTHERS)] if len(models) > 1 else []
        entries += [*forest.entries(dataset, "ratio"), ("other settings, those that sensitivity counts", _OTHER)]
        style.legend(made, [*entries, *([("beyond the panel", style.BEYOND)] if clipped else [])])
    return made


def _entries(dataset: xr.Dataset) -> style.Entries:
    return [*curves.twin_entries(dataset), *style.kinds(dataset), ("first half", _HALF)]


def _profile(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    one = style.layers(one)
    axes.axvspan(-0.03, 0.5, color="#F4F4F4", lw=0, zorder=0)
    axes.axhline(1, color=style.CONTROL, lw=1)
    profile, types = one["profile"].transpose("bound", "layer").values, one["operator_type"].values.astype(str)
    edges = (_FLOOR, math.inf)
    clipped = curves.untrained(axes, one["depth"], one, "profile", edges=edges)
    clipped |= curves.draw(axes, one["depth"], profile, colour, types=types, edges=edges, gid="profile")
    style.log_axis(axes, about=(0.5, 2))
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    style.label_y(axes, "effect over mean layer's")
    return clipped


def _ratios(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> bool:
    axes.axvline(1, color=style.CONTROL, lw=1)
    rows: list[forest.Row] = []
    for y, (model, colour) in enumerate(palette.items()):
        found = style.finding(dataset, "early_over_late", model)
        rows.append((model, colour, "one layer: no halves" if found is None else found))
        if found is not None:
            others = found["sensitivity"].sel(bound="value").values[1:]  # those that the column sensitivity counts
            axes.plot(others, [y] * len(others), **_OTHER)
    clipped = forest.draw(axes, rows)
    style.log_axis(axes, "x", about=(0.5, 2))
    axes.set_xlabel("first half over second half, ratio")
    return clipped
