"""Conv factors: what is lost when the gate, the carrier or the signal of a gated convolution is replaced."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Variable, hookimpl
from xatlas.interventions import ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import CONTROLLED, FactorAblationKind, Scope

if TYPE_CHECKING:
    from xatlas import HookedModel

#: Factor → its site kind, in the order of the product: carrier · conv(gate · signal).
FACTORS = {"gate": "conv_gate", "carrier": "conv_carrier", "signal": "conv_signal"}


class ConvFactors(AblationProbe):
    """KL when one factor of a gated short convolution, carrier · conv(gate · signal), is replaced everywhere.

    Definition: ``kl`` = KL(clean ‖ replaced) of the next-token distribution at the scope's positions, in nats,
    for the gate (B), the carrier (C) and the signal (x). ``mean`` writes the mean over reference tokens
    (position 0 has its own), ``resample`` what a donor prompt of equal length, other family and other target
    has there, ``one`` takes gate or carrier out of the product. ``zero`` is there as a check only: a product
    with a factor of zero is zero whichever factor it is, so without a conv bias all three give the same number,
    and with one gate and signal do.

    Unit: nats.

    Control: ``kl_control``, of ``mean``: a random direction with, at every token, the norm of the change that the
    replacement made, added to the same factor. It has the factor's covariance, and is drawn for each prompt and
    ``draw``.

    Source: this toolkit; the kinds of ablation as in Zhang & Nanda 2309.16042.
    """

    name = "conv_factors"
    version = 3
    sites = tuple(FACTORS.values())
    factors = tuple(FACTORS)
    reasons = {  # noqa: RUF012 - declared ClassVar in the base
        "factor": "layers without a convolution have no factors",
        "one": "the signal is what gate and carrier act on: it is not bypassed",
    }
    _cell = ("prompt", "layer", "factor", "ablation", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || factor replaced)"),
        "kl_control": Variable(
            ("prompt", "draw", "layer", "factor", "scope"), "nats", "KL(clean || random change of the norm of mean's)"
        ),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablations: tuple[FactorAblationKind, ...] = ("mean", "one", "resample")  # zero as a check
        scopes: tuple[Scope, ...] = ("last",)

    def measures(self, variable: str) -> bool:
        """Return whether the ablation that has a control is measured, for the control."""
        return variable != "kl_control" or CONTROLLED in self.parameters.ablations

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield every factor of every convolution, with the control of ``mean``; the signal is not bypassed."""
        for (factor, site_kind), kind in product(FACTORS.items(), self.parameters.ablations):
            for site in model.sites(site_kind) if (factor, kind) != ("signal", "one") else ():
                one = Intervention(site, ablation(kind))
                control = matched_control(one, draw) if kind == CONTROLLED else None
                yield {"layer": site.layer, "factor": factor, "ablation": kind}, one, control


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ConvFactors]
