"""The figure of convolutions: effects of factors and of taps over the layers of each model."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {"factor": "o", "tap": "s"}
_CONTROL: dict[str, Any] = {"marker": "_", "ls": "none", "ms": 7, "mew": 1.4}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw factors, and taps below them, of each model that has conv layers."""
    dataset, without = style.having(dataset, "factor_effect")
    if without:
        dataset = dataset.assign_attrs(suite=f"no conv layers: {', '.join(without)}; {dataset.attrs['suite']}")
    if not dataset.sizes["model"]:
        return style.empty(5.6, 1.5, dataset.attrs["suite"], "conv layers")
    taps = style.said(dataset, "tap_lead", "one tap")

    def alike(panels: list[list[Axes]]) -> None:
        for tap, pair in zip(taps, panels, strict=True):
            ends = np.array([axes.get_ylim() for axes in pair])
            for axes in pair:
                style.log_axis(axes, about=(ends.min(), ends.max()))
            pair[1].set_title(lettering.fitted(tap, 2.4, 8), fontsize=8, fontweight="normal")

    said, beyond = style.said(dataset, "factor_lead", "one factor"), f"below {style.FLOOR:g}"
    parts = [(1.5, partial(_effects, part=part)) for part in _MARKS]
    return style.by_model(dataset, ax, said, parts, _entries(dataset), beyond=beyond, after=alike)


def _labels(dataset: xr.Dataset, part: str) -> list[Any]:
    """Return labels in the order in which they are drawn: taps from the current token backwards."""
    labels: list[Any] = dataset[part].values.tolist()
    return sorted(labels, reverse=True) if part == "tap" else labels


def _entries(dataset: xr.Dataset) -> style.Entries:
    found: style.Entries = []
    for part, mark in _MARKS.items():
        for number, label in enumerate(_labels(dataset, part)):
            named = f"tap {label}, zeroed" if part == "tap" else f"{label}, set to its mean"
            found.append((named, {"marker": mark, "ls": "none", "ms": 5, "color": style.PARTS[number % 6]}))
    return [*found, ("random change of equal norm", _CONTROL | {"color": style.CONTROL})]


def _effects(axes: Axes, one: xr.Dataset, _: str, part: str) -> bool:
    """Draw points with intervals beside each other, layer by layer; return whether any is clipped."""
    one = one.isel(layer=np.flatnonzero(one[f"{part}_effect"].notnull().any((part, "bound")).values))
    place, labels, clipped = np.arange(one.sizes["layer"]), _labels(one, part), False
    edges = (style.FLOOR, math.inf)
    for number, label in enumerate(labels):
        x = place + (number - (len(labels) - 1) / 2) * min(0.22, 0.8 / len(labels))
        at, colour = one.sel({part: label}), style.PARTS[number % 6]
        effect, control = at[f"{part}_effect"], at[f"{part}_control"].sel(bound="value")
        ends = (effect.sel(bound=end).values for end in ("low", "high"))
        axes.vlines(x, *np.maximum(list(ends), style.FLOOR), color=colour, lw=1.4)
        clipped |= curves.draw(axes, x, control, color=style.CONTROL, edges=edges, **_CONTROL)
        look: dict[str, Any] = {"ls": "none", "marker": _MARKS[part], "ms": 4, "gid": f"{part}-{label}"}
        clipped |= curves.draw(axes, x, effect.sel(bound="value"), color=colour, edges=edges, **look)
    style.log_axis(axes)
    step = 1 + len(place) // 10
    axes.set_xticks(place[::step], [str(layer) for layer in one["layer"].values[::step]])
    axes.set_xlim(-0.6, len(place) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("conv layer")
    style.label_y(axes, "KL, nats")
    return clipped
