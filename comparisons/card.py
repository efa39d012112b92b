"""Architectures side by side: what stands in each layer, and where the parameters are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons.figures import card as figure
from xatlas.findings.readings import find, models
from xatlas.findings.sentences import described
from xatlas.text import number

if TYPE_CHECKING:
    import xarray as xr

_ABSENT = "padding of models with fewer layers, a part that the model lacks, or an unembedding that is the embedding"


class Card(Comparison):
    """The map of each architecture: operators, kernels, heads and groups, parameters by layer and role.

    Everything is counted on the modules, so numbers have no interval and nothing is tested: that the MLPs hold most of
    the parameters of a model's layers is supported or refuted by counting.

    ``parameters (model, layer, role)``, ``kernel``, ``n_heads``, ``n_kv_heads (model, layer)``, ``outside (model,
    part)``, ``total``, ``tied``, ``d_model``, ``vocabulary (model)``, ``bytes (model, dtype)``: those of
    ``model_card``; ``share (model, part_of_all)``: shares of embeddings, operators by type, MLPs and norms.
    """

    name = "card"
    version = 1
    summary = "Which operators, heads, kernels and parameters stand in which layer?"
    default = False
    requires = (Requirement("model_card"),)
    plot = staticmethod(figure.draw)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the cards along ``model``, and what share of all parameters each part has."""
        import xarray as xr

        held = {model: find(tree, model, "model_card")[0].dataset for model in models(tree)}
        names = xr.Variable("model", list(held))
        data = xr.concat(list(held.values()), names, join="outer", combine_attrs="drop", data_vars="all", coords="all")
        data["operator_type"] = data["operator_type"].fillna("").astype(str)
        for name in data.data_vars:
            data[name].attrs = dict(next(iter(held.values()))[name].attrs)
        shares = [_shares(data.sel(model=model)) for model in held]
        data["share"] = xr.concat(shares, names, join="exact")
        data["share"].attrs = {"units": "1", "long_name": "share of all parameters"}
        suite = "counted on the models' modules, a parameter that several places share once"
        return described(data, self, suite, dict.fromkeys(sorted(map(str, data.data_vars)), _ABSENT))

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Say of every model whether its MLPs hold most of its layers' parameters."""
        found = []
        for model in map(str, dataset["model"].values):
            one = dataset.sel(model=model)
            share = float(_of_layers(one, "mlp").sum() / one["parameters"].sum())
            kinds = [f"{count} {kind}" for kind, count in _counts(one).items()]
            said = f"In {model} ({', '.join(kinds)} layers, {_short(float(one['total']))} parameters) the MLPs hold"
            found.append(
                Finding(
                    sentence=f"{said} {share:.0%} of the layers' parameters.",
                    value=share,
                    low=share,
                    high=share,
                    control=math.nan,
                    p=math.nan,
                    verdict="supported" if share > 0.5 else "refuted",
                    reason="" if share > 0.5 else "counted: it is not more than half",
                    model=model,
                    name="mlp_share",
                    short="MLPs hold most of the layers' parameters",
                )
            )
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return what stands in the layers, equal ones in one row: in one model runs, in several all."""
        rows: list[dict[str, str | float]] = []
        several = dataset.sizes["model"] > 1
        for model in map(str, dataset["model"].values):
            one = dataset.sel(model=model)
            total = float(one["total"])
            for layers in _equal(one, runs=not several):
                first, own = one.isel(layer=layers[0]), float(one["parameters"].isel(layer=layers).sum())
                cells = {"layers": _named(layers, several), "operator": str(first["operator_type"].item())}
                cells |= {"kernel or heads": _kernel_or_heads(first), "parameters": _short(own / len(layers))}
                rows.append({"model": model, **cells, "share": f"{own / total:.1%}"})
            for part in map(str, one["part"].values):
                own = float(one["outside"].sel(part=part))
                tied = part == "unembedding" and bool(one["tied"])
                if tied or own == own:
                    shown = {"parameters": "–", "share": "–"} if tied else {"parameters": _short(own)}
                    shown = shown if tied else shown | {"share": f"{own / total:.1%}"}
                    size = f"{number(float(one['vocabulary']))} × {number(float(one['d_model']))}"
                    kind = "tied" if tied else size if part == "embedding" else ""
                    names = {"layers": part, "operator": "", "kernel or heads": kind}
                    rows.append({"model": model, **names, **shown})
            size = f"{_short(float(one['bytes'].sel(dtype='float32')))}B in float32"
            whole = {"layers": "all", "operator": "", "kernel or heads": size, "parameters": _short(total)}
            rows.append({"model": model, **whole, "share": "100.0%"})
        return rows


def _of_layers(one: xr.Dataset, group: str) -> xr.DataArray:
    """Return the parameters of each layer ``(layer)`` in the roles of a group, such as mlp."""
    return one["parameters"].sel(role=[str(role).partition(".")[0] == group for role in one["role"].values]).sum("role")


def _counts(one: xr.Dataset) -> dict[str, int]:
    types = [kind for kind in map(str, one["operator_type"].values) if kind]
    return {kind: types.count(kind) for kind in dict.fromkeys(types)}


def _shares(one: xr.Dataset) -> xr.DataArray:
    """Return the shares of all parameters, from the embedding to the unembedding."""
    import xarray as xr

    found = {group: float(_of_layers(one, group).sum()) for group in figure.groups(one)}
    for part in map(str, one["part"].values):
        name = "rest" if part == "other" else part
        found[name] = found.get(name, 0.0) + float(one["outside"].sel(part=part).fillna(0.0))
    ordered = figure.in_order(found)
    return xr.DataArray([found[name] / float(one["total"]) for name in ordered], {"part_of_all": ordered})


def _equal(one: xr.Dataset, *, runs: bool) -> list[list[int]]:
    """Return the layers that are equal in everything, in runs or wherever they stand."""
    groups: list[tuple[Any, list[int]]] = []
    for layer in np.flatnonzero(one["operator_type"].values != "").tolist():
        at = one.isel(layer=layer)
        numbers = (at["kernel"], at["n_heads"], at["n_kv_heads"], *at["parameters"])
        key = (str(at["operator_type"].item()), *(str(float(each)) for each in numbers))
        same = next((own for known, own in (groups[-1:] if runs else groups) if known == key), None)
        if same is None:
            groups.append((key, [layer]))
        else:
            same.append(layer)
    return [own for _, own in groups]


def _named(layers: list[int], counted: bool) -> str:
    if counted:
        return f"{len(layers)} × layer {layers[0]}" if len(layers) > 1 else f"layer {layers[0]}"
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])


def _kernel_or_heads(layer: xr.Dataset) -> str:
    kernel, heads, groups = (float(layer[name]) for name in ("kernel", "n_heads", "n_kv_heads"))
    parts = [f"kernel {kernel:.0f}"] if kernel == kernel else []
    parts += [f"{heads:.0f} heads, {groups:.0f} groups"] if heads == heads else []
    return ", ".join(parts)


def _short(value: float) -> str:
    """Return a count in three digits: 134 M, 1.23 k."""
    for size, mark in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{mark}"
    return f"{value:.0f}"


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [Card]
