"""Head ablation: what is lost when one attention head writes something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HeadLayout, HookedModel
    from xatlas.measures.ablation import Grid


class HeadAblation(Probe):
    """KL when one query head's slice of the output projection's input is replaced, at every position.

    Definition: ``kl`` as in ``layer_ablation``, for one query head; ``kl_kv_group`` for all query heads that
    read one key/value group. A head is a slice of what *enters* the output projection; a slice of what leaves
    it is a slice of the stream, where an outlier coordinate looks like the same head in every layer.

    Unit: nats.

    Control: ``kl_control``, a random direction inside the head's slice with, at every token, the norm of the
    change; ``kl_control_subspace``, the same kind of ablation inside a random subspace as wide as a head, of
    the projection's whole input.

    Source: Michel et al. 1905.10650; Voita et al. 1905.09418.
    """

    name = "head_ablation"
    version = 2
    sites = ("heads",)
    uses_reference = True
    _cell = ("prompt", "layer", "head", "ablation", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || head ablated)"),
        "kl_control": Variable(_cell, "nats", "KL(clean || random change of equal norm in the head)"),
        "kl_control_subspace": Variable(_cell, "nats", "KL(clean || ablated in a random subspace)"),
        "kl_kv_group": Variable(
            ("prompt", "layer", "kv_group", "ablation", "scope"), "nats", "KL(clean || all heads of a group ablated)"
        ),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        ablations : tuple of str
            Kinds: zero, mean, resample.
        scopes : tuple of str
            Where KL is read: last, all.
        """

        ablations: tuple[Literal["zero", "mean", "resample"], ...] = ("mean",)
        scopes: tuple[Literal["last", "all"], ...] = ("last",)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every head with its two controls, and every group."""
        return size["layer"] * (3 * size["head"] + size["kv_group"]) * len(self.parameters.ablations) * draws

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl (prompt, layer, head, ablation, scope)`` and its companions."""
        from xatlas.measures.ablation import Grid
        from xatlas.measures.noise import noise_floor
        from xatlas.metrics import KL
        from xatlas.schema import cells, head_coords, label, layer_coords, suite_coords

        tokens = model.read(suite)
        kinds, scopes = self.parameters.ablations, self.parameters.scopes
        layouts = {layer: layout for layer, layout in enumerate(model.head_layouts) if layout is not None}
        n_heads = max((layout.n_heads for layout in layouts.values()), default=1)
        n_groups = max((layout.n_kv_heads for layout in layouts.values()), default=1)
        per_head, per_group = (model.n_layers, n_heads, len(kinds)), (model.n_layers, n_groups, len(kinds))
        grid = Grid({"kl": per_head, "control": per_head, "subspace": per_head, "group": per_group})
        for layer, layout in layouts.items():
            for k, kind in enumerate(kinds):
                for draw in range(inputs.draws):
                    _add(grid, layer, layout, k, kind, draw)
        measured = grid.measure(model, tokens, [KL(scope) for scope in scopes], inputs, self.name)
        names = {"kl": "kl", "kl_control": "control", "kl_control_subspace": "subspace", "kl_kv_group": "group"}
        absent = measured.absent("resample")
        bare = [layer for layer in range(model.n_layers) if layer not in layouts]
        if bare:
            absent[cells(layer=bare)] = "layers without attention have no heads"
        for layer, layout in layouts.items():
            if layout.n_heads < n_heads:
                absent[cells(layer=[layer], head=range(layout.n_heads, n_heads))] = "this layer has fewer heads"
            if layout.n_kv_heads < n_groups:
                groups = cells(layer=[layer], kv_group=range(layout.n_kv_heads, n_groups))
                absent[groups] = "this layer has fewer key/value groups"
        coords = head_coords(n_heads, n_groups)
        if len({layout.n_heads // layout.n_kv_heads for layout in layouts.values()}) > 1:
            coords["kv_group"] = ("head", [-1] * n_heads)  # a head's group is another one in another layer
        return label(
            self.variables,
            {ours: measured.arrays[theirs].transpose(1, 2, 3, 4, 0) for ours, theirs in names.items()},
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                **coords,
                "ablation": list(kinds),
                "scope": list(scopes),
            },
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )


def _add(grid: Grid, layer: int, layout: HeadLayout, k: int, kind: str, draw: int) -> None:
    """Add the conditions of one layer's heads and groups."""
    from xatlas.interventions import InSubspace, RandomDirection
    from xatlas.measures.ablation import ablation

    site, change = Site(layer, "heads"), ablation(kind, draw)
    groups: dict[int, list[int]] = {}
    for head in range(layout.n_heads):
        groups.setdefault(layout.kv_group(head), []).append(head)
        one = Intervention(site, change, heads=(head,))
        grid.add("kl", (layer, head, k), one)
        grid.add("control", (layer, head, k), Intervention(site, RandomDirection((one,), draw), heads=(head,)))
        subspace = InSubspace(change, layout.d_head, f"subspace of head {head}, draw {draw}")
        grid.add("subspace", (layer, head, k), Intervention(site, subspace))
    for group, members in groups.items():
        grid.add("group", (layer, group, k), Intervention(site, change, heads=tuple(members)))


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [HeadAblation]
