"""Position ablation: what is lost when a layer writes something else at one kind of position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.measures.ablation import Grid

#: Component → the site that is replaced.
COMPONENTS = {"operator": "operator_out", "mlp": "mlp_out"}


class PositionAblation(Probe):
    """KL when a layer's operator output or MLP output is replaced at one class of positions.

    Definition: ``kl`` = KL(clean ‖ ablated) of the next-token distribution at the scope's positions; the
    operator's or the MLP's output is replaced at the tokens of one class alone: ``first`` (position 0),
    ``subject`` (the marked span), ``last`` (the readout), ``other``. The classes hold different numbers of
    tokens. What a layer *adds* is replaced, never the stream: zeroing the stream at a position takes all earlier
    layers' work there away as well.

    Unit: nats.

    Control: ``kl_control``, a random direction with, at every token of the class, the norm of the change that
    the ablation made, added at the same site.

    Source: no one's in particular; ablations as in Zhang & Nanda 2309.16042.
    """

    name = "position_ablation"
    version = 2
    sites = ("operator_out",)
    uses_reference = True
    _cell = ("prompt", "layer", "component", "position", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || ablated at one class of positions)"),
        "kl_control": Variable(_cell, "nats", "KL(clean || random change of equal norm there)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        ablation : {"mean", "zero", "resample"}
            What the output is replaced by.
        positions : tuple of str
            Position classes: first, subject, last, other; all replaces it at every position.
        scopes : tuple of str
            Where KL is read: last, all.
        """

        ablation: Literal["mean", "zero", "resample"] = "mean"
        positions: tuple[Literal["first", "subject", "last", "other", "all"], ...] = (
            "first",
            "subject",
            "last",
            "other",
        )
        scopes: tuple[Literal["last", "all"], ...] = ("last",)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return both components at every class, each with its control."""
        return 2 * size["layer"] * len(COMPONENTS) * len(self.parameters.positions) * draws

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl (prompt, layer, component, position, scope)`` and its control."""
        from xatlas.measures.ablation import Grid
        from xatlas.measures.noise import noise_floor
        from xatlas.measures.twins import without_tokens
        from xatlas.metrics import KL
        from xatlas.schema import cells, label, layer_coords, suite_coords

        chosen = self.parameters
        tokens = model.read(suite)
        empty = without_tokens(tokens.prompts, chosen.positions)
        shape = (model.n_layers, len(COMPONENTS), len(chosen.positions))
        grid = Grid({"kl": shape, "kl_control": shape})
        self._fill(grid, model, inputs.draws)
        measured = grid.measure(model, tokens, [KL(scope) for scope in chosen.scopes], inputs, self.name)
        arrays = {name: values.transpose(1, 2, 3, 4, 0).copy() for name, values in measured.arrays.items()}
        for values in arrays.values():
            values.transpose(0, 3, 1, 2, 4)[empty] = float("nan")
        absent = measured.absent("kl", "kl_control")
        bare = [layer for layer in range(model.n_layers) if not model.has(Site(layer, "mlp_out"))]
        if bare:
            absent[cells(component=["mlp"], layer=bare)] = "layers without an MLP"
        for name, lacking in zip(chosen.positions, empty.T, strict=True):
            if lacking.any():
                absent[f"position {name}"] = f"{int(lacking.sum())} of {len(tokens)} prompts have no such token"
        return label(
            self.variables,
            arrays,
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                "component": list(COMPONENTS),
                "position": list(chosen.positions),
                "scope": list(chosen.scopes),
            },
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )

    def _fill(self, grid: Grid, model: HookedModel, draws: int) -> None:
        """Lay out every layer, component and position class, with its control."""
        from xatlas.interventions import RandomDirection
        from xatlas.measures.ablation import ablation

        for layer in range(model.n_layers):
            for c, kind in enumerate(COMPONENTS.values()):
                site = Site(layer, kind)
                for p, name in enumerate(self.parameters.positions if model.has(site) else ()):
                    for draw in range(draws):
                        one = Intervention(site, ablation(self.parameters.ablation, draw), positions=name)
                        grid.add("kl", (layer, c, p), one)
                        random = RandomDirection((one,), draw)
                        grid.add("kl_control", (layer, c, p), Intervention(site, random, positions=name))


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [PositionAblation]
