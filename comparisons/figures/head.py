"""The figure of heads: a map per model, and how much of the effect the top five hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons.figures import style
from xatlas.comparisons.measures import summary

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

#: Maps side by side.
COLUMNS = 4
#: Font size of the models' names beside the shares.
_NAMES = 8


def draw(dataset: xr.Dataset) -> Figure:
    """Draw effects per layer and head, the top five ringed, and the shares of the top five below."""
    from matplotlib.colors import LogNorm

    models = list(map(str, dataset["model"].values))
    columns = min(len(models), COLUMNS)
    blocks = math.ceil(len(models) / columns)
    palette = style.colours(models)
    known = dataset["effect"].values[np.isfinite(dataset["effect"].values)]
    top = max(float(known.max(initial=0.0)), 10 * style.FLOOR)
    with style.context():
        names = [style.fitted(model, 2.0, _NAMES) for model in models]
        titles = [style.fitted(model, 1.9, 9.5, bold=True) for model in models]
        block = 3.1 + style.extra(titles, 9.5)
        row = max(0.42, 0.2 + style.extra(names, _NAMES))
        height = 1.4 + block * blocks + row * len(models)
        made = style.figure(max(5.0, 0.8 + 2.6 * columns), height, dataset.attrs["suite"])
        maps, below = np.asarray(made.subfigures(2, 1, height_ratios=[block * blocks, 0.9 + row * len(models)]))
        axes = np.atleast_1d(maps.subplots(blocks, columns)).ravel()
        lowest = min(max(style.FLOOR, float(known.min(initial=top))), top / 10)
        norm = LogNorm(lowest, top)
        drawn = None
        for i, model in enumerate(models):
            drawn = _map(axes[i], dataset.isel(model=i), norm) or drawn
            axes[i].set_title(titles[i], color=palette[model])
        for empty in axes[len(models) :]:
            empty.set_visible(False)
        if drawn is not None:
            bar = maps.colorbar(drawn, ax=list(axes), label="KL(clean ‖ ablated), nats", pad=0.01)
            bar.minorticks_off()
            ticks = style.round_ticks(lowest, top)
            bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        _shares(below.subplots(), made.get_size_inches()[0], dataset, palette, names)
    return made


def _map(axes: Axes, one: xr.Dataset, norm: LogNorm) -> QuadMesh | None:
    n_layers = int(np.isfinite(one["depth"].values).sum())
    effect = one["effect"].values[:n_layers]
    width = max(int(np.isfinite(effect).any(0).sum()), 1)
    effect = effect[:, :width]
    axes.set_facecolor("#ECECEC")
    axes.grid(visible=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(n_layers - 0.5, -0.5), xlabel="head", ylabel="layer")
    axes.set_xticks(range(0, width, 1 if width <= 9 else 2 if width <= 18 else 8))
    axes.set_yticks(range(0, n_layers, 1 if n_layers <= 16 else 4))
    axes.tick_params(length=0)
    for layer in np.flatnonzero(~np.isfinite(effect).any(1)):
        kind = str(one["operator_type"].values[layer])
        axes.text((width - 1) / 2, float(layer), kind, ha="center", va="center", fontsize=6.5, color="#777777")
    if not np.isfinite(effect).any():
        return None
    edges = (np.arange(width + 1) - 0.5, np.arange(n_layers + 1) - 0.5)
    shown = np.ma.masked_invalid(np.maximum(effect, norm.vmin or 0.0))
    image = axes.pcolormesh(*edges, shown, cmap="cividis", norm=norm, edgecolors="white", linewidth=0.4)
    flat = np.where(np.isfinite(effect), effect, -np.inf).ravel()
    strongest = [place for place in np.argsort(-flat, kind="stable")[:5] if np.isfinite(flat[place])]
    rows, heads = np.unravel_index(strongest, effect.shape)
    axes.plot(heads, rows, "o", mfc="none", mec="#D81B60", mew=1.4, ms=7, gid="top")
    return image


def _shares(axes: Axes, inches: float, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> None:
    models = list(map(str, dataset["model"].values))
    for i, model in enumerate(models):
        one, y = dataset.isel(model=i), -i
        value, low, high = summary.triple(one, "top_share")
        if math.isnan(value):
            axes.text(0.01, y, "no heads", va="center", fontsize=7.5, color="#666666")
            continue
        axes.barh([y], [value], color=palette[model], alpha=0.35, height=0.5)
        axes.plot([low, high], [y, y], color=palette[model], lw=2.5, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=palette[model], ms=5, gid=f"share-{model}")
        axes.plot([float(one["top_share_control"])], [y], "|", color=style.CONTROL, ms=13, mew=2)
        axes.plot([float(one["top_share_chance"])], [y], "|", color=style.INK, ms=13, mew=1)
        axes.text(0.01, y, _wins_text(one), ha="left", va="center", fontsize=7.5, color="#444444")
    axes.set(xlim=(0, 1), ylim=(-len(models) + 0.4, 0.6))
    axes.set_yticks([-i for i in range(len(models))], names, fontsize=_NAMES)
    axes.grid(visible=False, axis="y")
    controlled = bool(dataset["top_share_control"].notnull().any())
    ticks = ("grey tick: control, " if controlled else "") + "black tick: layers shuffled (95 %)"
    told = f"share of the summed effect; {ticks}"
    axes.set_xlabel(style.fitted(told, inches - 2.4, 8.5))
    axes.set_title("Top five heads")


def _wins_text(one: xr.Dataset) -> str:
    wins, layers = int(one["index_wins"]), int(one["n_layers_won"])
    return f"one index wins {wins} of {layers} layers, chance {float(one['index_wins_chance']):.1f}"
