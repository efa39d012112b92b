"""The hub's figure: effects over the layers of each model, and how often each layer comes first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Dashes of the two components that make up ``joint``.
DASHES = {"operator": (0, (4, 1.5)), "mlp": (0, (1, 1))}
_FIRST: dict[str, Any] = {"marker": "x", "ls": "none", "ms": 4.5, "color": style.INK}
_RING: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.INK, "ms": 10}
_EDGES = (style.FLOOR, math.inf)


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw two panels per model: effects with their controls, and P(rank 1) per layer below."""

    def bare(panels: list[list[Axes]]) -> None:
        for top, _ in panels:
            top.tick_params(labelbottom=False)
            top.set_xlabel("")

    said = style.said(dataset, "hub", "no joint effect")
    parts = ((2.2, _effects), (0.6, _ranks))
    beyond = f"below {style.FLOOR:g} nats"
    return style.by_model(dataset, ax, said, parts, _entries(dataset), beyond=beyond, after=bare)


def _entries(dataset: xr.Dataset) -> style.Entries:
    found: style.Entries = [
        ("joint, 95 % band", {}),
        ("operator", {"ls": DASHES["operator"], "lw": 1, "marker": ".", "ms": 3}),
        ("MLP", {"ls": DASHES["mlp"], "lw": 1, "marker": ".", "ms": 3}),
    ]
    if "control" in dataset:
        found.append(("control of joint, 95 % band", {"color": style.CONTROL, "lw": 1, "marker": ".", "ms": 3}))
    found += [*curves.twin_entries(dataset), *style.kinds(dataset), ("hub (thin: ties with it)", _RING | {"ms": 8})]
    if "position_effect" in dataset:
        found.append(("position 0 alone zeroed, larger of MLP and operator (from 1e-4)", _FIRST))
    return found


def _effects(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    layers, effect, joint = one["layer"].values, one["effect"], one.sel(component="joint")
    clipped = curves.untrained(axes, layers, joint, "effect", edges=_EDGES)
    if "control" in one:
        clipped |= curves.draw(axes, layers, joint["control"], color=style.CONTROL, edges=_EDGES, lw=1)
    for component, dashes in DASHES.items():
        values = effect.sel(component=component, bound="value")
        clipped |= curves.draw(axes, layers, values, color=colour, edges=_EDGES, lw=1, ls=dashes, alpha=0.75)
    clipped |= curves.draw(axes, layers, joint["effect"], color=colour, edges=_EDGES, typed=True, gid="joint")
    if "position_effect" in one:
        parts = one["position_effect"].sel(where="first", bound="value", component=list(DASHES))
        first = parts.max("component").values
        axes.plot(layers, np.where(first > style.FLOOR, first, np.nan), **_FIRST)
    value = joint["effect"].sel(bound="value").values
    for width, chosen in ((1.4, joint["hub"].values == layers), (0.6, joint["tied"].values == 1)):
        if chosen.any():
            axes.plot(layers[chosen], np.maximum(value[chosen], style.FLOOR), mew=width, **_RING, gid="hub")
    style.log_axis(axes)
    style.layer_axis(axes, len(layers))
    style.label_y(axes, "KL(clean ‖ ablated), nats")
    axes.set_xlabel("layer")
    return clipped


def _ranks(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    chance = one["p_rank1"].sel(component="joint").values
    axes.bar(one["layer"].values, np.nan_to_num(chance), color=colour, width=0.75)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlabel="layer")
    style.label_y(axes, "P(rank 1)")
    style.layer_axis(axes, one.sizes["layer"])
    return False
