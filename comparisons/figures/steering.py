"""The figure of steering: effects over depth and dose, the rank of families' directions, and early over late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Line styles by kind of direction; the others stand in the data only.
_LINES: dict[str, Any] = {"family": "-", "matched": (0, (3, 1.5))}
_NAMES = {"family": "own family's direction", "matched": "random, the stream's covariance"}
_TITLES = {"absolute": "One length in every layer", "relative": "One share of the stream's norm"}
_CLIPPED: dict[str, Any] = {"marker": "v", "ls": "none", "mfc": "none", "ms": 5}
#: Most models whose intervals are drawn as bands.
_MOST = 3


def draw(dataset: xr.Dataset) -> Figure:
    """Draw KL over depth at both scales and over doses above; rank, logits and norms below."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        made = style.figure(10.6, 6.6, dataset.attrs["suite"])
        grid = made.subplots(2, 3)
        clipped = [_profile(axes, dataset, scale, palette) for axes, scale in zip(grid[0], _TITLES, strict=False)]
        low = min(axes.get_ylim()[0] for axes in grid[0, :2])
        high = max(axes.get_ylim()[1] for axes in grid[0, :2])
        for axes in grid[0, :2]:
            axes.set_ylim(low, high)
        clipped.append(_doses(grid[0, 2], dataset, palette))
        _ranks(grid[1, 0], dataset, palette)
        _logits(grid[1, 1], dataset, palette)
        _norms(grid[1, 2], dataset, palette)
        named = dict(zip(models, dataset["dose_shown"].values, strict=True))
        apart = len(set(named.values())) > 1
        entries: list[tuple[str, dict[str, Any]]] = [
            (f"{model}, dose {named[model]:g}" if apart else model, {"color": palette[model], "marker": "o", "ms": 3})
            for model in models
        ]
        entries += [(_NAMES[kind], {"ls": line, "lw": 1.2}) for kind, line in _LINES.items()]
        entries.append(("chance, or no change", {"color": style.CONTROL, "lw": 1}))
        if any(clipped):
            entries.append((f"below {style.FLOOR:g}", _CLIPPED))
        style.legend(made, entries)
    return made


def _each(dataset: xr.Dataset, palette: dict[str, str]) -> list[tuple[str, str, xr.Dataset]]:
    """Return model, colour and data of each model, without layers that it lacks."""
    found = []
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        found.append((model, colour, one.isel(layer=np.flatnonzero(np.isfinite(one["depth"].values)))))
    return found


def _above(axes: Axes, x: Any, values: Any, colour: str, **look: Any) -> bool:
    """Draw a curve of what lies above the floor, and mark where it does not; tell whether it does anywhere."""
    axes.plot(x, np.where(values > style.FLOOR, values, np.nan), color=colour, **look)
    below = values <= style.FLOOR
    axes.plot(x[below], np.full(int(below.sum()), style.FLOOR), **{"color": colour} | _CLIPPED)
    return bool(below.any())


def _profile(axes: Axes, dataset: xr.Dataset, scale: str, palette: dict[str, str]) -> bool:
    clipped = False
    for model, colour, one in _each(dataset, palette):
        at = one["effect"].sel(scale=scale, dose=float(one["dose_shown"]))
        depth = one["depth"].values
        value, low, high = (at.sel(kind="family", bound=bound).values for bound in one["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(depth, *(np.maximum(e, style.FLOOR) for e in (low, high)), color=colour, alpha=0.15, lw=0)
        gid = f"family-{scale}-{model}"
        clipped |= _above(axes, depth, value, colour, ls=_LINES["family"], marker="o", ms=3, gid=gid)
        matched = at.sel(kind="matched", bound="value").values
        gid = f"matched-{scale}-{model}"
        clipped |= _above(axes, depth, matched, colour, ls=_LINES["matched"], marker=".", ms=3, lw=1, gid=gid)
    style.log_axis(axes)
    _depth(axes)
    axes.set_ylabel("KL(clean || steered), nats")
    axes.set_title(_TITLES[scale])
    return clipped


def _depth(axes: Axes) -> None:
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")


def _doses(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> bool:
    """Draw the mean layer's effect over the doses that were measured."""
    clipped, shown = False, dataset["dose"].values
    for model, colour in palette.items():
        for kind, line in _LINES.items():
            one = dataset["response"].sel(model=model, kind=kind, bound="value")
            x, values = one["dose"].values, one.values
            there = np.isfinite(values)
            gid = f"dose-{kind}-{model}"
            clipped |= _above(axes, x[there], values[there], colour, ls=line, marker="o", ms=3, lw=1.2, gid=gid)
    style.log_axis(axes)
    style.log_axis(axes, "x")
    far = [dose for at, dose in enumerate(shown) if at == 0 or dose / shown[at - 1] > 1.35]
    axes.set_xticks(far, [f"{dose:g}" for dose in far])
    axes.set_xlabel("dose: strength over the stream's norm")
    axes.set_ylabel("KL, mean layer, nats")
    axes.set_title("Dose and response")
    return clipped


def _ranks(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    axes.axhline(0.5, color=style.CONTROL, lw=1)
    for model, colour, one in _each(dataset, palette):
        value, low, high = (one["rank"].sel(bound=bound).values for bound in one["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(one["depth"].values, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(one["depth"].values, value, color=colour, marker="o", ms=3, gid=f"rank-{model}")
    axes.set_ylim(-0.03, 1.03)
    _depth(axes)
    axes.set_ylabel("share that do less (chance: 0.5)")
    axes.set_title("Own family's among matched")


def _logits(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    axes.axhline(0, color=style.CONTROL, lw=1)
    for model, colour, one in _each(dataset, palette):
        at = one["delta_logit_diff"].sel(scale="relative", kind="family")
        value, low, high = (at.sel(bound=bound).values for bound in one["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(one["depth"].values, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(one["depth"].values, value, color=colour, marker="o", ms=3, gid=f"logits-{model}")
    _depth(axes)
    axes.set_ylabel("target minus foil, logits")
    axes.set_title("Own family's, at a share of the norm")


def _norms(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    for model, colour, one in _each(dataset, palette):
        axes.plot(one["depth"].values, one["median_norm"].values, color=colour, marker="o", ms=3, gid=f"norm-{model}")
    style.log_axis(axes)
    ticks = style.round_ticks(*axes.get_ylim())
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _depth(axes)
    axes.set_ylabel("median norm of the stream")
    axes.set_title("What one length is a share of")
