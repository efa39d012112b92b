"""The figure of early and late layers: profiles over depth, and the ratio with its control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Font size of the models' names beside the ratios.
_NAMES = 8
#: Smallest relative effect drawn.
_FLOOR = 1e-3
_SMALL = {"marker": "|", "ls": "none", "ms": 9}
_HOLLOW = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.CONTROL}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw each model's effects relative to its mean layer over depth, and early over late beside it."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = [style.fitted(model, style.within(1.7), _NAMES) for model in models]
        row = max(0.5, 0.25 + style.extra(names, _NAMES))
        made = style.figure(9.2, max(3.4, 1.6 + row * len(models)), dataset.attrs["suite"])
        left, right = style.panels(made, 2, ratios=[1.35, 1])
        _profiles(left, dataset, palette)
        _ratios(right, dataset, palette, names)
        entries = [(model, {"color": palette[model], "marker": "o", "ms": 3}) for model in models]
        style.legend(made, [*entries, ("other ablation kinds", _SMALL), ("control", _HOLLOW)])
    return made


def _profiles(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    axes.axvspan(-0.02, 0.5, color="#F4F4F4", lw=0, zorder=0)
    axes.axhline(1, color=style.CONTROL, lw=1)
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        depth = one["depth"].values
        value, low, high = (np.maximum(one["profile"].sel(bound=b).values, _FLOOR) for b in one["bound"].values)
        axes.fill_between(depth, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(depth, value, color=colour, marker="o", ms=3, gid=f"profile-{model}")
    style.log_axis(axes)
    style.plain_ticks(axes)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("effect over the mean layer's")
    axes.set_title("Joint ablation over depth")


def _ratios(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> None:
    axes.axvline(1, color=style.CONTROL, lw=1)
    findings = dataset.sel(finding=dataset["finding_name"] == "early_over_late")
    usual = (dataset["setting_layer0"] == 1) & (dataset["setting_scope"] == dataset["setting_scope"][0])
    for model, colour in palette.items():
        y = -list(map(str, dataset["model"].values)).index(model)
        one = findings.sel(finding=(findings["finding_model"] == model) & (findings["finding_model_other"] == ""))
        if not one.sizes["finding"] or np.isnan(one["finding_number"].values[0, 0]):
            axes.text(1, y, "  one layer: no halves", va="center", fontsize=7.5, color="#666666")
            continue
        value, low, high = one["finding_number"].values[0]
        axes.plot([low, high], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=colour, ms=6, gid=f"ratio-{model}")
        for other in one["sensitivity"].isel(finding=0).sel(setting=usual, bound="value").values[1:]:
            axes.plot([other], [y], "|", color=style.INK, ms=9)
        middle, *ends = one["finding_control"].values[0]
        axes.plot([middle], [y - 0.25], "o", mfc="none", mec=style.CONTROL, ms=5)
        axes.plot(ends, [y - 0.25] * 2, color=style.CONTROL, lw=1)
    style.log_axis(axes, "x")
    style.plain_ticks(axes, "x")
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.set_yticks([-i for i in range(len(names))], names, fontsize=_NAMES)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("early over late, ratio")
    axes.set_title("First half over second half")
