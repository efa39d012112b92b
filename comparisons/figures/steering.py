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
_CHANCE: dict[str, Any] = {"color": style.CONTROL, "lw": 0.8, "ls": ":"}
_EDGES = (style.FLOOR, math.inf)


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw KL over depth, the rank among matched directions, and KL over doses, for each model."""
    entries: style.Entries = [
        ("own family's direction, at one share of the stream's norm", _OWN),
        ("random ones with the stream's covariance (matched)", _MATCHED),
        ("own family's, at one length in every layer", _LENGTH),
        *curves.twin_entries(dataset),
    ]
    entries += [("chance", _CHANCE)] if ax is None else []
    said, beyond = style.said(dataset, "rank", "no directions of families"), f"below {style.FLOOR:g} nats"
    parts = [(1.8, _depths), (0.9, _ranks), (1.2, _doses)]
    return style.by_model(dataset, ax, said, parts, entries, beyond=beyond)


def _depths(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    one = one.sel(dose=float(one["dose_shown"]))
    own = one.sel(kind="family", scale="relative")
    clipped = curves.untrained(axes, one["layer"], own, "effect", edges=_EDGES)
    for kind, scale, look in (
        ("matched", "relative", _MATCHED),
        ("family", "absolute", {"color": colour, **_LENGTH}),
        ("family", "relative", {"color": colour, **_OWN}),
    ):
        values = one["effect"].sel(kind=kind, scale=scale)
        values = values.sel(bound="value") if scale == "absolute" else values
        clipped |= curves.draw(axes, one["layer"], values, edges=_EDGES, **look, gid=f"{kind}-{scale}")
    style.log_axis(axes)
    style.layer_axis(axes, one.sizes["layer"])
    style.label_y(axes, f"KL at dose {float(one['dose_shown']):g}, nats")
    return clipped


def _ranks(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    axes.axhline(0.5, **_CHANCE)
    curves.draw(axes, one["layer"], one["rank"], color=colour, **_OWN, gid="rank")
    style.layer_axis(axes, one.sizes["layer"])
    axes.set(ylim=(-0.03, 1.03), xlabel="layer")
    style.label_y(axes, "rank among\nmatched, 0-1")
    return False


def _doses(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    """Draw the mean layer's effect over the doses that were measured."""
    clipped = False
    for kind, look in (("matched", _MATCHED), ("family", {"color": colour, **_OWN})):
        own = one["response"].sel(kind=kind)
        own = own.isel(dose=np.flatnonzero(np.isfinite(own.sel(bound="value").values)))
        clipped |= curves.draw(axes, own["dose"], own, edges=_EDGES, **look, gid=f"dose-{kind}")
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
