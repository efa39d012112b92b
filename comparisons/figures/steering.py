"""The figure of steering: effects over depth at both scales, and dose against response per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Line styles by kind of direction; off-task effects stand in the data only.
_LINES = {"random": "-", "family": (0, (4, 1.5)), "shuffled": (0, (1, 1))}
_NAMES = {"random": "random, uniform", "family": "own family", "shuffled": "shuffled labels"}
_TITLES = {"absolute": "One length in every layer", "relative": "One share of the stream's norm"}
#: Most models whose dose-response is drawn; the rest stand in the data.
_MOST = 4


def draw(dataset: xr.Dataset) -> Figure:
    """Draw both profiles over depth above, each model's dose-response per layer below.

    The band is that of random directions with the stream's covariance, among which shuffled labels fall.
    """
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    shown = models[:_MOST]
    with style.context():
        width = 8.0 / len(shown) - 0.15
        titles = [style.fitted(f"{model}: dose and response", width, 9.5, bold=True) for model in shown]
        more = style.extra(titles, 9.5)
        made = style.figure(9.2, 6.4 + more, dataset.attrs["suite"])
        above, below = np.asarray(made.subfigures(2, 1, height_ratios=[3.4, 3.0 + more]))
        tops = above.subplots(1, 2, sharey=True)
        for axes, scale in zip(tops, _TITLES, strict=True):
            _profile(axes, dataset.sel(scale=scale, dose=float(dataset["dose_shown"])), palette)
            axes.set_title(_TITLES[scale])
        tops[0].set_ylabel("KL(clean || steered), nats")
        columns = below.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, model, title in zip(columns, shown, titles, strict=True):
            _doses(axes, dataset.sel(model=model, kind="random", scale="relative"))
            axes.set_xlabel(style.fitted("strength over norm (dark: late layers)", width, 8.5))
            axes.set_title(title)
        columns[0].set_ylabel("KL, random directions, nats")
        entries: list[tuple[str, dict[str, Any]]] = [(model, {"color": palette[model]}) for model in models]
        entries += [(_NAMES[kind], {"ls": line, "lw": 1.2}) for kind, line in _LINES.items()]
        style.legend(made, [*entries, ("stream's covariance, 95 %", {"lw": 6, "alpha": 0.15})])
    return made


def _profile(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        depth = one["depth"].values
        low, high = (np.maximum(one[f"matched_{end}"].values, style.FLOOR) for end in ("low", "high"))
        axes.fill_between(depth, low, high, color=colour, alpha=0.15, lw=0)
        for kind, line in _LINES.items():
            values = np.maximum(one.sel(kind=kind)["effect"].values, style.FLOOR)
            axes.plot(depth, values, color=colour, ls=line, lw=1.3, gid=f"{kind}-{one['scale'].item()}-{model}")
    style.log_axis(axes)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")


def _doses(axes: Axes, dataset: xr.Dataset) -> None:
    """Draw one line per layer, from light (first) to dark (last)."""
    from matplotlib import colormaps

    shades = colormaps["viridis_r"]
    doses = dataset["dose"].values
    for layer, depth in enumerate(dataset["depth"].values):
        if np.isfinite(depth):
            values = np.maximum(dataset["effect"].values[:, layer], style.FLOOR)
            gid = f"dose-{dataset['model'].item()}-{layer}"
            axes.plot(doses, values, "-o", ms=2.5, lw=1, color=shades(0.1 + 0.9 * depth), gid=gid)
    style.log_axis(axes)
    style.log_axis(axes, "x")
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
