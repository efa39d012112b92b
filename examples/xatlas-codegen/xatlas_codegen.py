"""An xatlas plugin: where CodeGen keeps its sites, and a probe that looks at what its blocks write."""

from __future__ import annotations

from typing import Any

from xatlas import Adapter, HeadLayout, HookPoint, Inputs, Probe, ReadingProbe, Site, Variable, hookimpl
from xatlas.contracts.adapter import Part, PreNormAdapter


class CodeGenAdapter(PreNormAdapter):
    """CodeGen: attention and MLP read the same stream; queries, keys and values come from one projection, in quarters.

    In such a parallel block no stream lies between the two, so ``resid_mid`` is absent.
    """

    architectures = ("CodeGenForCausalLM",)
    layers_path = "transformer.h"
    embedding_path = "transformer.wte"
    final_norm_path = "transformer.ln_f"
    cache_argument = "layer_past"
    attention_name = "attn"
    out_name = "out_proj"
    mlp_roles = {"up": "fc_in", "down": "fc_out"}  # noqa: RUF012 - declared ClassVar in the base

    def head_layout(self, layer: int) -> HeadLayout:
        """Read the heads from the attention module; keys and values are not shared."""
        attention = self.module(self.operator_path(layer))
        return HeadLayout(attention.num_attention_heads, attention.num_attention_heads, attention.head_dim)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites but ``resid_mid``."""
        points = super().hook_points(layer)
        del points["resid_mid"]
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        """Return the roles; each quarter of the fused projection holds queries, values and keys, in this order."""
        path = f"{self.operator_path(layer)}.qkv_proj"
        width = self.outputs(path) // 12
        parts = {"q": 0, "v": width, "k": 2 * width}
        fused = {f"attention.{role}": Part(path, at, at + width, 3 * width) for role, at in parts.items()}
        return super().roles(layer) | fused


class WriteAgreement(ReadingProbe):
    """Whether a layer's operator and its MLP write to the stream in the same direction.

    ``cosine (prompt, layer)``: cosine between ``operator_out`` and ``mlp_out`` at the readout position.
    ``cosine_control (prompt, layer)``: the same with the MLP's write taken from another prompt of the same
    length; two writes that agree there too agree whatever the text is. NaN where no such prompt exists.

    Unit: 1. Source: none, an example; no published number rests on it.
    """

    name = "write_agreement"
    version = 1
    sites = ("operator_out", "mlp_out")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "cosine": Variable(("prompt", "layer"), "1", "cosine between the operator's and the MLP's write"),
        "cosine_control": Variable(("prompt", "layer"), "1", "the same, MLP's write of another prompt"),
    }

    def start(self, model: Any, suite: Any, inputs: Inputs) -> None:
        """Make room for one row per prompt."""
        import numpy as np  # imported late: listing the probes loads nothing

        self.model = model
        self.read = model.read(suite)
        shape = (len(self.read), model.n_layers)
        self.cosine, self.control = np.full(shape, np.nan), np.full(shape, np.nan)

    def update(self, capture: Any) -> None:
        """Compare the two writes of every layer, prompt by prompt."""
        from torch.nn.functional import cosine_similarity

        rows, readout = range(len(capture.prompts)), [prompt.readout for prompt in capture.prompts]
        index = list(capture.index)
        for layer in range(self.model.n_layers):
            sites = Site(layer, "operator_out"), Site(layer, "mlp_out")
            operator, mlp = (capture.values[site][rows, readout].float() for site in sites)
            self.cosine[index, layer] = cosine_similarity(operator, mlp, dim=-1).cpu()
            if len(index) > 1:
                self.control[index, layer] = cosine_similarity(operator, mlp.roll(1, 0), dim=-1).cpu()

    def finish(self) -> Any:
        """Label the rows."""
        from xatlas.schema import label, layer_coords, suite_coords

        return label(
            self.variables,
            {"cosine": self.cosine, "cosine_control": self.control},
            suite_coords(self.read) | layer_coords(self.model.operator_types),
            absent={"cosine_control": "no other prompt of the same token length was in the batch"},
            dropped=self.read.dropped,
        )


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the CodeGen adapter."""
    return [CodeGenAdapter]


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [WriteAgreement]
