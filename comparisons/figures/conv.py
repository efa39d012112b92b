"""The figure of convolutions: effects of factors and of taps over the layers of each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"factor": "factors, set to their mean", "tap": "taps of the kernel, set to zero"}
#: Colours of factors and taps, current token first; they are no models, so they take other colours.
_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#44AA99", "#999933", "#882255")


def draw(dataset: xr.Dataset) -> Figure:
    """Draw one row per model that has conv layers: factors on the left, taps on the right."""
    there = np.isfinite(dataset["factor_effect"].values).any((1, 2))
    models = [str(model) for model, conv in zip(dataset["model"].values, there, strict=True) if conv]
    with style.context():
        titles = [
            [style.fitted(f"{model}: {title}", 3.9, 9.5, bold=True) for title in _TITLES.values()] for model in models
        ]
        height = sum(2.5 + style.extra(row, 9.5) for row in titles) or 2.5
        made = style.figure(9.2, 1.4 + height, dataset.attrs["suite"])
        if not models:
            axes = made.subplots()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no model here has conv layers", ha="center", va="center", color="#666666")
            return made
        grid = made.subplots(len(models), 2, squeeze=False, sharey="row")
        for row, model, above in zip(grid, models, titles, strict=True):
            for axes, part, title in zip(row, _TITLES, above, strict=True):
                _effects(axes, dataset.sel(model=model), part)
                axes.set_title(title)
            row[0].set_ylabel("KL, nats")
        for axes in grid[-1]:
            axes.set_xlabel("conv layer")
    return made


def _effects(axes: Axes, one: xr.Dataset, part: str) -> None:
    effect = one[f"{part}_effect"].transpose("layer", part).values
    layers = np.flatnonzero(np.isfinite(effect).any(1))
    labels = one[part].values.tolist()
    order = list(reversed(range(len(labels)))) if part == "tap" else list(range(len(labels)))
    place = np.arange(len(layers))
    for number, item in enumerate(order):
        x = place + (number - (len(order) - 1) / 2) * 0.22
        colour = _COLOURS[number % len(_COLOURS)]
        at = one.isel({part: item, "layer": layers})
        names = (f"{part}_effect", f"{part}_effect_low", f"{part}_effect_high", f"{part}_control")
        value, low, high, control = (np.maximum(at[name].values, style.FLOOR) for name in names)
        axes.vlines(x, low, high, color=colour, lw=2)
        gid = f"{part}-{labels[item]}-{one['model'].item()}"
        named = f"tap {labels[item]}" if part == "tap" else str(labels[item])
        axes.plot(x, value, "o", color=colour, ms=5, label=named, gid=gid)
        label = "control" if number == len(order) - 1 else None
        axes.plot(x, control, "_", color=style.CONTROL, ms=9, mew=1.4, label=label)
    style.log_axis(axes)
    step = 1 + len(layers) // 20
    axes.set_xticks(place[::step], [str(layer) for layer in layers[::step]])
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="best", ncols=2)
