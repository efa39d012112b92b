"""The figure of kernels: how each conv layer's kernel is shared between its taps, by size and by effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {"weight": "absolute weight", "effective": "effective size", "causal": "KL without the tap"}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw one row per model that has conv layers: shares of taps by weight, by effective size, and causally."""
    dataset, without = style.having(dataset, "weight_share")
    models = list(map(str, dataset["model"].values))
    taps = sorted(dataset["tap"].values.tolist(), reverse=True)
    colours = {tap: style.PARTS[number % len(style.PARTS)] for number, tap in enumerate(taps)}
    footer = (f"no conv layers: {', '.join(sorted(without))}; " if without else "") + dataset.attrs["suite"]
    if not models:
        return style.empty(9.2, 3.3, footer, "conv layers")
    with style.context():
        titles = [[_title(dataset.sel(model=model), name) for name in _PANELS] for model in models]
        for row, model in zip(titles, models, strict=True):
            row[0] = f"{lettering.fitted(model, style.within(2.7), 8.5, bold=True)}\n{row[0]}"
        height = sum(1.75 + lettering.extra(row, 8.5) for row in titles)
        made = style.figure(9.2, 1.3 + height, footer)
        grid = made.subplots(len(models), len(_PANELS), squeeze=False, sharey=True)
        for row, model, above in zip(grid, models, titles, strict=True):
            for axes, part, title in zip(row, _PANELS, above, strict=True):
                _bars(axes, dataset.sel(model=model), part, colours)
                axes.set_title(title, fontsize=8.5)
            row[0].set_ylabel("share of tap")
        for axes, called in zip(grid[-1], _PANELS.values(), strict=True):
            axes.set_xlabel(f"conv layer, by {called}")
        square: dict[str, Any] = {"marker": "s", "ls": "none", "ms": 7}
        named = {tap: "tap 0: the current token" if tap == 0 else f"tap {tap}" for tap in taps}
        style.legend(made, [(named[tap], {**square, "color": colours[tap]}) for tap in taps])
    return made


def _title(one: xr.Dataset, part: str) -> str:
    """Say which tap is the largest in how many layers."""
    shares = one[f"{part}_share"].dropna("layer", how="all")
    if not shares.sizes["layer"]:
        return f"{_PANELS[part].capitalize()}: not known"
    best = shares.idxmax("tap").values.astype(int)
    taps, counts = np.unique(best, return_counts=True)
    lead, count = int(taps[counts.argmax()]), int(counts.max())
    return f"Tap {lead} largest in {count} of {len(best)} layers"


def _bars(axes: Axes, one: xr.Dataset, part: str, colours: dict[int, str]) -> None:
    """Stack the taps' shares, layer by layer, the current token below."""
    layers = np.flatnonzero(one["weight_share"].notnull().any("tap").values)
    place, base = np.arange(len(layers)), np.zeros(len(layers))
    for tap, colour in colours.items():
        share = np.nan_to_num(one[f"{part}_share"].sel(tap=tap).isel(layer=layers).values)
        gid = f"{part}-{tap}-{one['model'].item()}"
        axes.bar(place, share, 0.8, base, color=colour, edgecolor="white", linewidth=0.4).patches[0].set_gid(gid)
        base += share
    step = 1 + len(layers) // 12
    axes.set_xticks(place[::step], [str(layer) for layer in layers[::step]])
    axes.set(xlim=(-0.6, len(layers) - 0.4), ylim=(0, 1), yticks=(0, 0.5, 1))
    axes.grid(visible=False, axis="x")
