"""Direct logit attribution: what each part of a model writes onto target minus foil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, hookimpl
from xatlas.vocabulary import COMPONENT_SITES

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture


class DirectLogitAttribution(ReadingProbe):
    """What each component writes at the readout, through the frozen final norm, onto target minus foil.

    Definition: the final norm's scale is kept as it is in the clean run; then the difference of the target's and the
    foil's logit is a sum over what was written to the stream: ``attribution`` of each operator and MLP, and
    ``embedding``, what entered layer 0. The sum is ``logit_diff``, the model's own difference; where a model caps its
    logits softly, it is the difference before the cap. ``constant`` says how much of ``embedding`` are biases of the
    final norm and the unembedding, which no layer writes. ``attribution_head`` is a head's part, through its slice of
    the output projection; heads and that projection's bias sum to their operator.

    Unit: logits.

    Control: none; that the parts sum to the model's own logit difference is checked on every architecture.

    Source: Elhage et al., 'A mathematical framework for transformer circuits', 2021.
    """

    name = "direct_logit_attribution"
    version = 1
    sites = ("resid_pre", "operator_out", "mlp_out", "heads", "resid_post")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "attribution": Variable(("prompt", "layer", "component"), "logits", "what the component adds to target - foil"),
        "attribution_head": Variable(("prompt", "layer", "head"), "logits", "what the head adds to target - foil"),
        "embedding": Variable(("prompt",), "logits", "what the embedding adds, constants included"),
        "constant": Variable(("prompt",), "logits", "what biases of norm and unembedding add"),
        "logit_diff": Variable(("prompt",), "logits", "the target's minus the foil's logit"),
    }

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Make room for every prompt."""
        import numpy as np

        from xatlas.probing.reading import Readouts

        self.model, self.tokens = model, model.read(suite)
        self.heads = max((layout.n_heads for layout in model.head_layouts if layout), default=1)
        sizes = {"prompt": len(self.tokens), "layer": model.n_layers, "component": len(COMPONENT_SITES)}
        sizes["head"] = self.heads
        self.held = Readouts()
        self.found = {
            name: np.full([sizes[dim] for dim in variable.dims], np.nan) for name, variable in self.variables.items()
        }

    def update(self, capture: Capture) -> None:
        """Gather writes at the readout positions of the prompts that have a target and a foil."""
        chosen = [row for row, prompt in enumerate(capture.prompts) if prompt.foil_answer is not None]
        if chosen and self.held.add(capture, chosen):
            self._attribute()

    def _attribute(self) -> None:
        import torch

        from xatlas.probing.lens import frozen_direction, through_projection
        from xatlas.probing.reading import Readouts

        held, self.held = self.held, Readouts()
        model, prompts, index, values = self.model, held.prompts, held.index, held.values()

        def at(site: Site) -> torch.Tensor:  # (row, ...)
            return values[site].float()

        final = values[Site(model.n_layers - 1, "resid_post")]
        pair = [[prompt.answer for prompt in prompts], [prompt.foil_answer for prompt in prompts]]
        target, foil = torch.tensor(pair, device=model.device)
        direction, constant = frozen_direction(model, final, target, foil)
        own = model.logits(final)
        entered = (direction * at(Site(0, "resid_pre"))).sum(-1) + constant
        difference = (own.gather(-1, target[:, None]) - own.gather(-1, foil[:, None]))[:, 0]
        for name, each in (("embedding", entered), ("constant", constant), ("logit_diff", difference)):
            self.found[name][index] = each.detach().cpu().numpy()
        for layer in range(model.n_layers):
            for column, kind in enumerate(COMPONENT_SITES.values()):
                if model.has(Site(layer, kind)):
                    written = (direction * at(Site(layer, kind))).sum(-1)
                    self.found["attribution"][index, layer, column] = written.cpu().numpy()
            slices = through_projection(model, layer, direction)
            if slices is not None:
                heads = (slices * at(Site(layer, "heads"))).sum(-1)
                self.found["attribution_head"][index, layer, : heads.shape[-1]] = heads.cpu().numpy()

    def finish(self) -> xr.Dataset:
        """Return ``attribution (prompt, layer, component)`` and its companions."""
        from xatlas.probing.ablation import model_heads
        from xatlas.schema import label, layer_coords, suite_coords

        if self.held.prompts:
            self._attribute()
        return label(
            self.variables,
            self.found,
            {
                **suite_coords(self.tokens),
                **layer_coords(self.model.operator_types),
                **model_heads(self.model, range(self.heads)),
                "component": list(COMPONENT_SITES),
            },
            absent=self._absent(),
            dropped=self.tokens.dropped,
        )

    def _absent(self) -> dict[str, str]:
        from xatlas.probing.lens import adds_heads
        from xatlas.schema import cells

        model = self.model
        absent: dict[str, str] = {}
        without = sum(prompt.foil_answer is None for prompt in self.tokens.prompts)
        if without:
            reason = f"{without} of {len(self.tokens)} prompts have no target and foil"
            absent |= dict.fromkeys(self.variables, reason)
        layers = range(model.n_layers)
        for component, kind in COMPONENT_SITES.items():
            bare = [layer for layer in layers if not model.has(Site(layer, kind))]
            if bare:
                absent[cells(component=[component], layer=bare)] = f"the block has no {kind}"
        for layer, layout in enumerate(model.head_layouts):
            own = layout.n_heads if layout else 0
            at = f"attribution_head & {cells(layer=[layer])}"
            if layout is None:
                absent[at] = f"{model.operator_types[layer]} has no heads"
            elif not adds_heads(model, layer):
                absent[at] = "what the layer adds to the stream is not the output of the heads' projection as it is"
            elif own < self.heads:
                absent[cells(layer=[layer], head=range(own, self.heads))] = f"the layer has {own} heads"
        return absent


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [DirectLogitAttribution]
