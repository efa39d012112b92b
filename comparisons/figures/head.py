"""The figure of heads: a map per model, and how much of the effect the top five hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import forest, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Effects over the mean head's that the scale goes to at least, and from as one over it; from where on at most.
_LEAST, _LOW = 2.0, 0.01
#: What the ends of the scale are rounded to, times a power of ten.
_ROUND = np.array([1, 1.5, 2, 3, 5, 7, 10])
_RING: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": "#D81B60", "mew": 1.4, "ms": 7}
_LEADS: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "white", "mec": style.INK, "mew": 0.6}
_ABSENT: dict[str, Any] = {"marker": "s", "ls": "none", "color": "#ECECEC", "ms": 7}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw effects per layer and head, the top five ringed, and the shares of the top five below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    ends, rows = _ends(dataset), forest.of_models(dataset, "top_share", "no heads")
    most = int(dataset["first"].fillna(0).max())
    entries: style.Entries = [("five strongest heads", _RING), ("strongest in 1 family", _LEADS | {"ms": _size(1)})]
    entries += [(f"in {most} families", _LEADS | {"ms": _size(most)})] if most > 1 else []
    entries.append(("layer without heads", _ABSENT))
    entries += forest.entries(dataset, "share") if ax is None else []

    def explain(panels: list[list[Axes]]) -> None:
        beyond = "min" if bool((_times(dataset) < ends[0]).any()) else "neither"
        label = "KL over the model's mean head's, ratio"
        bar = style.scale([axes for (axes,) in panels], ScalarMappable(LogNorm(*ends), "cividis"), label, beyond=beyond)
        ticks = style.round_ticks(*ends)
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])

    def shares(axes: Axes) -> bool:
        return forest.draw(axes, rows, "share of the five strongest heads", shares=True)

    said, below = style.said(dataset, "top_share", "no heads"), (forest.height(rows), shares)
    parts = [(2.4, partial(_map, ends=ends))]
    return style.by_model(dataset, ax, said, parts, entries, below=below, after=explain)


def _times(dataset: xr.Dataset) -> xr.DataArray:
    """Return effects over the mean head's of the same model: nats of two models are not comparable."""
    effect = dataset["effect"].sel(bound="value")
    return effect / effect.mean(("layer", "head"))


def _ends(dataset: xr.Dataset) -> tuple[float, float]:
    """Return the ends of the scale of colours: those of what is shown, rounded outwards."""
    times = _times(dataset).values
    times = times[times > 0]
    low, top = max(times.min(initial=1 / _LEAST), _LOW), times.max(initial=_LEAST)
    below, above = (10 ** np.floor(np.log10(end)) for end in (low, top))
    found = _ROUND[_ROUND * below <= low * (1 + 1e-9)].max() * below, _ROUND[_ROUND * above >= top].min() * above
    return float(found[0]), float(found[1])


def _map(axes: Axes, one: xr.Dataset, _: str, ends: tuple[float, float]) -> bool:
    from matplotlib.colors import LogNorm

    effect = _times(one).transpose("layer", "head").values
    held = np.isfinite(effect).any(0)
    effect = effect[:, held] if held.any() else effect[:, :1]
    layers, width = effect.shape
    axes.set_facecolor(_ABSENT["color"])
    axes.grid(visible=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(layers - 0.5, -0.5), xlabel="head")
    axes.set_xticks(range(0, width, next(step for step in (1, 2, 4, 8, 16, 64) if width / step <= 9 or step == 64)))
    axes.set_yticks(range(0, layers, 1 if layers <= 9 else 2 if layers <= 18 else 4))
    style.label_y(axes, "layer")
    axes.tick_params(length=0)
    if not held.any():
        return False
    edges = (np.arange(width + 1) - 0.5, np.arange(layers + 1) - 0.5)
    shown = np.ma.masked_invalid(np.maximum(effect, ends[0]))
    axes.pcolormesh(*edges, shown, cmap="cividis", norm=LogNorm(*ends), edgecolors="white", linewidth=0.4)
    flat = np.where(np.isfinite(effect), effect, -np.inf).ravel()
    strongest = [place for place in np.argsort(-flat, kind="stable")[:5] if np.isfinite(flat[place])]
    rows, heads = np.unravel_index(strongest, effect.shape)
    axes.plot(heads, rows, **_RING, gid="top")
    first = np.nan_to_num(one["first"].transpose("layer", "head").values[:, held])
    for layer, head in zip(*np.nonzero(first), strict=True):
        axes.plot([head], [layer], **_LEADS | {"ms": _size(first[layer, head])}, gid="first")
    return False


def _size(families: float) -> float:
    """Return the size of the mark of a head that is the strongest in that many families."""
    return min(1.5 + families, 6.0)
