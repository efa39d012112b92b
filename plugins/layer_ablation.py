"""Layer ablation: what is lost when a layer's operator, MLP or both write something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Site, Variable, hookimpl
from xatlas.interventions import Condition, ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import COMPONENT_SITES, CONTROLLED, STANDARD_ABLATIONS, AblationKind, Scope

if TYPE_CHECKING:
    from xatlas import HookedModel

COMPONENTS = (*COMPONENT_SITES, "joint")
#: Position 0 alone, and all others.
WHERES = ("first", "rest")


class LayerAblation(AblationProbe):
    """KL when a layer's operator output, MLP output or both are replaced, at every position.

    Definition: ``kl`` = KL(clean ‖ ablated) of the next-token distribution at the scope's positions, in nats.
    ``zero`` writes nothing, ``mean`` writes the mean over reference tokens (position 0 has its own),
    ``resample`` writes what a donor prompt of equal length, other family and other target has there. ``joint``
    edits the operator's output and then the MLP's; at ``zero`` that is skipping the layer. The block's own
    output is never zeroed: that erases the stream, and in a model without biases every layer then gives the
    same number. ``kl_position`` is ``zero`` at position 0 alone (``first``) and at all other positions alone
    (``rest``), read at the readout: to what a layer writes at position 0 ``mean`` is blind, since it is one constant.

    Unit: nats; ``delta_nll`` nats per byte of the target; ``top1_changed`` 0 or 1.

    Control: ``kl_control``, of ``mean``: a random direction with, at every token, the norm of the change that the
    ablation made, added at the same site (``joint``: at the stream leaving the layer). It has the covariance of the
    stream behind the component, and is drawn for each prompt and ``draw``.

    Source: Zhang & Nanda 2309.16042; Miller et al. 2407.08734.
    """

    name = "layer_ablation"
    version = 3
    sites = ("operator_out",)
    components = COMPONENTS
    wheres = WHERES
    reasons = {"mlp": "layers without an MLP; joint is the operator alone there"}  # noqa: RUF012
    _cell = ("prompt", "layer", "component", "ablation")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable((*_cell, "scope"), "nats", "KL(clean || ablated)"),
        "kl_control": Variable(
            ("prompt", "draw", "layer", "component", "scope"),
            "nats",
            "KL(clean || random change of the norm of mean's)",
        ),
        "kl_position": Variable(
            ("prompt", "layer", "component", "where"), "nats", "KL(clean || zero at position 0, or everywhere else)"
        ),
        "delta_nll": Variable(_cell, "nats per byte", "change of the target's negative log-likelihood"),
        "top1_changed": Variable(_cell, "1", "whether the most likely token changed"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablations: tuple[AblationKind, ...] = STANDARD_ABLATIONS
        scopes: tuple[Scope, ...] = ("last",)

    def measures(self, variable: str) -> bool:
        """Return whether the ablation that has a control is measured, for the control."""
        return variable != "kl_control" or CONTROLLED in self.parameters.ablations

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield operator, MLP and both of every layer, with the controls of ``mean``; then position 0 and the rest."""
        for layer, kind in product(range(model.n_layers), self.parameters.ablations):
            for name, parts in _components(model, layer, kind, "all"):
                at = "resid_post" if name == "joint" else None
                control = matched_control(parts, draw, at) if kind == CONTROLLED else None
                yield {"layer": layer, "component": name, "ablation": kind}, parts, control
        for layer, where in product(range(model.n_layers), WHERES):
            for name, parts in _components(model, layer, "zero", where):
                yield {"layer": layer, "component": name, "where": where}, parts, None


def _components(model: HookedModel, layer: int, kind: str, positions: str) -> Iterator[tuple[str, Condition]]:
    """Yield each component of a layer, by name, ablated at some positions."""
    joint: Condition = ()
    for name, site_kind in COMPONENT_SITES.items():
        if model.has(Site(layer, site_kind)):
            one = (Intervention(Site(layer, site_kind), ablation(kind), positions=positions),)
            yield name, one
            joint += one
    yield "joint", joint


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LayerAblation]
