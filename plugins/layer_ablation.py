"""Layer ablation: what is lost when a layer's operator, MLP or both write something else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Site, Variable, hookimpl
from xatlas.interventions import Condition, ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import COMPONENT_SITES, STANDARD_ABLATIONS, AblationKind, Scope

if TYPE_CHECKING:
    from xatlas import HookedModel

COMPONENTS = (*COMPONENT_SITES, "joint")


class LayerAblation(AblationProbe):
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
    components = COMPONENTS
    reasons = {"mlp": "layers without an MLP; joint is the operator alone there"}  # noqa: RUF012
    _cell = ("prompt", "layer", "component", "ablation")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable((*_cell, "scope"), "nats", "KL(clean || ablated)"),
        "kl_control": Variable((*_cell, "scope"), "nats", "KL(clean || random change of equal norm)"),
        "delta_nll": Variable(_cell, "nats per byte", "change of the target's negative log-likelihood"),
        "top1_changed": Variable(_cell, "1", "whether the most likely token changed"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablations: tuple[AblationKind, ...] = STANDARD_ABLATIONS
        scopes: tuple[Scope, ...] = ("last",)

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield operator, MLP and both of every layer, each with its control."""
        for layer, kind in product(range(model.n_layers), self.parameters.ablations):
            cell = {"layer": layer, "ablation": kind}
            joint: Condition = ()
            for name, site_kind in COMPONENT_SITES.items():
                if model.has(Site(layer, site_kind)):
                    one = (Intervention(Site(layer, site_kind), ablation(kind, draw)),)
                    yield {**cell, "component": name}, one, matched_control(one, draw)
                    joint += one
            yield {**cell, "component": "joint"}, joint, matched_control(joint, draw, at="resid_post")


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LayerAblation]
