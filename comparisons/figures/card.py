"""The figure of architectures: shares of all parameters, and parameters layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons.figures import lettering, style
from xatlas.text import span

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the parts, in the order in which they are drawn; operators of other types take the remaining ones.
_COLOURS = {
    "embedding": "#BBBBBB",
    "conv": "#88CCEE",
    "attention": "#4477AA",
    "ssm": "#EE8866",
    "linear_attention": "#882255",
    "recurrent": "#999933",
    "mlp": "#DDCC77",
    "norm": "#117733",
    "rest": "#332288",
    "unembedding": "#777777",
}
_OTHERS = ("#44AA99", "#D55E00", "#661100", "#AA4499")
_NAMES = 7.5


def groups(one: xr.Dataset) -> list[str]:
    """Return what roles of layers belong to: operator types, mlp, norm, rest."""
    return in_order({str(role).partition(".")[0] for role in one["role"].values})


def in_order(names: Iterable[str]) -> list[str]:
    """Return parts from the embedding to the unembedding; operators without a colour of their own go before MLPs."""
    order = list(_COLOURS)
    return sorted(names, key=lambda name: (order.index(name) if name in order else order.index("mlp") - 0.5, name))


def draw(dataset: xr.Dataset) -> Figure:
    """Draw a bar of shares for every model, and a panel of each model's layers."""
    models = list(map(str, dataset["model"].values))
    parts = list(map(str, dataset["part_of_all"].values))
    strange = [group for group in parts if group not in _COLOURS]
    colours = {**_COLOURS, **{group: _OTHERS[at % len(_OTHERS)] for at, group in enumerate(strange)}}
    with style.context():
        names = [lettering.fitted(model, style.within(1.6), _NAMES) for model in models]
        titles = [lettering.fitted(model, 2.3, 9.5, bold=True, lines=3) for model in models]
        extra = max(lettering.extra(titles, 9.5), lettering.extra(names, _NAMES) * len(models))
        made = style.figure(
            10.2, (3.2 if len(models) < 3 else 2.6) + 0.06 * len(models) + extra, dataset.attrs["suite"]
        )
        made.set_layout_engine("constrained", w_pad=0.14)  # names stand at the edge
        whole, *layers = style.panels(made, 1 + len(models), least=3.2)
        _shares(whole, dataset, names, colours)
        for axes, model, title in zip(layers, models, titles, strict=True):
            _layers(axes, dataset.sel(model=model), title, colours)
        shown = [group for group in parts if float(dataset["share"].sel(part_of_all=group).max()) > 0]
        kinds = sorted(set(map(str, dataset["operator_type"].values.ravel())) - {""})
        entries = [(group, {"color": colours[group], "lw": 6}) for group in shown]
        entries += [(f"{_letter(kind)}: {kind} layer", {"ls": "none"}) for kind in kinds]
        style.legend(made, entries)
    return made


def _letter(kind: str) -> str:
    """Return how layers of an operator type are named below their bars."""
    return "+".join(part[:1].upper() for part in kind.split("+"))


def _shares(axes: Axes, dataset: xr.Dataset, names: list[str], colours: dict[str, str]) -> None:
    left = np.zeros(len(names))
    rows = -np.arange(len(names), dtype=float)
    for group in map(str, dataset["part_of_all"].values):
        share = 100 * dataset["share"].sel(part_of_all=group).values
        axes.barh(rows, share, left=left, height=0.6, color=colours[group], lw=0, snap=False)
        left += share
    axes.set_yticks(rows, names, fontsize=_NAMES)
    axes.set_ylim(rows[-1] - 0.6, 0.6)
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of all parameters, %")
    shares = 100 * dataset["share"]
    largest = shares.mean("model").idxmax("part_of_all").item()
    axes.set_title(f"{largest}: {span(shares.sel(part_of_all=largest).values.tolist(), '.0f')} % of all parameters")


def _layers(axes: Axes, one: xr.Dataset, title: str, colours: dict[str, str]) -> None:
    there = np.flatnonzero(one["operator_type"].values != "")
    own = one.isel(layer=there)
    top = np.zeros(len(there))
    largest = float(own["parameters"].sum("role").max())
    unit, mark = next(
        (pair for pair in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")) if largest >= pair[0]), (1.0, "")
    )
    roles = [str(role).partition(".")[0] for role in own["role"].values]
    for group in groups(one):
        part = own["parameters"].isel(role=[role == group for role in roles]).sum("role").values / unit
        axes.bar(there, part, bottom=top, width=0.85, color=colours[group], lw=0, snap=False)
        top += part
    kinds = list(map(str, own["operator_type"].values))
    step = max(1, -(-sum(len(_letter(kind)) for kind in kinds) // 32))
    axes.set_xticks(
        there[::step], [f"{_letter(kind)}" for kind in kinds[::step]], fontsize=6.5 if len(there) > 16 else 7.5
    )
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.7, len(there) - 0.3)
    axes.set_ylim(0, 1.06 * float(top.max(initial=0)) or 1)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(f"layers 0 to {len(there) - 1}, by operator type" if len(there) > 1 else "one layer")
    axes.set_ylabel(f"parameters, {mark}" if mark else "parameters")
    axes.set_title(title)
