"""Conv factors: what is lost when the gate, the carrier or the signal of a gated convolution is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel

#: Factor → its site kind, in the order of the product: carrier · conv(gate · signal).
FACTORS = {"gate": "conv_gate", "carrier": "conv_carrier", "signal": "conv_signal"}


class ConvFactors(Probe):
    """KL when one factor of a gated short convolution, carrier · conv(gate · signal), is replaced everywhere.

    Definition: ``kl`` = KL(clean ‖ replaced) of the next-token distribution at the scope's positions, in nats,
    for the gate (B), the carrier (C) and the signal (x). ``mean`` writes the mean over reference tokens
    (position 0 has its own), ``resample`` what a donor prompt of equal length, other family and other target
    has there, ``one`` takes gate or carrier out of the product. ``zero`` is there as a check only: a product
    with a factor of zero is zero whichever factor it is, so without a conv bias all three give the same number,
    and with one gate and signal do.

    Unit: nats.

    Control: ``kl_control``, a random direction with, at every token, the norm of the change that the
    replacement made, added to the same factor.

    Source: this toolkit; the kinds of ablation as in Zhang & Nanda 2309.16042.
    """

    name = "conv_factors"
    version = 2
    sites = tuple(FACTORS.values())
    uses_reference = True
    _cell = ("prompt", "layer", "factor", "ablation", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || factor replaced)"),
        "kl_control": Variable(_cell, "nats", "KL(clean || random change of equal norm)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        ablations : tuple of str
            Kinds: mean, one, resample; zero as a check.
        scopes : tuple of str
            Where KL is read: last, all.
        """

        ablations: tuple[Literal["mean", "one", "resample", "zero"], ...] = ("mean", "one", "resample")
        scopes: tuple[Literal["last", "all"], ...] = ("last",)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every factor with its control."""
        return 2 * size["layer"] * len(FACTORS) * len(self.parameters.ablations) * draws

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl``, ``kl_control (prompt, layer, factor, ablation, scope)``."""
        from xatlas.interventions import RandomDirection
        from xatlas.measures.ablation import Grid, ablation
        from xatlas.measures.noise import noise_floor
        from xatlas.metrics import KL
        from xatlas.schema import cells, label, layer_coords, suite_coords

        tokens = model.read(suite)
        kinds, scopes = self.parameters.ablations, self.parameters.scopes
        shape = (model.n_layers, len(FACTORS), len(kinds))
        grid = Grid({"kl": shape, "kl_control": shape})
        for f, (factor, site_kind) in enumerate(FACTORS.items()):
            for k, kind in enumerate(kinds):
                change = [ablation(kind, draw) for draw in range(inputs.draws)]
                for site in model.sites(site_kind):
                    for draw, one in enumerate(change if (factor, kind) != ("signal", "one") else ()):
                        edited = Intervention(site, one)
                        grid.add("kl", (site.layer, f, k), edited)
                        control = Intervention(site, RandomDirection((edited,), draw))
                        grid.add("kl_control", (site.layer, f, k), control)
        measured = grid.measure(model, tokens, [KL(scope) for scope in scopes], inputs, self.name)
        absent = measured.absent("resample")
        bare = [layer for layer in range(model.n_layers) if not model.has(Site(layer, "conv_gate"))]
        if bare:
            absent[cells(layer=bare)] = "layers without a convolution have no factors"
        if "one" in kinds:
            absent[cells(factor=["signal"], ablation=["one"])] = (
                "the signal is what gate and carrier act on: it is not bypassed"
            )
        return label(
            self.variables,
            {name: array.transpose(1, 2, 3, 4, 0) for name, array in measured.arrays.items()},
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                "factor": list(FACTORS),
                "ablation": list(kinds),
                "scope": list(scopes),
            },
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ConvFactors]
