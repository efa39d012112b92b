"""Pairwise ablation: whether two components lost together cost more, or less, than one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Requirement, Site, Suite, Variable, XatlasError, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.measures.ablation import Grid

#: Component → the site that is replaced.
COMPONENTS = {"operator": "operator_out", "mlp": "mlp_out"}


class PairwiseAblation(Probe):
    """How much more two components cost together than the sum of what each costs alone.

    Definition: a component is a layer's operator or MLP, written ``L3.operator``. ``kl_joint`` = KL(clean ‖ both
    ablated), on its diagonal KL(clean ‖ one ablated); ``interaction`` = KL(i and j) - KL(i) - KL(j), NaN on the
    diagonal. Above 0 the two stand in for each other; below 0 they do the same work in a row, and losing
    the second costs nothing more. The components are the strongest ones of ``layer_ablation`` (family-macro
    KL, the same ablation), or those that are named. KL is no sum of parts: far from 0 its curvature alone
    gives an interaction, so read it beside ``kl_joint``.

    Unit: nats.

    Control: the singles, measured in the same sweep as the pairs: no singles, no interaction.

    Source: no one's in particular; ablations as in Zhang & Nanda 2309.16042.
    """

    name = "pairwise_ablation"
    version = 2
    sites = ("operator_out",)
    uses_reference = True
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "interaction": Variable(("prompt", "component", "component_other"), "nats", "KL of both - KL of each alone"),
        "kl_joint": Variable(("prompt", "component", "component_other"), "nats", "KL(clean || both ablated)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        components : tuple of str
            Two or more, as L0.mlp,L3.operator; none takes the strongest of layer_ablation.
        strongest : int
            How many of them.
        ablation : {"mean", "zero", "resample"}
            What outputs are replaced by.
        """

        components: tuple[str, ...] = ()
        strongest: int = 10
        ablation: Literal["mean", "zero", "resample"] = "mean"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation, unless the components are named."""
        return () if self.parameters.components else (Requirement("layer_ablation"),)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every component and every pair."""
        n = len(self.parameters.components) or self.parameters.strongest
        return n * (n + 1) / 2 * draws

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``interaction (prompt, component, component_other)`` and ``kl_joint``."""
        import numpy as np

        from xatlas.measures.noise import noise_floor
        from xatlas.metrics import KL
        from xatlas.schema import cells, label, suite_coords

        names = self._components(model, inputs)
        sites = [_site(model, name) for name in names]
        tokens = model.read(suite)
        grid = self._grid(sites, inputs.draws)
        measured = grid.measure(model, tokens, [KL("last")], inputs, self.name)
        joint = measured.arrays["kl_joint"][0]  # (prompt, component, component_other), upper triangle
        joint = np.where(np.isnan(joint), joint.swapaxes(1, 2), joint)
        single = np.einsum("pii->pi", joint)
        interaction = joint - single[:, :, None] - single[:, None, :]
        interaction[:, range(len(names)), range(len(names))] = np.nan
        absent = measured.absent("interaction", "kl_joint")
        for name in names:
            itself = cells(component=[name], component_other=[name])
            absent[itself] = "a component has no interaction with itself; kl_joint is its own KL there"
        return label(
            self.variables,
            {"interaction": interaction, "kl_joint": joint},
            {**suite_coords(tokens), "component": names, "component_other": names},
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )

    def _grid(self, sites: list[Site], draws: int) -> Grid:
        """Lay out singles on the diagonal and pairs above it."""
        from xatlas.measures.ablation import Grid, ablation

        grid = Grid({"kl_joint": (len(sites), len(sites))})
        for i, one in enumerate(sites):
            for j in range(i, len(sites)):
                for draw in range(draws):
                    change = ablation(self.parameters.ablation, draw)
                    together = sorted({one, sites[j]}, key=lambda site: (site.layer, site.kind != "operator_out"))
                    grid.add("kl_joint", (i, j), *(Intervention(site, change) for site in together))
        return grid

    def _components(self, model: HookedModel, inputs: Inputs) -> list[str]:
        """Return the names of the components that are paired."""
        chosen = self.parameters
        named = list(dict.fromkeys(chosen.components))
        if named:
            if len(named) < 2:
                raise XatlasError(f"one component makes no pair: name two or more, as '{named[0]},L0.mlp'.")
            for name in named:
                _site(model, name)
            return named
        if chosen.strongest < 2:
            raise XatlasError(f"strongest = {chosen.strongest} does not fit: a pair takes at least 2 components.")
        return strongest(inputs.results["layer_ablation"], chosen.ablation, chosen.strongest)


def strongest(layers: xr.Dataset, ablation: str, count: int) -> list[str]:
    """Return the ``count`` components with the largest family-macro KL at the readout, by layer.

    Parameters
    ----------
    layers : Dataset
        Of ``layer_ablation``.
    ablation : str
        Which ablation kind ranks them.

    Raises
    ------
    XatlasError
        It was measured without this ablation or without scope last, or the model has a single component.
    """
    import numpy as np

    from xatlas.stats import Clusters

    if ablation not in layers["ablation"].values or "last" not in layers["scope"].values:
        raise XatlasError(
            f"layer_ablation was measured without ablation '{ablation}' or scope 'last', by which components are "
            "chosen: measure it with both, or name them with --set pairwise_ablation.components=…"
        )
    kl = layers["kl"].sel(ablation=ablation, scope="last", component=list(COMPONENTS)).values
    effect = Clusters(layers["family"].values, layers["template"].values).macro(kl)  # (layer, component)
    order = np.argsort(-np.nan_to_num(effect, nan=-np.inf), axis=None, kind="stable")
    places = [np.unravel_index(i, effect.shape) for i in order[:count] if np.isfinite(effect.flat[i])]
    if len(places) < 2:
        raise XatlasError("pairwise ablation needs at least two components; this model has one.")
    kinds = list(COMPONENTS)
    return [f"L{layer}.{kinds[component]}" for layer, component in sorted(places)]


def _site(model: HookedModel, name: str) -> Site:
    """Return the site that a component's name stands for."""
    found = re.fullmatch(r"L(\d+)\.(operator|mlp)", name)
    site = Site(int(found[1]), COMPONENTS[found[2]]) if found else None
    if site is None or not model.has(site):
        raise XatlasError(
            f"unknown component '{name}'. Valid: L0 to L{model.n_layers - 1}, then .operator or .mlp"
            f"{'' if site is None or site.layer >= model.n_layers else '; this layer has no MLP'}."
        )
    return site


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [PairwiseAblation]
