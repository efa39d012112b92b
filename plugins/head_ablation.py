"""Head ablation: what is lost when one attention head writes something else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from xatlas import AblationProbe, Intervention, Probe, Variable, XatlasError, hookimpl
from xatlas.interventions import InSubspace, ablation
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import CONTROLLED, AblationKind, Scope

if TYPE_CHECKING:
    from xatlas import HookedModel


class HeadAblation(AblationProbe):
    """KL when one query head's slice of the output projection's input is replaced, at every position.

    Definition: ``kl`` as in ``layer_ablation``, for one query head; ``kl_kv_group`` for all query heads that
    read one key/value group. A head is a slice of what *enters* the output projection; a slice of what leaves
    it is a slice of the stream, where an outlier coordinate looks like the same head in every layer.

    Unit: nats.

    Control: of ``mean``, where asked for: ``kl_control``, a random direction inside the head's slice with, at every
    token, the norm of the change, the covariance of the head's values, and drawn for each prompt;
    ``kl_control_subspace``, the mean in a random subspace as wide as a head, of the projection's whole input.

    Source: Michel et al. 1905.10650; Voita et al. 1905.09418.
    """

    name = "head_ablation"
    version = 3
    sites = ("heads",)
    reasons = {  # noqa: RUF012 - declared ClassVar in the base
        "head": "layers without heads, or with fewer",
        "kv_group": "layers without attention have no key/value groups",
    }
    _cell = ("prompt", "layer", "head", "ablation", "scope")
    _control = ("prompt", "draw", "layer", "head", "scope")
    _group = ("prompt", "layer", "kv_group", "ablation", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || head ablated)"),
        "kl_control": Variable(_control, "nats", "KL(clean || random change of the norm of mean's in the head)"),
        "kl_control_subspace": Variable(_control, "nats", "KL(clean || mean in a random subspace)"),
        "kl_kv_group": Variable(_group, "nats", "KL(clean || all heads of a group ablated)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        ablations: tuple[AblationKind, ...] = ("mean",)
        scopes: tuple[Scope, ...] = ("last",)
        controls: bool = False  # a random change in each head
        subspace: bool = False  # a random subspace for each head
        kv_groups: bool = False  # all heads of each key/value group

        def __post_init__(self) -> None:
            if (self.controls or self.subspace) and CONTROLLED not in self.ablations:
                raise XatlasError(f"head_ablation's controls are those of '{CONTROLLED}': name it in ablations, too.")

    def measures(self, variable: str) -> bool:
        """Return whether a control or the groups are asked for."""
        chosen = self.parameters
        asked: dict[str, bool] = {
            "kl_control": chosen.controls,
            "kl_control_subspace": chosen.subspace,
            "kl_kv_group": chosen.kv_groups,
        }
        return asked.get(variable, True)

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield every head with its two controls, and every key/value group."""
        for site, kind in product(model.sites("heads"), self.parameters.ablations):
            layout, change = model.head_layouts[site.layer], ablation(kind)
            assert layout is not None
            groups: dict[int, list[int]] = {}
            for head in range(layout.n_heads):
                groups.setdefault(layout.kv_group(head), []).append(head)
                one = Intervention(site, change, heads=(head,))
                inside = InSubspace(change, layout.d_head, f"subspace of head {head}, draw {draw}")
                controls = {"kl_control": matched_control(one, draw), "kl_control_subspace": Intervention(site, inside)}
                cell = {"layer": site.layer, "head": head, "ablation": kind}
                yield cell, one, controls if kind == CONTROLLED else {}
            for group, members in groups.items() if self.parameters.kv_groups else ():
                cell = {"layer": site.layer, "kv_group": group, "ablation": kind}
                yield cell, Intervention(site, change, heads=tuple(members)), None


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [HeadAblation]
