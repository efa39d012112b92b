"""Layer ablation: what is lost when a layer's operator, MLP or both write something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel

COMPONENTS = ("operator", "mlp", "joint")


class LayerAblation(Probe):
    """KL when a layer's operator output, MLP output or both are replaced, at every position.

    Definition: ``kl`` = KL(clean ‖ ablated) of the next-token distribution at the scope's positions, in nats.
    ``zero`` writes nothing, ``mean`` writes the mean over reference tokens (position 0 has its own),
    ``resample`` writes what a donor prompt of equal length, other family and other target has there. ``joint``
    edits the operator's output and then the MLP's; at ``zero`` that is skipping the layer. The block's own
    output is never zeroed: that erases the stream, and in a model without biases every layer then gives the
    same number.

    Unit: nats; ``delta_nll`` nats per byte of the target; ``top1_changed`` 0 or 1.

    Control: ``kl_control``, a random direction with, at every token, the norm of the change that the ablation
    made, added at the same site (``joint``: at the stream leaving the layer).

    Source: Zhang & Nanda 2309.16042; Miller et al. 2407.08734.
    """

    name = "layer_ablation"
    version = 2
    sites = ("operator_out",)
    uses_reference = True
    _cell = ("prompt", "layer", "component", "ablation")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable((*_cell, "scope"), "nats", "KL(clean || ablated)"),
        "kl_control": Variable((*_cell, "scope"), "nats", "KL(clean || random change of equal norm)"),
        "delta_nll": Variable(_cell, "nats per byte", "change of the target's negative log-likelihood"),
        "top1_changed": Variable(_cell, "1", "whether the most likely token changed"),
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

        ablations: tuple[Literal["zero", "mean", "resample"], ...] = ("zero", "mean", "resample")
        scopes: tuple[Literal["last", "all"], ...] = ("last",)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return three components, each with its control."""
        return 2 * size["layer"] * len(COMPONENTS) * len(self.parameters.ablations) * draws

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl (prompt, layer, component, ablation, scope)`` and its companions."""
        from xatlas.measures.ablation import Grid
        from xatlas.measures.noise import noise_floor
        from xatlas.metrics import KL, DeltaNLL, Top1Changed
        from xatlas.schema import cells, label, layer_coords, suite_coords

        tokens = model.read(suite)
        kinds, scopes = self.parameters.ablations, self.parameters.scopes
        shape = (model.n_layers, len(COMPONENTS), len(kinds))
        grid = Grid({"kl": shape, "control": shape})
        for layer in range(model.n_layers):
            for k, kind in enumerate(kinds):
                for draw in range(inputs.draws):
                    for c, (condition, control) in _conditions(model, layer, kind, draw).items():
                        grid.add("control", (layer, c, k), control)
                        grid.add("kl", (layer, c, k), *condition)
        metrics = [*(KL(scope) for scope in scopes), DeltaNLL(), Top1Changed()]
        measured = grid.measure(model, tokens, metrics, inputs, self.name)
        ablated, control = measured.arrays["kl"], measured.arrays["control"]
        n = len(scopes)
        absent = measured.absent("resample")
        bare = [layer for layer in range(model.n_layers) if not model.has(Site(layer, "mlp_out"))]
        if bare:
            told = f"{len(bare)} of {model.n_layers} layers have no MLP; joint is the operator alone there"
            absent[cells(component=["mlp"], layer=bare)] = told
        return label(
            self.variables,
            {
                "kl": ablated[:n].transpose(1, 2, 3, 4, 0),
                "kl_control": control[:n].transpose(1, 2, 3, 4, 0),
                "delta_nll": ablated[n],
                "top1_changed": ablated[n + 1],
            },
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                "component": list(COMPONENTS),
                "ablation": list(kinds),
                "scope": list(scopes),
            },
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )


def _conditions(
    model: HookedModel, layer: int, kind: str, draw: int
) -> dict[int, tuple[tuple[Intervention, ...], Intervention]]:
    """Return component index → the ablation and its control, for the components that the layer has."""
    from xatlas.interventions import RandomDirection
    from xatlas.measures.ablation import ablation

    change = ablation(kind, draw)
    parts = {0: Site(layer, "operator_out"), 1: Site(layer, "mlp_out")}
    single = {c: (Intervention(site, change),) for c, site in parts.items() if model.has(site)}
    joint = tuple(part for condition in single.values() for part in condition)
    result = {c: (part, Intervention(part[0].site, RandomDirection(part, draw))) for c, part in single.items()}
    result[2] = (joint, Intervention(Site(layer, "resid_post"), RandomDirection(joint, draw)))
    return result


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LayerAblation]
