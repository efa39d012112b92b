"""What probes of the ablation kind are built from: a probe yields cells, and the rest is done here."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, Probe
from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, RandomDirection

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.metrics import Metric
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt
    from xatlas.suites import Suite


#: What is done: one intervention, or several together.
Ablation = Intervention | Condition
#: What a number is held against: one ablation, several by the variable they go to, or nothing.
Controls = Ablation | Mapping[str, Ablation] | None
#: What :meth:`AblationProbe.cells` yields: ``({dimension: label}, condition, control)``.
Cells = Iterator[tuple[Mapping[str, Any], Ablation, Controls]]


def matched_control(ablated: Ablation, draw: int = 0, at: str | None = None) -> Intervention:
    """Return a control: a random direction with the norm of what an ablation of one layer changes.

    It is added where the ablation's first part is, or at the site kind ``at``; ``draw`` picks one of several. Measured
    by an :class:`AblationProbe`, it has the covariance of the stream there, or of a head's values.
    """
    condition = _condition(ablated)
    first = condition[0]
    site = first.site if at is None else Site(first.site.layer, at)
    heads = first.heads if at is None else None
    return Intervention(site, RandomDirection(condition, draw), heads, first.positions)


def _condition(ablated: Ablation) -> Condition:
    return (ablated,) if isinstance(ablated, Intervention) else tuple(ablated)


class Grid:
    """Conditions, and the cells of named arrays that their numbers go to; equal conditions are measured once."""

    def __init__(self, dims: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[Any]]) -> None:
        self.dims = dims  # array → its dimensions
        self.labels = labels  # dimension → its labels
        self.conditions: list[Condition] = []
        self._numbers: dict[Condition, int] = {}
        shapes = {name: [len(labels.get(dim, ())) for dim in own] for name, own in dims.items()}
        self._index = {name: np.full(shape, -1) for name, shape in shapes.items()}

    def add(self, name: str, cell: Mapping[str, Any], ablated: Ablation) -> None:
        """Put a condition into a cell of an array, which holds one."""
        condition = _condition(ablated)
        number = self._numbers.setdefault(condition, len(self.conditions))
        if number == len(self.conditions):
            self.conditions.append(condition)
        place = tuple(list(self.labels[dim]).index(cell[dim]) for dim in self.dims[name])
        if self._index[name][place] not in (-1, number):
            labels = ", ".join(f"{dim} {cell[dim]}" for dim in self.dims[name])
            raise XatlasError(f"two conditions go to one cell of '{name}': {labels}.")
        self._index[name][place] = number

    def index(self, name: str) -> xr.DataArray:
        """Return the number of the condition in each cell ``(*dims)``, -1 where there is none."""
        import xarray as xr

        return xr.DataArray(self._index[name], dims=self.dims[name])

    def gather(self, name: str, measured: xr.DataArray) -> xr.DataArray:
        """Return ``(..., *dims)`` of ``measured (..., condition)``, NaN in cells without a condition."""
        return measured.pad(condition=(0, 1)).isel(condition=self.index(name))  # -1 picks what is padded

    def absent(self, name: str, reasons: Mapping[str, str]) -> dict[str, str]:
        """Return why cells of an array have no condition: by their labels' or dimensions' names, else in general."""
        from xatlas.schema import cells

        dims, rest = self.dims[name], [dim for dim in self.dims[name] if dim != "layer"]
        layers: dict[tuple[Any, ...], list[Any]] = {}  # labels in the other dimensions → layers
        for place in np.argwhere(self._index[name] < 0):
            labels = {dim: self.labels[dim][i] for dim, i in zip(dims, place, strict=True)}
            layers.setdefault(tuple(labels[dim] for dim in rest), []).append(labels.get("layer"))
        alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}  # layers → labels in the other dimensions
        for other, own in layers.items():
            alike.setdefault(tuple(own), []).append(other)
        absent = {}
        for same, others in alike.items():
            columns = [list(dict.fromkeys(column)) for column in zip(*others, strict=True)]
            product = math.prod(map(len, columns)) == len(others)
            for group in [columns] if product else [[[each] for each in other] for other in others]:
                picked = dict(zip(rest, group, strict=True))
                if all(len(some) == len(self.labels[dim]) for dim, some in picked.items()):
                    picked = {}
                if "layer" in dims and (not picked or len(same) < len(self.labels["layer"])):
                    picked = {"layer": list(same), **picked}
                named = [*(str(label) for some in picked.values() for label in some), *dims]
                reason = next((reasons[each] for each in named if each in reasons), "no such part")
                absent[cells(**picked) or name] = reason
        return absent


class AblationProbe(Probe):
    """A probe that changes something, cell by cell, and reads how far the model moves.

    A subclass declares ``variables`` and yields its cells; the base reads the suite, computes reference means and
    donors, sweeps, and returns a labelled dataset with reasons for what is absent. Controls are random directions
    with the covariance of the reference's stream, drawn for each prompt; their ``draw`` is a dimension.

    Variables whose name begins with ``kl`` are KL(clean ‖ changed) in nats, at every ``scope`` where they have that
    dimension, else at the readout; ``delta_nll``, ``top1_changed`` and ``delta_logit_diff`` are the metrics of
    :mod:`xatlas.metrics` that are called so. Others come from :meth:`derive`.

    Raises
    ------
    XatlasError
        While measuring: a cell fits no variable, or there is no reference for a mean, a donor or a control.
    """

    uses_reference: ClassVar[bool] = True
    #: Label or dimension → why some layers have none of it.
    reasons: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.variables = {name: variable for name, variable in self.variables.items() if self.measures(name)}

    def measures(self, variable: str) -> bool:
        """Return whether the parameters ask for a declared variable; by default all are measured."""
        return True

    @abstractmethod
    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield ``({dimension: label}, condition, control)``.

        The condition's numbers go to the variables that have just these dimensions besides ``prompt`` and ``scope``,
        the control's to the first one's name with ``_control`` behind it, which has ``draw`` among its dimensions,
        and may lack some of the cell's. Cells are yielded for each draw of the controls: conditions don't depend on it.
        """

    def labels(self, model: HookedModel | None) -> dict[str, list[Any]]:
        """Return dimension → labels, without ``prompt``; before a model is loaded, what is usual.

        By default layers, heads and key/value groups of the model, and what :attr:`Parameters` or the class lists
        under a dimension's name with an ``s``.
        """
        found: dict[str, list[Any]] = {"scope": ["last"]}
        for dim in dict.fromkeys(dim for variable in self.variables.values() for dim in variable.dims):
            listed = getattr(self.parameters, f"{dim}s", getattr(self, f"{dim}s", None))
            if isinstance(listed, tuple | list):
                found[dim] = list(listed)
            elif model is not None and dim in ("layer", "head", "kv_group"):
                layouts = [layout for layout in model.head_layouts if layout is not None]
                most = {"layer": [model.n_layers], "head": [x.n_heads for x in layouts]}
                found[dim] = list(range(max(most.get(dim, [x.n_kv_heads for x in layouts]), default=1)))
        return found

    def derive(self, arrays: dict[str, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Return all variables, from those that were measured."""
        return arrays

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return just what will be swept."""
        grid = self._grid(model, draws)
        metrics = (self._metrics(name, grid.labels["scope"]) for name in self.variables)
        return grid.conditions, list({name: metric for each in metrics for name, metric in each.items()}.values())

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return the declared variables; see :meth:`cells`."""
        from xatlas.engine.sweep import named_sweep
        from xatlas.probing.means import noise_floor, sources
        from xatlas.schema import label, layer_coords, suite_coords

        tokens, grid = model.read(suite), self._grid(model, inputs.draws)
        held = {name: self._metrics(name, grid.labels["scope"]) for name in self.variables}
        metrics = {name: metric for each in held.values() for name, metric in each.items()}
        runs, means, conditions = sources(model, tokens.prompts, grid.conditions, inputs)
        measured = named_sweep(  # (metric, prompt, condition)
            model,
            tokens.prompts,
            conditions,
            metrics,
            runs=runs,
            means=means,
            seed=inputs.seed,
            checkpoint=inputs.checkpoint,
            progress=inputs.progress,
            label=self.name,
        )
        missing, absent, dropped = self._explain(measured, tokens.prompts, grid, metrics, runs)
        arrays = {}
        for name, each in held.items():
            if each:
                found = grid.gather(name, measured.sel(metric=list(each)).where(~missing))
                scoped = "scope" in self.variables[name].dims
                arrays[name] = found.rename(metric="scope") if scoped else found.isel(metric=0)
                absent = grid.absent(name, self.reasons) | absent
        coords = suite_coords(tokens) | layer_coords(model.operator_types)
        if "head" in grid.labels:
            coords |= model_heads(model, grid.labels["head"])
        return label(
            self.variables,
            self.derive(arrays),
            {**grid.labels, **coords},
            absent=absent,
            dropped={**tokens.dropped, **{name: f"{reason}{model.overflow}" for name, reason in dropped.items()}},
            noise_floor=noise_floor(model, tokens.prompts),
        )

    def _grid(self, model: HookedModel, draws: int) -> Grid:
        """Put every condition, and its controls of every draw, where their numbers go."""
        dims = {name: [dim for dim in v.dims if dim not in ("prompt", "scope")] for name, v in self.variables.items()}
        drawn = any("draw" in each for each in dims.values())
        grid = Grid(dims, self.labels(model) | ({"draw": list(range(draws))} if drawn else {}))
        for draw in range(draws if drawn else 1):
            for cell, condition, control in self.cells(model, draw):
                fitting = [name for name in dims if set(dims[name]) == set(cell) and "control" not in name]
                if not fitting:
                    raise XatlasError(f"probe '{self.name}' has no variable with the dimensions {', '.join(cell)}.")
                controls = control if isinstance(control, Mapping) else {f"{fitting[0]}_control": control}
                for name in fitting:
                    grid.add(name, cell, condition)
                for name, chosen in controls.items():
                    if chosen is not None and name in dims and ("draw" in dims[name] or draw == 0):
                        grid.add(name, {**cell, "draw": draw}, chosen)
        return grid

    def _metrics(self, variable: str, scopes: Sequence[str]) -> dict[str, Metric]:
        """Return the metrics that a variable holds, one for each of its scopes; a derived one holds none."""
        from xatlas.metrics import KL, METRICS

        if variable.startswith("kl"):
            scopes = scopes if "scope" in self.variables[variable].dims else ["last"]
            return {f"scope {scope}": KL(scope) for scope in scopes}
        return {variable: METRICS[variable]()} if variable in METRICS else {}

    def _explain(
        self,
        measured: xr.DataArray,
        prompts: Sequence[TokenPrompt],
        grid: Grid,
        metrics: Mapping[str, Metric],
        runs: Mapping[str, Sequence[Any]],
    ) -> tuple[xr.DataArray, dict[str, str], dict[str, str]]:
        """Return where no number can be measured ``(prompt, condition)``, why, and prompt → which were not finite."""
        import xarray as xr

        from xatlas.probing.reading import absent_positions, without_tokens

        empty = without_tokens(prompts, {part.positions for condition in grid.conditions for part in condition})
        without = {name: np.array([run is None for run in each]) for name, each in runs.items()}
        missing = np.zeros((len(prompts), len(grid.conditions)), dtype=bool)
        for column, condition in zip(missing.T, grid.conditions, strict=True):
            for part in condition:
                for lacking in (empty[part.positions], *(without[name] for name in part.change.runs())):
                    column |= lacking
        absent = {name: reason for name, reason in self.reasons.items() if name in self.variables}
        absent |= absent_positions(empty)
        undonated = sum(map(all, zip(*without.values(), strict=True)))
        if undonated:
            reason = f"no donor of equal token length, other family and other target for {undonated} prompts"
            absent |= dict.fromkeys(["resample"] if "ablation" in grid.labels else self.variables, reason)
        unread = np.array([[not metric.positions(prompt) for prompt in prompts] for metric in metrics.values()])
        for name, count in zip(metrics, unread.sum(1), strict=True):
            if count:
                absent[name] = f"{count} prompts have no position that it is read at"
        lost = (np.isnan(measured.values) & ~missing & ~unread[..., None]).any(0).sum(1)
        dropped = {
            prompt.prompt.id: f"logits were not finite in {count} of {len(grid.conditions)} conditions"
            for prompt, count in zip(prompts, lost, strict=True)
            if count
        }
        return xr.DataArray(missing, dims=("prompt", "condition")), absent, dropped


def model_heads(model: HookedModel, heads: Sequence[int]) -> dict[str, Any]:
    """Return the coordinates of heads; -1 stands for the group of a head that reads another one in another layer."""
    layouts = [layout for layout in model.head_layouts if layout is not None]
    groups = [{layout.kv_group(head) for layout in layouts if head < layout.n_heads} for head in heads]
    return {"head": list(heads), "kv_group": ("head", [each.pop() if len(each) == 1 else -1 for each in groups])}
