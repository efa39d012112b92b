"""Position ablation: what is lost when a layer writes something else at one kind of position."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Variable, hookimpl
from xatlas.interventions import ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import COMPONENT_SITES, POSITION_CLASSES, AblationKind, Positions, Scope

if TYPE_CHECKING:
    from xatlas import HookedModel


class PositionAblation(AblationProbe):
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
    components = tuple(COMPONENT_SITES)
    reasons = {"mlp": "layers without an MLP"}  # noqa: RUF012 - declared ClassVar in the base
    _cell = ("prompt", "layer", "component", "position", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || ablated at one class of positions)"),
        "kl_control": Variable(_cell, "nats", "KL(clean || random change of equal norm there)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablation: AblationKind = "mean"
        positions: tuple[Positions, ...] = POSITION_CLASSES
        scopes: tuple[Scope, ...] = ("last",)

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield every layer's components at each class of positions, with its control."""
        change = ablation(self.parameters.ablation, draw)
        for (component, kind), name in product(COMPONENT_SITES.items(), self.parameters.positions):
            for site in model.sites(kind):
                one = Intervention(site, change, positions=name)
                yield {"layer": site.layer, "component": component, "position": name}, one, matched_control(one, draw)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [PositionAblation]
