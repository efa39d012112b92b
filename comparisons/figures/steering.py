"""The figure of steering: effects over depth, the rank of families' directions, and effects over doses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Curves of effects: kind of direction, scale, how it is drawn, and what it is called.
_MATCHED: dict[str, Any] = {"color": style.CONTROL, "lw": 1, "marker": ".", "ms": 3}
_LENGTH: dict[str, Any] = {"ls": (0, (1, 1)), "lw": 1, "marker": ".", "ms": 3}
_OWN: dict[str, Any] = {"marker": "o", "ms": 3}
_EDGES = (style.FLOOR, math.inf)


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw KL over depth, the rank among matched directions, and KL over doses, for each model."""
    models = list(map(str, dataset["model"].values))
    said, palette = style.said(dataset, "rank", models, "no directions of families"), style.colours(models)
    entries: style.Entries = [
        ("own family's direction, at one share of the stream's norm", _OWN),
        ("random ones with the stream's covariance (matched)", _MATCHED),
        ("own family's, at one length in every layer", _LENGTH),
    ]
    entries += curves.twin_entries(dataset)
    if ax is not None:
        return style.alone(ax, dataset, _depths, said[0], entries)
    with style.context():
        made, panels, _ = style.blocks(dataset, models, said, (1.8, 0.9, 1.2))
        clipped = False
        for model, (top, ranks, doses) in zip(models, panels, strict=True):
            one = style.layers(dataset.sel(model=model))
            clipped |= _depths(top, one, palette[model])
            _ranks(ranks, one, palette[model])
            clipped |= _doses(doses, one, palette[model])
        entries.append(("chance", {"color": style.CONTROL, "lw": 0.8, "ls": ":"}))
        style.legend(made, [*entries, *([(f"below {style.FLOOR:g} nats", style.BEYOND)] if clipped else [])])
    return made


def _depths(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    one = style.layers(one)
    one = one.sel(dose=float(one["dose_shown"]))
    effect = one["effect"].transpose(..., "bound", "layer")
    own = one.sel(kind="family", scale="relative")
    clipped = curves.untrained(axes, one["layer"], own, "effect", edges=_EDGES)
    for kind, scale, shade, look in (
        ("matched", "relative", style.CONTROL, _MATCHED),
        ("family", "absolute", colour, _LENGTH),
        ("family", "relative", colour, _OWN),
    ):
        values = effect.sel(kind=kind, scale=scale).values
        values = values[0] if scale == "absolute" else values
        look = {name: value for name, value in look.items() if name != "color"}
        clipped |= curves.draw(axes, one["layer"], values, shade, edges=_EDGES, **look, gid=f"{kind}-{scale}")
    style.log_axis(axes)
    style.layer_axis(axes, one.sizes["layer"])
    style.label_y(axes, f"KL at dose {float(one['dose_shown']):g}, nats")
    return clipped


def _ranks(axes: Axes, one: xr.Dataset, colour: str) -> None:
    axes.axhline(0.5, color=style.CONTROL, lw=0.8, ls=":")
    rank = one["rank"].transpose("bound", "layer").values
    curves.draw(axes, one["layer"], rank, colour, **_OWN, gid="rank")
    axes.set_ylim(-0.03, 1.03)
    style.layer_axis(axes, one.sizes["layer"])
    axes.set_xlabel("layer")
    style.label_y(axes, "rank among\nmatched, 0-1")


def _doses(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    """Draw the mean layer's effect over the doses that were measured."""
    clipped, response = False, one["response"].transpose(..., "bound", "dose")
    for kind, shade, look in (("matched", style.CONTROL, _MATCHED), ("family", colour, _OWN)):
        own = response.sel(kind=kind)
        own = own.isel(dose=np.flatnonzero(np.isfinite(own.sel(bound="value").values)))
        look = {name: value for name, value in look.items() if name != "color"}
        clipped |= curves.draw(axes, own["dose"], own.values, shade, edges=_EDGES, **look, gid=f"dose-{kind}")
    style.log_axis(axes)
    style.log_axis(axes, "x")
    shown = one["dose"].values
    far = list(shown[-1:])
    for dose in shown[-2::-1]:  # labels have room
        far += [dose] if far[-1] / dose > max(1.35, (shown[-1] / shown[0]) ** 0.2) else []
    axes.set_xticks(far, [f"{dose:g}" for dose in far])
    axes.set_xlabel("dose (strength over norm)")
    style.label_y(axes, "KL, mean layer,\nnats")
    return clipped
