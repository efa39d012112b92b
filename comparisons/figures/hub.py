"""The hub's figure: effects over the layers, and how often each layer comes first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Panels side by side.
COLUMNS = 3


def draw(dataset: xr.Dataset) -> Figure:
    """Draw two panels per model: effects with their controls, and P(rank 1) per layer below."""
    models = list(map(str, dataset["model"].values))
    columns = min(len(models), COLUMNS)
    blocks = math.ceil(len(models) / columns)
    with style.context():
        made = style.figure(1.0 + 3.5 * columns, 0.5 + 3.9 * blocks, dataset.attrs["suite"])
        titles = [style.fitted(model, 2.75, 9.5, bold=True) for model in models]
        style.grow(made, blocks * style.extra(titles, 9.5))
        grid = made.add_gridspec(2 * blocks, columns, height_ratios=[3, 1] * blocks)
        palette = style.colours(models)
        for i, model in enumerate(models):
            block, column = divmod(i, columns)
            top = made.add_subplot(grid[2 * block, column])
            below = made.add_subplot(grid[2 * block + 1, column])
            one = dataset.isel(model=i)
            _effects(top, one, palette[model])
            _ranks(below, one, palette[model])
            top.set_title(titles[i], color=palette[model])
            if column == 0:
                top.set_ylabel("KL(clean ‖ ablated), nats")
                below.set_ylabel("P(rank 1)")
        types = sorted(set(dataset["operator_type"].values.ravel().tolist()) - {""})
        style.legend(made, [*_LINES, *((f"{kind} layer", _point(style.marker(kind))) for kind in types), _RING])
    return made


#: Dashes of the two components that make up ``joint``.
DASHES = {"operator": (0, (4, 1.5)), "mlp": (0, (1, 1))}
_LINES: list[tuple[str, dict[str, Any]]] = [
    ("joint, 95 % band", {}),
    ("operator", {"ls": DASHES["operator"], "lw": 1}),
    ("mlp", {"ls": DASHES["mlp"], "lw": 1}),
    ("control of joint", {"color": style.CONTROL, "lw": 1}),
]
_RING = ("hub (thin: tied)", {"marker": "o", "ls": "none", "mfc": "none", "ms": 8})


def _point(marker: str) -> dict[str, Any]:
    return {"marker": marker, "ls": "none", "ms": 4}


def _effects(axes: Axes, one: xr.Dataset, colour: str) -> None:
    n_layers = int(np.isfinite(one["depth"].values).sum())
    layers = np.arange(n_layers)

    def curve(name: str, component: str = "joint") -> Any:
        values = one[name].sel(component=component).values[:n_layers]
        return np.where(np.isnan(values), np.nan, np.maximum(values, style.FLOOR))

    axes.fill_between(layers, curve("control_low"), curve("control_high"), color=style.CONTROL, alpha=0.25, lw=0)
    axes.plot(layers, curve("control"), color=style.CONTROL, lw=1)
    for component, dashes in DASHES.items():
        axes.plot(layers, curve("effect", component), color=colour, lw=1, ls=dashes, alpha=0.75)
    axes.fill_between(layers, curve("effect_low"), curve("effect_high"), color=colour, alpha=0.2, lw=0)
    joint = curve("effect")
    axes.plot(layers, joint, color=colour)
    types = one["operator_type"].values[:n_layers].astype(str)
    for kind in sorted(set(types)):
        at = layers[types == kind]
        axes.plot(at, joint[at], style.marker(kind), color=colour, ms=4)
    if n_layers == 1:  # lines and bands of one point can't be seen
        for name, shade in (("effect", colour), ("control", style.CONTROL)):
            axes.vlines(layers, curve(f"{name}_low"), curve(f"{name}_high"), color=shade)
            axes.plot(layers, curve(name), "_", color=shade)
    _mark_hub(axes, one, joint)
    style.log_axis(axes)
    axes.set_ylim(bottom=style.FLOOR)
    low, high = axes.get_ylim()
    axes.set_ylim(
        low, high * (high / low) ** (0.16 if bool(one.sel(component="joint")["tie"]) else 0.06)
    )  # for its name
    style.layer_axis(axes, n_layers)
    axes.tick_params(labelbottom=False)


def _mark_hub(axes: Axes, one: xr.Dataset, joint: Any) -> None:
    """Ring the hub and whatever ties with it."""
    at = one.sel(component="joint")
    if math.isnan(float(at["hub"])):
        return
    hub, tie = int(at["hub"]), bool(at["tie"])
    tied = [int(layer) for layer in str(at["tied"].item()).split(", ") if layer]
    ring: dict[str, Any] = {"mfc": "none", "mec": style.INK, "ms": 10, "ls": "none", "gid": "hub"}
    axes.plot([hub], [joint[hub]], "o", mew=1.4, **ring)
    if tied:
        axes.plot(tied, joint[tied], "o", mew=0.7, **ring)
    text = f"layer {hub}" + (f"\nties with {', '.join(map(str, tied[:2]))}{'…' * (len(tied) > 2)}" if tie else "")
    right = hub > 0.5 * len(joint)
    axes.annotate(
        text,
        (hub, joint[hub]),
        xytext=(-8 if right else 8, 6),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8,
        fontweight="bold",
        color=style.INK,
    )


def _ranks(axes: Axes, one: xr.Dataset, colour: str) -> None:
    n_layers = int(np.isfinite(one["depth"].values).sum())
    chance = one["p_rank1"].sel(component="joint").values[:n_layers]
    axes.bar(np.arange(n_layers), np.nan_to_num(chance), color=colour, width=0.75)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("layer")
    style.layer_axis(axes, n_layers)
