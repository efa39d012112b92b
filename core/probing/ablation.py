"""What probes of the ablation kind are built from: a probe yields cells, and the rest is done here."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, Probe
from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, RandomDirection, means_needed

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.metrics import Metric
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenSuite
    from xatlas.suites import Suite


#: What a cell's number is held against: one condition, several by the variable they go to, or nothing.
Controls = Intervention | Condition | Mapping[str, Intervention | Condition] | None


def matched_control(condition: Condition, draw: int = 0, at: str | None = None) -> Intervention:
    """Return a random direction with the norm of what a condition changes, added where its first part is.

    Parameters
    ----------
    condition : tuple of Intervention
        The ablation, all of it in one layer.
    draw : int
        Which of several directions.
    at : str, optional
        Site kind of the layer at which it is added instead.
    """
    first = condition[0]
    site = first.site if at is None else Site(first.site.layer, at)
    return Intervention(
        site, RandomDirection(condition, draw), heads=None if at else first.heads, positions=first.positions
    )


class AblationProbe(Probe):
    """A probe that changes something, cell by cell, and reads how far the model moves.

    A subclass declares ``variables`` and yields its cells; the base reads the suite, computes reference means and
    donors, sweeps, averages over draws, and returns a labelled dataset with reasons for what is absent.

    Variables whose name begins with ``kl`` are KL(clean ‖ changed) in nats, at every ``scope`` where they have that
    dimension, else at the readout; ``delta_nll``, ``top1_changed`` and ``delta_logit_diff`` are the metrics of
    :mod:`xatlas.metrics` that are called so. Others come from :meth:`derive`.

    Raises
    ------
    XatlasError
        While measuring: a cell fits no variable, or a mean or donor is needed and there is no reference.
    """

    uses_reference: ClassVar[bool] = True
    #: Label or dimension → why some layers have none of it.
    reasons: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def cells(self, model: HookedModel, draw: int) -> Iterator[tuple[Mapping[str, Any], Condition, Controls]]:
        """Yield ``({dimension: label}, condition, control)``.

        The numbers go to the variables that have just these dimensions besides ``prompt`` and ``scope``, the
        control's to the first one's name with ``_control`` behind it. Conditions of one cell are averaged: equal ones
        are run once, donors and directions of different draws make up the mean.
        """

    def labels(self, model: HookedModel | None) -> dict[str, list[Any]]:
        """Return dimension → labels, without ``prompt``; before a model is loaded, what is usual.

        By default ``layer``, and what :attr:`Parameters` lists under a dimension's name with an ``s``.
        """
        given = self.canonical_parameters()
        dims = dict.fromkeys(dim for variable in self.variables.values() for dim in variable.dims)
        found = {dim: given[f"{dim}s"] for dim in dims if isinstance(given.get(f"{dim}s"), list)}
        found.setdefault("scope", ["last"])
        return found | ({} if model is None else {"layer": list(range(model.n_layers))})

    def derive(self, arrays: dict[str, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Return all variables, from those that were measured."""
        return arrays

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return the number of cells, controls included, times draws."""
        labels = self.labels(None)
        sizes = {**size, **{dim: len(labels[dim]) for dim in labels if dim not in size}, "prompt": 1, "scope": 1}
        cells = [variable.dims for name, variable in self.variables.items() if name.startswith("kl")]
        return draws * sum(math.prod(sizes.get(dim, 1) for dim in dims) for dims in cells)

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return the declared variables; see :meth:`cells`."""
        from xatlas.probing.means import noise_floor
        from xatlas.schema import label, layer_coords, suite_coords

        tokens = model.read(suite)
        grid = _Grid(self, self.labels(model))
        for draw in range(inputs.draws):
            for cell, condition, control in self.cells(model, draw):
                grid.add(cell, condition, control)
        arrays = grid.measure(model, tokens, inputs)
        coords = suite_coords(tokens) | layer_coords(model.operator_types)
        if "head" in grid.labels:
            coords |= _head_coords(model, grid.labels["head"])
        coords |= {dim: labels for dim, labels in grid.labels.items() if dim not in coords}
        return label(
            self.variables,
            self.derive(arrays),
            coords,
            absent=grid.absent | {name: self.reasons[name] for name in self.reasons if name in self.variables},
            dropped=tokens.dropped | grid.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )


class _Grid:
    """The cells of a probe's variables, and the conditions whose numbers go there."""

    def __init__(self, probe: AblationProbe, labels: Mapping[str, list[Any]]) -> None:
        self.probe = probe
        self.labels = labels
        self.conditions: list[Condition] = []
        self._index: dict[Condition, int] = {}
        #: variable → cell → the conditions that are averaged there
        self.cells: dict[str, dict[tuple[int, ...], list[int]]] = {}
        self.absent: dict[str, str] = {}
        self.dropped: dict[str, str] = {}

    def dims(self, variable: str) -> list[str]:
        """Return a variable's dimensions without prompt and scope."""
        return [dim for dim in self.probe.variables[variable].dims if dim not in ("prompt", "scope")]

    def add(self, cell: Mapping[str, Any], condition: Condition, control: Controls) -> None:
        """Put a condition and its controls into a cell."""
        fitting = [name for name in self.probe.variables if set(self.dims(name)) == set(cell)]
        if not fitting:
            raise XatlasError(f"probe '{self.probe.name}' has no variable with the dimensions {', '.join(cell)}.")
        controls = control if isinstance(control, Mapping) else {f"{fitting[0]}_control": control}
        for name in fitting:
            chosen = controls.get(name) if name in controls or "control" in name else condition
            if chosen is None:
                continue
            place = tuple(self.labels[dim].index(cell[dim]) for dim in self.dims(name))
            new = (chosen,) if isinstance(chosen, Intervention) else tuple(chosen)
            index = self._index.setdefault(new, len(self.conditions))
            if index == len(self.conditions):
                self.conditions.append(new)
            held = self.cells.setdefault(name, {}).setdefault(place, [])
            if index not in held:
                held.append(index)

    def measure(self, model: HookedModel, tokens: TokenSuite, inputs: Inputs) -> dict[str, xr.DataArray]:
        """Sweep all conditions; return variable → ``(prompt, ...)`` as declared, and note what is absent or dropped."""
        import xarray as xr

        from xatlas.engine.sweep import sweep

        metrics, self.overflow = self._metrics(), model.overflow
        runs, means = self._sources(model, tokens, inputs)
        values = sweep(
            model,
            tokens.prompts,
            self.conditions,
            list(metrics.values()),
            runs=runs,
            means=means,
            seed=inputs.seed,
            checkpoint=inputs.checkpoint,
            progress=inputs.progress,
            label=self.probe.name,
        )
        measured = xr.DataArray(values, {"metric": list(metrics)}, ("metric", "prompt", "condition"))
        missing = self._missing(measured, tokens, metrics, runs)
        return {name: self._gather(name, measured, missing) for name in self.probe.variables if self._names(name)}

    def _names(self, variable: str) -> list[str]:
        """Return the metrics that a variable holds, one for each scope; none for a derived one."""
        from xatlas.metrics import METRICS

        if variable.startswith("kl"):
            return [f"kl {scope}" for scope in self.labels["scope"]]
        return [variable] if variable in METRICS else []

    def _metrics(self) -> dict[str, Metric]:
        from xatlas.metrics import METRICS

        names = dict.fromkeys(name for variable in self.probe.variables for name in self._names(variable))
        split = {name: name.split() for name in names}
        return {name: METRICS[first](*scope) for name, (first, *scope) in split.items()}

    def _sources(
        self, model: HookedModel, tokens: TokenSuite, inputs: Inputs
    ) -> tuple[dict[str, Any], dict[Site, Any]]:
        """Return the donors' runs and the reference means that the conditions look at."""
        from xatlas.probing.means import choose_donors, reference_means

        needed = means_needed(self.conditions)
        names = frozenset().union(*(part.change.runs() for condition in self.conditions for part in condition))
        if not needed and not names:
            return {}, {}
        if inputs.reference is None:
            raise XatlasError("mean and resample ablation need a reference suite: pass --reference FILE.")
        reference = model.read(inputs.reference)
        means = reference_means(model, reference, needed).values if needed else {}
        donors = choose_donors(tokens.prompts, reference, inputs.seed, inputs.draws) if names else []
        return {f"donor {draw}": donor for draw, donor in enumerate(donors)}, means

    def _missing(
        self, measured: xr.DataArray, tokens: TokenSuite, metrics: Mapping[str, Metric], runs: Mapping[str, Any]
    ) -> np.ndarray:
        """Return where a number can't be had ``(prompt, condition)``; note why, and which logits were not finite."""
        prompts = tokens.prompts
        without = np.zeros(measured.shape[1:], dtype=bool)
        empty = np.zeros_like(without)
        for index, condition in enumerate(self.conditions):
            for name in frozenset().union(*(part.change.runs() for part in condition)):
                without[:, index] |= [run is None for run in runs[name]]
            for chosen in {part.positions for part in condition} - {"all"}:
                empty[:, index] |= [not prompt.positions(chosen) for prompt in prompts]
                if empty[:, index].any():
                    count = int(empty[:, index].sum())
                    self.absent[f"position {chosen}"] = f"{count} of {len(prompts)} prompts have no token of this class"
        undonated = int(np.array([[run is None for run in each] for each in runs.values()]).all(0).sum()) if runs else 0
        if undonated:
            told = f"no donor of equal token length, other family and other target for {undonated} prompts"
            names = "resample" if "ablation" in self.labels else "&".join(self.cells)
            self.absent |= dict.fromkeys(names.split("&"), told)
        unread = {name: [not metric.positions(prompt) for prompt in prompts] for name, metric in metrics.items()}
        for name, rows in unread.items():
            if any(rows):
                told = f"{sum(rows)} prompts have no position that it is read at"
                self.absent[name.replace("kl ", "scope ")] = told
        lost = np.isnan(measured.values) & ~(without | empty) & ~np.array(list(unread.values()))[..., None]
        for row, count in enumerate(lost.any(0).sum(1)):
            if count:
                where = f"{count} of {len(self.conditions)} conditions"
                self.dropped[prompts[row].prompt.id] = f"logits were not finite in {where}{self.overflow}"
        return without | empty

    def _gather(self, variable: str, measured: xr.DataArray, missing: np.ndarray) -> xr.DataArray:
        """Average each cell's conditions, those that could not be made left out."""
        import xarray as xr

        dims, there = self.dims(variable), self.cells.get(variable, {})
        values = measured.sel(metric=self._names(variable)).values  # (metric, prompt, condition)
        shape = tuple(len(self.labels[dim]) for dim in dims)
        result = np.full((*values.shape[:2], math.prod(shape)), np.nan)
        for place, conditions in there.items():
            counts = ~missing[:, conditions]  # (prompt, condition)
            total = np.where(counts, values[..., conditions], 0).sum(-1)
            flat = int(np.ravel_multi_index(place, shape)) if place else 0
            result[..., flat] = np.where(counts.any(-1), total / np.maximum(counts.sum(-1), 1), np.nan)
        empty = np.array([place not in there for place in np.ndindex(shape)]).reshape(shape)
        if empty.any():
            self._note_absent(variable, dims, empty)
        array = xr.DataArray(result.reshape(*values.shape[:2], *shape), dims=("scope", "prompt", *dims))
        wanted = self.probe.variables[variable].dims
        return array.transpose(*wanted) if "scope" in wanted else array[0].transpose(*wanted)

    def _note_absent(self, variable: str, dims: list[str], empty: np.ndarray) -> None:
        """Say why a variable has cells that nothing was measured for: the probe's reasons, else in general."""
        from xatlas.schema import cells

        labels = [self.labels[dim] for dim in dims]
        per_layers: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # the same cells are missing in these layers
        layer = dims.index("layer") if "layer" in dims else 0
        moved = np.moveaxis(empty, layer, -1) if dims else empty
        for rest in np.ndindex(moved.shape[:-1]):
            layers = tuple(np.flatnonzero(moved[rest]).tolist())
            if layers:
                per_layers.setdefault(layers, []).append(rest)
        for layers, cells_there in per_layers.items():
            sets = [sorted(set(axis)) for axis in zip(*cells_there, strict=True)]
            whole = math.prod(map(len, sets)) == len(cells_there)
            for group in [sets] if whole else [[[i] for i in rest] for rest in cells_there]:
                group = [*group[:layer], list(layers), *group[layer:]]
                partial = any(
                    len(some) < len(each)
                    for d, (some, each) in enumerate(zip(group, labels, strict=True))
                    if d != layer
                )
                picked = {
                    dim: [each[i] for i in some]
                    for d, (dim, each, some) in enumerate(zip(dims, labels, group, strict=True))
                    if (partial if d != layer else len(some) < len(each) or not partial)
                }
                named = [*map(str, (label for some in picked.values() for label in some)), *dims]
                told = next((self.probe.reasons[name] for name in named if name in self.probe.reasons), "no such part")
                self.absent.setdefault(cells(**picked) or variable, told)


def _head_coords(model: HookedModel, heads: list[int]) -> dict[str, Any]:
    """Return the coordinates of heads; -1 stands for the group of a head that reads another one in another layer."""
    layouts = [layout for layout in model.head_layouts if layout is not None]
    groups = [{layout.kv_group(head) for layout in layouts if head < layout.n_heads} for head in heads]
    return {"head": heads, "kv_group": ("head", [each.pop() if len(each) == 1 else -1 for each in groups])}
