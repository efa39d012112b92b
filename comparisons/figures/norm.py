"""The figure of norms: over depth at single tokens and over prompts, whose they are, and where texts grow most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Panels of norms: curve, title, claim whose support the title counts.
_PANELS = {
    "last": ("A jump at the readout", "phases"),
    "first": ("Longer at position 0", "first"),
    "prompt": ("Over the prompt, as published", ""),
}
#: Most models whose intervals are drawn as bands.
_MOST = 3
_JUMP: dict[str, Any] = {"marker": "^", "ls": "none", "ms": 6}
_NAMES = 7.5


def draw(dataset: xr.Dataset) -> Figure:
    """Draw norms over depth, one token's share of them, and in which layers each family's texts grow most."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = {model: lettering.fitted(model, style.within(1.6), _NAMES) for model in models}
        row = 0.16 + lettering.extra(list(names.values()), _NAMES)
        height = max(3.9 + max(0.0, 0.11 * len(models) - 0.4), 1.4 + row * len(models))
        made = style.figure(11.0, height, dataset.attrs["suite"])
        *norms, share, layers, says = style.panels(made, 6, least=3.2)
        for axes, (curve, (title, claim)) in zip(norms, _PANELS.items(), strict=True):
            _norms(axes, dataset, curve, palette)
            axes.set_title(style.counted(title, dataset, claim))
        low = min(axes.get_ylim()[0] for axes in norms)
        high = max(axes.get_ylim()[1] for axes in norms)
        for axes in norms:
            axes.set_ylim(low, high)
            style.log_axis(axes, about=(0.5, 2))
        _shares(share, dataset, palette)
        _layers(layers, dataset, palette, names)
        _families(says, dataset, palette, names)
        jump = sorted({f"{each:g}" for each in dataset["jump"].values})
        entries: list[tuple[str, dict[str, Any]]] = [(model, {"color": palette[model]}) for model in models]
        entries += [(f"behind layer 0, {' or '.join(jump)} times as long or more", _JUMP)]
        entries += curves.twin_entries(dataset)
        entries += [("a family, by how many of its prompts", {"marker": "o", "ls": "none", "ms": 4})]
        entries += [("templates dealt out at random", {"color": style.CONTROL, "lw": 4, "alpha": 0.5})]
        style.legend(made, entries)
    return made


def _norms(axes: Axes, dataset: xr.Dataset, curve: str, palette: dict[str, str]) -> None:
    for model in palette:
        one = dataset.sel(model=model, curve=curve)
        curves.untrained(axes, one["depth"], one, "norm")
    for model, colour in palette.items():
        one = dataset.sel(model=model, curve=curve)
        depth = one["depth"].values
        value, low, high = (one["norm"].sel(bound=bound).values for bound in one["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(depth, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(depth, value, color=colour, lw=1.3, marker=".", ms=3, gid=f"{curve}-{model}")
        growth = one["growth"].sel(bound="value").values
        jumps = (growth >= float(one["jump"])) & (one["layer"].values > 0)  # the first write is always long
        axes.plot(depth[jumps], value[jumps], color=colour, **_JUMP)
    axes.axhline(1, color=style.CONTROL, lw=0.8)
    style.log_axis(axes)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("norm over that entering layer 0")


def _shares(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        value, low, high = (one["token_share"].sel(bound=bound).values for bound in one["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(one["depth"].values, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(one["depth"].values, value, color=colour, lw=1.3, marker=".", ms=3)
    axes.axhline(0.5, color=style.CONTROL, lw=0.8)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("share of the prompt's squared norm")
    axes.set_title(style.counted("One token makes the jump", dataset, "one_token"))


def _layers(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: dict[str, str]) -> None:
    """Draw, for each model, a row of dots per family: where its prompts grow most."""
    families = list(map(str, dataset["family"].values))
    offsets = np.linspace(0.36, -0.36, len(families)) if len(families) > 1 else np.zeros(1)
    for row, model in enumerate(names):
        one = dataset.sel(model=model)
        for offset, share in zip(offsets, one["jump_share"].transpose("family", "layer").values, strict=True):
            there = share > 0
            depth = one["depth"].values[there]
            axes.scatter(depth, np.full(depth.shape, offset - row), s=16 * share[there], color=palette[model], lw=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_title("Largest growth at the readout")
    _rows(axes, dict(zip(families, offsets, strict=True)) if len(names) == 1 else _places(names))


def _families(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: dict[str, str]) -> None:
    """Draw how much more often templates of one family share that layer, beside templates dealt out at random."""
    axes.axvline(0, color=style.CONTROL, lw=0.8)
    for row, model in enumerate(names):
        found = style.finding(dataset, "family", model)
        if found is None or not np.isfinite(found["finding_number"].values[0]):
            axes.text(0, -row, "  too few templates", va="center", fontsize=_NAMES, color="#666666")
            continue
        (value, low, high), (_, *chance) = found["finding_number"].values, found["finding_control"].values
        axes.plot(chance, [-row, -row], color=style.CONTROL, lw=5, alpha=0.5, solid_capstyle="butt")
        axes.plot([low, high], [-row, -row], color=palette[model], lw=2, solid_capstyle="butt")
        axes.plot([value], [-row], "o", color=palette[model], ms=5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.25), max(high, 0.5))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("layer shared more often in families")
    axes.set_title(style.counted("The family tells the layer", dataset, "family"))
    _rows(axes, _places(names))
    axes.set_yticklabels([])  # as in the panel before; colours tell models, too


def _places(names: dict[str, str]) -> dict[str, float]:
    return {name: -float(row) for row, name in enumerate(names.values())}


def _rows(axes: Axes, places: dict[str, float]) -> None:
    """Name the rows of a panel."""
    axes.set_yticks(list(places.values()), list(places), fontsize=_NAMES)
    at = list(places.values())
    room = 0.55 if all(value == round(value) for value in at) else 0.1
    axes.set_ylim(min(at) - room, max(at) + room)
    axes.grid(visible=False, axis="y")
