"""Position ablation: what is lost when a layer writes something else at one kind of position."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Variable, hookimpl
from xatlas.interventions import ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import COMPONENT_SITES, CONTROLLED, POSITION_CLASSES, AblationKind, Positions, Scope

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

    Control: ``kl_control``, of ``mean``: a random direction with, at every token of the class, the norm of the change
    that the ablation made, added at the same site. It has the covariance of the stream behind the component, and is
    drawn for each prompt and ``draw``.

    Source: no one's in particular; ablations as in Zhang & Nanda 2309.16042.
    """

    name = "position_ablation"
    version = 3
    sites = ("operator_out",)
    components = tuple(COMPONENT_SITES)
    reasons = {"mlp": "layers without an MLP"}  # noqa: RUF012 - declared ClassVar in the base
    _cell = ("prompt", "layer", "component", "position", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || ablated at one class of positions)"),
        "kl_control": Variable(
            ("prompt", "draw", *_cell[1:]), "nats", "KL(clean || random change of the norm of mean's there)"
        ),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablation: AblationKind = "mean"
        positions: tuple[Positions, ...] = POSITION_CLASSES
        scopes: tuple[Scope, ...] = ("last",)

    def measures(self, variable: str) -> bool:
        """Return whether the ablation is the one that has a control, for the control."""
        return variable != "kl_control" or self.parameters.ablation == CONTROLLED

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield every layer's components at each class of positions, with its control."""
        change = ablation(self.parameters.ablation)
        for (component, kind), name in product(COMPONENT_SITES.items(), self.parameters.positions):
            for site in model.sites(kind):
                one = Intervention(site, change, positions=name)
                yield {"layer": site.layer, "component": component, "position": name}, one, matched_control(one, draw)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [PositionAblation]
