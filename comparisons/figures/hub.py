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
#: Dashes of the two components that make up ``joint``.
DASHES = {"operator": (0, (4, 1.5)), "mlp": (0, (1, 1))}
_LINES: list[tuple[str, dict[str, Any]]] = [
    ("joint, 95 % band", {}),
    ("operator", {"ls": DASHES["operator"], "lw": 1}),
    ("MLP", {"ls": DASHES["mlp"], "lw": 1}),
    ("control of joint, 95 % band", {"color": style.CONTROL, "lw": 1}),
]
_RING = ("hub (thin: ties with it)", {"marker": "o", "ls": "none", "mfc": "none", "ms": 8})
_FIRST: dict[str, Any] = {"marker": "x", "ls": "none", "ms": 4.5, "color": style.INK}
_BELOW: dict[str, Any] = {"marker": "v", "ls": "none", "mfc": "none", "ms": 4.5}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw two panels per model: effects with their controls, and P(rank 1) per layer below."""
    models = list(map(str, dataset["model"].values))
    columns = min(len(models), COLUMNS)
    blocks = math.ceil(len(models) / columns)
    with style.context():
        made = style.figure(1.0 + 3.5 * columns, 0.5 + 4.1 * blocks, dataset.attrs["suite"])
        titles = [f"{style.fitted(model, 2.75, 9.5, bold=True)}\n{_said(dataset, model)}" for model in models]
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
        entries = [*_LINES, *((f"{kind} layer", _point(style.marker(kind))) for kind in types), _RING]
        if "position_effect" in dataset:
            entries.append(("position 0 alone zeroed, larger of MLP and operator", _FIRST))
        effect = dataset["effect"].sel(component="joint", bound="value")
        if bool((effect < style.FLOOR).any()):
            entries.append((f"below {style.FLOOR:g} nats", _BELOW))
        style.legend(made, entries)
    return made


def _said(dataset: xr.Dataset, model: str) -> str:
    """Say in a few words what was found about a model's hub."""
    hub, found = dataset["hub"].sel(model=model, component="joint").item(), style.finding(dataset, "hub", model)
    if found is None or math.isnan(hub):
        return "no joint effect"
    said = str(found["finding_verdict"].item())
    return f"hub: layer {int(hub)}, {said}"


def _point(marker: str) -> dict[str, Any]:
    return {"marker": marker, "ls": "none", "ms": 4}


def _effects(axes: Axes, one: xr.Dataset, colour: str) -> None:
    n_layers = int(np.isfinite(one["depth"].values).sum())
    layers = np.arange(n_layers)

    def curve(name: str, component: str = "joint", bound: str = "value") -> Any:
        values = one[name].sel(component=component, bound=bound).values[:n_layers]
        return np.where(np.isnan(values), np.nan, np.maximum(values, style.FLOOR))

    for name, shade in (("control", style.CONTROL), ("effect", colour)):
        if name not in one:
            continue
        ends = curve(name, bound="low"), curve(name, bound="high")
        axes.fill_between(layers, *ends, color=shade, alpha=0.22, lw=0)
        axes.plot(layers, curve(name), color=shade, lw=1 if name == "control" else 1.6)
        if n_layers == 1:  # lines and bands of one point can't be seen
            axes.vlines(layers, *ends, color=shade)
            axes.plot(layers, curve(name), "_", color=shade)
    for component, dashes in DASHES.items():
        axes.plot(layers, curve("effect", component), color=colour, lw=1, ls=dashes, alpha=0.75)
    if "position_effect" in one:
        parts = one["position_effect"].sel(where="first", bound="value", component=list(DASHES))
        first = parts.max("component").values[:n_layers]
        axes.plot(layers, np.where(first > style.FLOOR, first, np.nan), **_FIRST)
    joint, value = curve("effect"), one["effect"].sel(component="joint", bound="value").values[:n_layers]
    types = one["operator_type"].values[:n_layers].astype(str)
    for kind in sorted(set(types)):
        at = layers[(types == kind) & (value >= style.FLOOR)]
        axes.plot(at, joint[at], style.marker(kind), color=colour, ms=4)
    under = layers[value < style.FLOOR]
    if under.size:
        axes.plot(under, joint[under], **{**_BELOW, "color": colour}, clip_on=False)
    _mark_hub(axes, one, joint)
    style.log_axis(axes)
    axes.set_ylim(bottom=style.FLOOR)
    low, high = axes.get_ylim()
    tie = bool((one["tied"].sel(component="joint") == 1).any())
    axes.set_ylim(low, high * (high / low) ** (0.16 if tie else 0.06))  # for its name
    style.layer_axis(axes, n_layers)
    axes.tick_params(labelbottom=False)


def _mark_hub(axes: Axes, one: xr.Dataset, joint: Any) -> None:
    """Ring the hub and whatever ties with it."""
    at = one.sel(component="joint")
    if math.isnan(float(at["hub"])):
        return
    labels = at["layer"].values.tolist()
    hub = labels.index(int(at["hub"]))
    tied = np.flatnonzero(at["tied"].values[: len(joint)] == 1)
    ring: dict[str, Any] = {"mfc": "none", "mec": style.INK, "ms": 10, "ls": "none", "gid": "hub"}
    axes.plot([hub], [joint[hub]], "o", mew=1.4, **ring)
    if tied.size:
        axes.plot(tied, joint[tied], "o", mew=0.6, **ring)
    named = ", ".join(str(labels[i]) for i in tied[:2])
    text = f"layer {labels[hub]}" + (f"\nties with {named}{'…' * (len(tied) > 2)}" if tied.size else "")
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
