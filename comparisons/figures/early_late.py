"""The figure of early and late layers: profiles over depth, and the ratio with its control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import style
from xatlas.comparisons.measures import summary

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Font size of the models' names beside the ratios.
_NAMES = 8
#: Smallest relative effect drawn.
_FLOOR = 1e-3


def draw(dataset: xr.Dataset) -> Figure:
    """Draw each model's effects relative to its mean layer over depth, and early over late beside it."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = [style.fitted(model, 1.7, _NAMES) for model in models]
        row = max(0.5, 0.25 + style.extra(names, _NAMES))
        made = style.figure(9.2, max(3.4, 1.6 + row * len(models)), dataset.attrs["suite"])
        left, right = made.subplots(1, 2, width_ratios=[1.35, 1])
        _profiles(left, dataset, palette)
        _ratios(right, dataset, palette, names)
        entries = [(model, {"color": palette[model]}) for model in models]
        style.legend(made, [*entries, ("other ablation kinds", _SMALL), ("control", _HOLLOW)])
    return made


_SMALL = {"marker": "|", "ls": "none", "ms": 9}
_HOLLOW = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.CONTROL}


def _profiles(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    points = dataset["point"].values
    axes.axvspan(-0.02, 0.5, color="#F4F4F4", lw=0, zorder=0)
    axes.axhline(1, color=style.CONTROL, lw=1)
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        low, high = (np.maximum(one[f"profile_{end}"].values, _FLOOR) for end in ("low", "high"))
        axes.fill_between(points, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(points, np.maximum(one["profile"].values, _FLOOR), color=colour, gid=f"profile-{model}")
    style.log_axis(axes)
    style.plain_ticks(axes)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("effect over the mean layer's")
    axes.set_title("Joint ablation over depth")


def _ratios(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> None:
    models = list(map(str, dataset["model"].values))
    axes.axvline(1, color=style.CONTROL, lw=1)
    for i, model in enumerate(models):
        one, y = dataset.isel(model=i), -i
        value, low, high = summary.triple(one, "early_over_late")
        if np.isnan(value):
            axes.text(1, y, "  one layer: no halves", va="center", fontsize=7.5, color="#666666")
            continue
        axes.plot([low, high], [y, y], color=palette[model], lw=2.5, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=palette[model], ms=6, gid=f"ratio-{model}")
        for other, _, _ in rule.kinds(dataset, i):
            axes.plot([other], [y], "|", color=style.INK, ms=9)
        axes.plot([float(one["control"])], [y - 0.25], "o", mfc="none", mec=style.CONTROL, ms=5)
        ends = [float(one[f"control_{end}"]) for end in ("low", "high")]
        axes.plot(ends, [y - 0.25] * 2, color=style.CONTROL, lw=1)
    style.log_axis(axes, "x")
    style.plain_ticks(axes, "x")
    axes.set_ylim(-len(models) + 0.4, 0.6)
    axes.set_yticks([-i for i in range(len(models))], names, fontsize=_NAMES)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("early over late, ratio")
    axes.set_title("First half over second half")
