"""The figure of heads: a map per model, and how much of the effect the top five hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style
from xatlas.text import number

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
_RING: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": "#D81B60", "mew": 1.4, "ms": 7}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw effects per layer and head, the top five ringed, and the shares of the top five below."""
    from matplotlib.colors import LogNorm

    models = list(map(str, dataset["model"].values))
    columns = min(len(models), COLUMNS)
    blocks = math.ceil(len(models) / columns)
    palette = style.colours(models)
    effect = dataset["effect"].sel(bound="value").values
    known = effect[np.isfinite(effect)]
    top = max(float(known.max(initial=0.0)), 10 * style.FLOOR)
    with style.context():
        names = [style.fitted(model, 2.0, _NAMES) for model in models]
        titles = [f"{style.fitted(model, 1.9, 9.5, bold=True)}\n{_said(dataset, model)}" for model in models]
        block = 3.1 + style.extra(titles, 9.5)
        row = max(0.42, 0.2 + style.extra(names, _NAMES))
        lower = 1.7 + row * len(models)
        made = style.figure(max(5.6, 0.8 + 2.6 * columns), 0.5 + block * blocks + lower, dataset.attrs["suite"])
        maps, below = np.asarray(made.subfigures(2, 1, height_ratios=[block * blocks, lower]))
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
            clipped = bool((known < lowest).any())
            bar = maps.colorbar(
                drawn,
                ax=list(axes),
                label="KL(clean ‖ ablated), nats",
                pad=0.01,
                extend="min" if clipped else "neither",
            )
            bar.minorticks_off()
            ticks = style.round_ticks(lowest, top)
            bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        _shares(below.subplots(), dataset, palette, names)
        _legend(below, made.get_size_inches()[0])
    return made


def _said(dataset: xr.Dataset, model: str) -> str:
    """Say in a few words what was found about a model's five strongest heads."""
    found = style.finding(dataset, "top_share", model)
    if found is None:
        return "no heads"
    return f"top five: {number(found['finding_number'].values[0])} of all"


def _legend(below: Any, inches: float) -> None:
    from matplotlib.lines import Line2D

    entries: list[tuple[str, dict[str, Any]]] = [
        ("five strongest (map)", _RING),
        ("families it leads in (map)", {"marker": "$2$", "ls": "none", "ms": 5}),
        ("share, supported", {"marker": "o", "ms": 5, "lw": 2.5}),
        ("not supported", {"marker": "o", "ms": 5, "lw": 2.5, "mfc": "white"}),
        ("heads that share at random, 95 %", {"color": style.CONTROL, "lw": 2, "marker": "|", "ms": 9}),
    ]
    handles = [Line2D([], [], **({"color": style.INK} | look), label=label) for label, look in entries]
    below.legend(handles=handles, loc="outside lower left", ncols=5 if inches > 9 else 3 if inches > 6.5 else 2)


def _map(axes: Axes, one: xr.Dataset, norm: LogNorm) -> QuadMesh | None:
    n_layers = int(np.isfinite(one["depth"].values).sum())
    effect = one["effect"].sel(bound="value").values[:n_layers]
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
    axes.plot(heads, rows, **_RING, gid="top")
    first = np.nan_to_num(one["first"].values[:n_layers, :width])
    for layer, head in zip(*np.nonzero(first), strict=True):
        bright = norm(max(effect[layer, head], norm.vmin or 0.0)) > 0.55
        colour = style.INK if bright else "white"
        told = f"{int(first[layer, head])}"
        axes.text(float(head), float(layer), told, ha="center", va="center", fontsize=5.5, color=colour)
    return image


def _shares(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> None:
    models = list(map(str, dataset["model"].values))
    for i, model in enumerate(models):
        found, y = style.finding(dataset, "top_share", model), -i
        if found is None or math.isnan(found["finding_number"].values[0]):
            axes.text(0.01, y, "no heads", va="center", fontsize=7.5, color="#666666")
            continue
        value, low, high = found["finding_number"].values
        fill = palette[model] if found["finding_verdict"].item() == "supported" else "white"
        axes.plot([low, high], [y, y], color=palette[model], lw=2.5, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=palette[model], mfc=fill, ms=5.5, gid=f"share-{model}")
        middle, *ends = found["finding_control"].values
        axes.plot(ends, [y - 0.22] * 2, color=style.CONTROL, lw=2, solid_capstyle="butt")
        axes.plot([middle], [y - 0.22], "|", color=style.CONTROL, ms=9)
        axes.text(0.005, y + 0.26, _wins_text(dataset, model), ha="left", va="center", fontsize=7, color="#444444")
    axes.set(xlim=(0, 1), ylim=(-len(models) + 0.4, 0.6))
    axes.set_yticks([-i for i in range(len(models))], names, fontsize=_NAMES)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the summed effect")
    axes.set_title("What the top five heads hold")


def _wins_text(dataset: xr.Dataset, model: str) -> str:
    found = style.finding(dataset, "index_wins", model)
    if found is None:
        return ""
    wins, chance = found["finding_number"].values[0], found["finding_control"].values[0]
    by = "" if math.isnan(chance) else f" (chance {chance:.1f})"
    return f"one index wins {wins:.0f} layers{by}: {found['finding_verdict'].item()}"
