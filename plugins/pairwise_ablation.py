"""Pairwise ablation: whether two components lost together cost more, or less, than one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from xatlas import AblationProbe, Inputs, Intervention, Probe, Requirement, Site, Suite, Variable, hookimpl
from xatlas.errors import XatlasError
from xatlas.interventions import ablation
from xatlas.probing.ablation import Cells
from xatlas.vocabulary import COMPONENT_SITES, AblationKind, forward_order

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.interventions import Condition
    from xatlas.metrics import Metric


class PairwiseAblation(AblationProbe):
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
    reasons = {"interaction": "a component has none with itself; kl_joint is its own KL there"}  # noqa: RUF012
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "interaction": Variable(("prompt", "component", "component_other"), "nats", "KL of both - KL of each alone"),
        "kl_joint": Variable(("prompt", "component", "component_other"), "nats", "KL(clean || both ablated)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        components: tuple[str, ...] = ()  # two or more, as L0.mlp,L3.operator
        strongest: int = 10  # how many of the strongest of layer_ablation, where none is named
        ablation: AblationKind = "mean"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation, unless the components are named."""
        return () if self.parameters.components else (Requirement("layer_ablation"),)

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return every component and every pair; where the strongest are not known yet, of components at any depth."""
        sites = product(range(model.n_layers), COMPONENT_SITES.items())
        there = [f"L{layer}.{name}" for layer, (name, kind) in sites if model.has(Site(layer, kind))]
        count = max(1, min(self.parameters.strongest, len(there)))
        some = [there[i * len(there) // count] for i in range(count)]
        self.chosen = list(dict.fromkeys(self.parameters.components)) or some
        return super().planned(model, suite, draws)

    def labels(self, model: HookedModel | None) -> dict[str, list[Any]]:
        """Return the chosen components."""
        return {"component": self.chosen, "component_other": self.chosen, "scope": ["last"]}

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Choose the components, then measure every one and every pair."""
        chosen = self.parameters
        self.chosen = list(dict.fromkeys(chosen.components))
        if len(self.chosen) == 1:
            raise XatlasError(f"one component makes no pair: name two or more, as '{self.chosen[0]},L0.mlp'.")
        if not self.chosen:
            self.chosen = strongest(inputs.results["layer_ablation"], chosen.ablation, chosen.strongest)
        return super().measure(model, suite, inputs)

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield singles on the diagonal and pairs on either side of it."""
        change = ablation(self.parameters.ablation)
        sites = {name: _site(model, name) for name in self.chosen}
        order = sorted(sites.values(), key=lambda site: (site.layer, forward_order(site.kind)))
        for one, other in product(self.chosen, repeat=2):
            both = tuple(Intervention(site, change) for site in order if site in (sites[one], sites[other]))
            yield {"component": one, "component_other": other}, both, None

    def derive(self, arrays: dict[str, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Take what each costs alone off what both cost together."""
        import xarray as xr

        joint = arrays["kl_joint"]  # (prompt, component, component_other)
        one = xr.DataArray(range(len(self.chosen)), dims="component")
        alone = joint.isel(component=one, component_other=one)  # (prompt, component)
        interaction = joint - alone - alone.rename(component="component_other")
        return arrays | {"interaction": interaction.where(one != one.rename(component="component_other"))}


def strongest(layers: xr.Dataset, ablation: str, count: int) -> list[str]:
    """Return the ``count`` components with the largest family-macro KL in ``layer_ablation``, by layer."""
    import numpy as np

    from xatlas.stats import Clusters

    if count < 2:
        raise XatlasError(f"strongest = {count} does not fit: a pair takes at least 2 components.")
    if ablation not in layers["ablation"].values or "last" not in layers["scope"].values:
        raise XatlasError(
            f"layer_ablation was measured without ablation '{ablation}' or scope 'last', by which components are "
            "chosen: measure it with both, or name them with --set pairwise_ablation.components=…"
        )
    kl = layers["kl"].sel(ablation=ablation, scope="last", component=list(COMPONENT_SITES)).values
    clusters = Clusters(layers["family"].values.tolist(), layers["template"].values.tolist())
    effect = clusters.macro(kl)  # (layer, component)
    order = np.argsort(-np.nan_to_num(effect, nan=-np.inf), axis=None, kind="stable")
    places = [np.unravel_index(i, effect.shape) for i in order[:count] if np.isfinite(effect.flat[i])]
    if len(places) < 2:
        raise XatlasError("pairwise ablation needs at least two components; this model has one.")
    kinds = list(COMPONENT_SITES)
    return [f"L{layer}.{kinds[component]}" for layer, component in sorted(places)]


def _site(model: HookedModel, name: str) -> Site:
    """Return the site that a component's name stands for."""
    found = re.fullmatch(r"L(\d+)\.(operator|mlp)", name)
    site = Site(int(found[1]), COMPONENT_SITES[found[2]]) if found else None
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
