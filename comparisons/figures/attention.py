"""The figure of attention: over depth, the share on position 0 and the strongest heads of two kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Score → what the panel's axis says.
_PANELS = {
    "first": "weight on position 0, mean of heads",
    "previous": "weight on the previous token, best head",
    "induction": "weight after the same token, best head",
}
_EVEN: dict[str, Any] = {"color": style.CONTROL, "lw": 1, "ls": (0, (4, 2))}
_HEAD: dict[str, Any] = {"marker": ".", "ls": "none", "ms": 3, "alpha": 0.6, "mew": 0}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw each layer's mean weight on position 0, and its strongest previous-token and induction head."""
    there = dataset["first"].notnull().any(("layer", "head")) | dataset["induction"].notnull().any(("layer", "head"))
    models = [str(model) for model, known in zip(dataset["model"].values, there.values, strict=True) if known]
    palette = style.colours(models)
    with style.context():
        made = style.figure(9.2, 3.6, dataset.attrs["suite"])
        for axes, score in zip(style.panels(made, 3, least=2.2), _PANELS, strict=True):
            for model in models:
                _twins(axes, dataset.sel(model=model), score)
            for model in models:
                _curve(axes, dataset.sel(model=model), score, palette[model])
            axes.axhline(float(dataset["even"].sel(score=score).mean()), **_EVEN)
            top = min(1.02, max(0.1, 1.05 * axes.dataLim.y1))  # one scale for all would flatten rare kinds of heads
            axes.set(
                xlim=(-0.03, 1.03), ylim=(-0.02 * top, top), xlabel="depth (layer / last layer)", ylabel=_PANELS[score]
            )
            axes.locator_params(axis="y", nbins=6)
            axes.set_title(_title(dataset, score, models))
        kinds = {str(kind) for kind in np.unique(dataset["operator_type"].values) if str(kind) not in ("", "attention")}
        entries = [(model, {"color": palette[model], "marker": "o", "ms": 3}) for model in models]
        entries += [("every head", {**_HEAD, "color": style.INK, "ms": 5}), ("spread evenly", _EVEN)]
        entries += curves.twin_entries(dataset)
        if kinds:
            entries.append((f"no points: {', '.join(sorted(kinds))} layers", {"ls": "none"}))
        style.legend(made, entries)
    return made


def _curve(axes: Axes, one: xr.Dataset, score: str, colour: str) -> None:
    """Draw every head as a point, and through the layers with attention their mean or their strongest."""
    values = one[score].transpose("layer", "head").values
    layers = np.flatnonzero(np.isfinite(values).any(1))
    depth, heads = one["depth"].values[layers], values[layers]
    axes.plot(np.repeat(depth, heads.shape[1]), heads.ravel(), **_HEAD, color=colour)
    axes.plot(depth, _shown(heads, score), color=colour, marker="o", ms=3, gid=f"{score}-{one['model'].item()}")


def _twins(axes: Axes, one: xr.Dataset, score: str) -> None:
    """Draw the same curve of every untrained twin."""
    for values in (
        one[f"{score}_untrained"].transpose("untrained", "layer", "head").values if "untrained" in one.dims else ()
    ):
        layers = np.flatnonzero(np.isfinite(values).any(1))
        axes.plot(one["depth"].values[layers], _shown(values[layers], score), **curves.TWIN)


def _shown(heads: Any, score: str) -> Any:
    """Return the mean of heads ``(layer, head)`` for position 0, else the strongest."""
    return np.nanmean(heads, 1) if score == "first" else np.nanmax(heads, 1)


def _title(dataset: xr.Dataset, score: str, models: list[str]) -> str:
    """Say what was found: of one model its number, of several their range."""
    name = "first_share" if score == "first" else f"{score}_head"
    found = [each for model in models if (each := style.finding(dataset, name, model)) is not None]
    numbers = sorted(float(each["finding_number"].sel(bound="value")) for each in found)
    called, of = {"first": ("Position 0", "mean"), "previous": ("Previous token", "best")}.get(
        score, ("Induction", "best")
    )
    ends = list(dict.fromkeys(f"{number:.2f}" for number in numbers[:1] + numbers[-1:]))
    return f"{called}: {of} {' to '.join(ends)}" if ends else called
