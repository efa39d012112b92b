"""The figure of convolutions: effects of factors and of taps over the layers of each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of factors and taps, current token first; they are no models, so they take other colours.
_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#44AA99", "#999933", "#882255")
_HOW = {"factor": "set to their mean", "tap": "zeroed"}
_CONTROL: dict[str, Any] = {"marker": "_", "ls": "none", "color": style.CONTROL, "ms": 9, "mew": 1.4}
_CLIPPED: dict[str, Any] = {"marker": "v", "ls": "none", "mfc": "none", "ms": 5}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw one row per model that has conv layers: factors on the left, taps on the right."""
    there = dataset["factor_effect"].notnull().any(("layer", "factor", "bound")).values
    models = [str(model) for model, conv in zip(dataset["model"].values, there, strict=True) if conv]
    with style.context():
        titles = [[_title(dataset.sel(model=model), part) for part in _HOW] for model in models]
        height = sum(2.5 + style.extra(row, 9.5) for row in titles) or 2.5
        made = style.figure(9.2, 1.6 + height, dataset.attrs["suite"])
        if not models:
            axes = made.subplots()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no model here has conv layers", ha="center", va="center", color="#666666")
            return made
        grid = made.subplots(len(models), 2, squeeze=False, sharey="row")
        clipped = False
        for row, model, above in zip(grid, models, titles, strict=True):
            for axes, part, title in zip(row, _HOW, above, strict=True):
                clipped |= _effects(axes, dataset.sel(model=model), part)
                axes.set_title(title)
            row[0].set_ylabel("KL, nats")
        for axes, part in zip(grid[-1], _HOW, strict=True):
            axes.set_xlabel(f"conv layer ({part}s {_HOW[part]})")
        style.legend(made, [*_entries(dataset), *([(f"below {style.FLOOR:g}", _CLIPPED)] if clipped else [])])
    return made


def _title(one: xr.Dataset, part: str) -> str:
    """Say who leads, as far as can be told."""
    lead, model = str(one[f"{part}_lead"].item()), str(one["model"].item())
    ranked = float(one[f"{part}_p_rank1"])
    named = f"tap {lead}" if part == "tap" else lead
    told = f"{named} leads, P(rank 1) {ranked:.2f}" if ranked >= 0.95 else f"no {part} leads"
    return style.fitted(f"{model}: {told}", 3.9, 9.5, bold=True)


def _labels(dataset: xr.Dataset, part: str) -> list[Any]:
    """Return labels in the order in which they are drawn: taps from the current token backwards."""
    labels: list[Any] = dataset[part].values.tolist()
    return sorted(labels, reverse=True) if part == "tap" else labels


def _entries(dataset: xr.Dataset) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for part in _HOW:
        for number, label in enumerate(_labels(dataset, part)):
            named = f"tap {label}" if part == "tap" else str(label)
            marker = "s" if part == "tap" else "o"
            found.append((named, {"marker": marker, "ls": "none", "ms": 5, "color": _COLOURS[number % 6]}))
    return [*found, ("random change of equal norm", _CONTROL)]


def _effects(axes: Axes, one: xr.Dataset, part: str) -> bool:
    """Draw points with intervals beside each other, layer by layer; tell whether any lies below the floor."""
    layers = np.flatnonzero(one[f"{part}_effect"].notnull().any((part, "bound")).values)
    place, labels, clipped = np.arange(len(layers)), _labels(one, part), False
    for number, label in enumerate(labels):
        x = place + (number - (len(labels) - 1) / 2) * min(0.22, 0.8 / len(labels))
        colour = _COLOURS[number % len(_COLOURS)]
        at = one.sel({part: label}).isel(layer=layers)
        value, low, high = (
            np.maximum(at[f"{part}_effect"].sel(bound=b).values, style.FLOOR) for b in one["bound"].values
        )
        axes.vlines(x, low, high, color=colour, lw=1.6)
        gid = f"{part}-{label}-{one['model'].item()}"
        axes.plot(x, value, "s" if part == "tap" else "o", color=colour, ms=4, gid=gid)
        below = value <= style.FLOOR
        axes.plot(x[below], value[below], **{"color": colour} | _CLIPPED)
        chance = at[f"{part}_control"].sel(bound="value").values
        axes.plot(x, np.where(chance > style.FLOOR, chance, np.nan), **_CONTROL)
        clipped |= bool(below.any())
    style.log_axis(axes)
    step = 1 + len(layers) // 20
    axes.set_xticks(place[::step], [str(layer) for layer in layers[::step]])
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.grid(visible=False, axis="x")
    return clipped
