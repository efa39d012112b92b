"""The figure of losses: bits per byte of all texts beside guessing, and of each family's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, lettering, rows, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = 7.5
_GUESS: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.CONTROL, "ms": 5.5}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw each model's bits per byte over all texts, with guessing's, and family by family."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = [lettering.fitted(model, style.within(1.7), _NAMES) for model in models]
        families = [lettering.fitted(str(name), style.within(1.7), _NAMES) for name in dataset["family"].values]
        per_family = max(0.24, 0.075 * len(models) + 0.06)
        height = 1.5 + max((0.3 + lettering.extra(names, _NAMES)) * len(models), per_family * len(families), 1.4)
        made = style.figure(9.2, height, dataset.attrs["suite"])
        made.set_layout_engine("constrained", w_pad=0.1)  # names stand at the edge
        left, right = style.panels(made, 2, ratios=[1, 1.3])
        _overall(left, dataset, palette, names)
        _families(right, dataset, palette, families)
        entries = [(model, {"color": palette[model], "marker": "o", "ms": 3}) for model in models]
        style.legend(made, [*entries, ("guessing among all tokens", _GUESS), *curves.twin_entries(dataset)])
    return made


def _overall(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> None:
    for row, model in enumerate(map(str, dataset["model"].values)):
        one = dataset.sel(model=model)
        value, low, high = one["overall"].values
        axes.plot([low, high], [-row, -row], color=palette[model], lw=2.2, solid_capstyle="butt")
        axes.plot([value], [-row], "o", color=palette[model], ms=5.5, gid=f"loss-{model}")
        axes.plot([one["guess"].sel(bound="value").item()], [-row], **_GUESS)
        for twin in one["overall_untrained"].values if "overall_untrained" in one else ():
            axes.plot([twin], [-row - 0.2], **curves.TWIN)
    axes.set_yticks([-row for row in range(len(names))], names, fontsize=_NAMES)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    _bits(axes)
    axes.set_title(style.counted("All texts: better than guessing", dataset, "loss"))


def _families(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], families: list[str]) -> None:
    """Draw families from the one that costs most down, models above one another in each."""
    mean = np.nanmean(np.log(dataset["loss"].sel(bound="value").transpose("family", "model").values), axis=1)
    order = np.argsort(-mean, kind="stable")
    values = dataset["loss"].transpose("family", "model", "bound").values[order]
    rows.of_models(axes, values, list(palette.values()), [families[family] for family in order])
    _bits(axes)
    axes.set_title(style.counted("By family: one is the hardest", dataset, "hardest"))


def _bits(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    style.log_axis(axes, "x")
    low, high = axes.get_xlim()
    ticks = style.round_ticks(low, high)
    if len(ticks) < 2:
        low, high = low / 2, high * 2
        ticks = style.round_ticks(low, high)
        axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("bits per byte")
