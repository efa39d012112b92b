"""The figure of convolutions: effects of factors and of taps over the layers of each model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of factors and taps, current token first; they are no models, so they take other colours.
_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#44AA99", "#999933", "#882255")
_MARKS = {"factor": "o", "tap": "s"}
_CONTROL: dict[str, Any] = {"marker": "_", "ls": "none", "ms": 7, "mew": 1.4}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw factors, and taps below them, of each model that has conv layers."""
    there = dataset["factor_effect"].notnull().any(("layer", "factor", "bound")).values
    models = [str(model) for model, conv in zip(dataset["model"].values, there, strict=True) if conv]
    without = [str(model) for model, conv in zip(dataset["model"].values, there, strict=True) if not conv]
    if without:
        dataset = dataset.assign_attrs(suite=f"no conv layers: {', '.join(without)}; {dataset.attrs['suite']}")
    with style.context():
        if not models:
            made = style.figure(5.6, 1.5, dataset.attrs["suite"])
            axes = made.subplots()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no model here has conv layers", ha="center", va="center", color="#666666")
            return made
    said = style.said(dataset, "factor_lead", models, "one factor")
    if ax is not None:
        return style.alone(ax, dataset, _factors, said[0], _entries(dataset))
    with style.context():
        made, panels, _ = style.blocks(dataset, models, said, (1.5, 1.5))
        clipped = False
        taps = style.said(dataset, "tap_lead", models, "one tap")
        for model, tap, (top, below) in zip(models, taps, panels, strict=True):
            one = dataset.sel(model=model)
            clipped |= _factors(top, one, "")
            clipped |= _effects(below, one, "tap")
            below.set_title(lettering.fitted(tap, 2.4, 8), fontsize=8, fontweight="normal")
            low = min(top.get_ylim()[0], below.get_ylim()[0])
            high = max(top.get_ylim()[1], below.get_ylim()[1])
            for axes in (top, below):
                style.log_axis(axes, about=(low, high))
        style.legend(made, [*_entries(dataset), *([(f"below {style.FLOOR:g}", style.BEYOND)] if clipped else [])])
    return made


def _labels(dataset: xr.Dataset, part: str) -> list[Any]:
    """Return labels in the order in which they are drawn: taps from the current token backwards."""
    labels: list[Any] = dataset[part].values.tolist()
    return sorted(labels, reverse=True) if part == "tap" else labels


def _entries(dataset: xr.Dataset) -> style.Entries:
    found: style.Entries = []
    for part, mark in _MARKS.items():
        for number, label in enumerate(_labels(dataset, part)):
            named = f"tap {label}, zeroed" if part == "tap" else f"{label}, set to its mean"
            found.append((named, {"marker": mark, "ls": "none", "ms": 5, "color": _COLOURS[number % 6]}))
    return [*found, ("random change of equal norm", _CONTROL | {"color": style.CONTROL})]


def _factors(axes: Axes, one: xr.Dataset, _: str) -> bool:
    return _effects(axes, one, "factor")


def _effects(axes: Axes, one: xr.Dataset, part: str) -> bool:
    """Draw points with intervals beside each other, layer by layer; return whether any is clipped."""
    one = one.isel(layer=np.flatnonzero(one[f"{part}_effect"].notnull().any((part, "bound")).values))
    place, labels, clipped = np.arange(one.sizes["layer"]), _labels(one, part), False
    for number, label in enumerate(labels):
        x = place + (number - (len(labels) - 1) / 2) * min(0.22, 0.8 / len(labels))
        at = one.sel({part: label}).transpose("bound", "layer", ...)
        bounds, look = at[f"{part}_effect"].values, {"ls": "none", "marker": _MARKS[part], "ms": 4}
        axes.vlines(x, *np.maximum(bounds[1:], style.FLOOR), color=_COLOURS[number % 6], lw=1.4)
        edges = (style.FLOOR, math.inf)
        control = at[f"{part}_control"].sel(bound="value").values
        clipped |= curves.draw(axes, x, control, style.CONTROL, edges=edges, **_CONTROL)
        clipped |= curves.draw(axes, x, bounds[0], _COLOURS[number % 6], edges=edges, **look, gid=f"{part}-{label}")
    style.log_axis(axes)
    step = 1 + len(place) // 10
    axes.set_xticks(place[::step], [str(layer) for layer in one["layer"].values[::step]])
    axes.set_xlim(-0.6, len(place) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("conv layer")
    style.label_y(axes, "KL, nats")
    return clipped
