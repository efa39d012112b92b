"""Direct logit attribution: what each part of a model writes onto target minus foil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, XatlasError, hookimpl
from xatlas.vocabulary import COMPONENT_SITES

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture

#: Share of a normed stream that a linear map need not explain.
_ODD = 1e-4


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

        from xatlas.probing.reading import Readouts

        held, self.held = self.held, Readouts()
        model, prompts, index, values = self.model, held.prompts, held.index, held.values()

        def at(site: Site) -> Tensor:  # (row, ...)
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


def frozen_direction(model: HookedModel, final: Tensor, token: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return what turns parts of the stream into parts of a difference of two tokens' logits.

    With the scale of the final norm as it is at ``final (row, d_model)``, the logit of ``token (row)`` minus that of
    ``other (row)`` is ``(direction * final).sum(-1) + constant``: ``direction (row, d_model)`` reads off what each
    part of the stream adds to it, and ``constant (row)`` are biases of norm and unembedding. Of logits with a soft
    cap it is the difference before the cap.

    A norm is a linear map over a scale. At zero the scale is constant, so the slope there is the linear map, whatever
    the norm's formula; a cap's slope there is 1. The scale at ``final`` follows from what the norm makes of it.

    Raises
    ------
    XatlasError
        The final norm is no linear map over a scale: nothing can be frozen.
    """
    import torch

    path = model.adapter.final_norm_path
    norm = model.adapter.module(path)
    with model.lock, torch.inference_mode(False), torch.enable_grad():
        final = final.detach().clone()
        zero = torch.zeros_like(final, requires_grad=True)
        logits = model.adapter.logits(zero).float()
        pair = [logits.gather(-1, chosen[:, None])[:, 0] for chosen in (token, other)]
        constant = pair[0] - pair[1]
        (slope,) = torch.autograd.grad(constant.sum(), zero)
        at_zero = norm(zero)
        cotangent = torch.zeros_like(at_zero, requires_grad=True)
        (pulled,) = torch.autograd.grad(at_zero, zero, cotangent, create_graph=True)
        (linear,) = torch.autograd.grad(pulled, cotangent, final)  # the norm's linear map of the stream
        normed = (norm(final) - at_zero).detach().double()
    linear = linear.double()
    scale = (normed * linear).sum(-1, keepdim=True) / linear.square().sum(-1, keepdim=True)
    odd = (normed - scale * linear).norm(dim=-1) / normed.norm(dim=-1)
    if bool((odd > max(_ODD, 16 * torch.finfo(final.dtype).eps)).any()):
        raise XatlasError(f"{path} is no linear map over a scale, so that logits are no sum of what layers write.")
    return (slope.double() * scale).float(), constant.detach()


def adds_heads(model: HookedModel, layer: int) -> bool:
    """Whether what a layer adds to the stream is a sum over its heads: no norm stands behind their projection."""
    import torch

    path, layout = model.adapter.output_projection(layer), model.head_layouts[layer]
    if path is None or layout is None:
        return False
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 1, model.d_model, generator=generator).to(model.device, model.dtype)
    with torch.inference_mode():
        one, other, both = (model.adapter.written(layer, each) for each in (*pair, pair.sum(0)))
    return bool((one + other - both).norm() <= 0.05 * both.norm())


def through_projection(model: HookedModel, layer: int, direction: Tensor) -> Tensor | None:
    """Return what reads a layer's heads as ``direction (row, d_model)`` reads its output: ``(row, n_heads, d_head)``.

    None where the layer has no heads, or its output is no sum over them.
    """
    import torch

    path, layout = model.adapter.output_projection(layer), model.head_layouts[layer]
    if path is None or layout is None or not adds_heads(model, layer):
        return None
    projection = model.adapter.module(path)
    with torch.inference_mode(False), torch.enable_grad():
        width = layout.n_heads * layout.d_head
        zero = torch.zeros(len(direction), width, device=direction.device, dtype=model.dtype, requires_grad=True)
        output = model.adapter.written(layer, projection(zero))
        (found,) = torch.autograd.grad(output, zero, direction.to(model.dtype))
    slices: Tensor = found.float().reshape(-1, layout.n_heads, layout.d_head)
    return slices


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [DirectLogitAttribution]
