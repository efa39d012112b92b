"""An xatlas plugin: where GPT-NeoX keeps its sites, and a probe that looks at what its blocks write."""

from __future__ import annotations

from typing import Any

from xatlas import Adapter, HeadLayout, HookPoint, Inputs, Probe, ReadingProbe, Site, Variable, hookimpl
from xatlas.contracts.adapter import Heads, Pattern


class GptNeoxAdapter(Adapter):
    """GPT-NeoX and Pythia: attention and MLP read the same stream and are added to it together.

    In such a parallel block no stream lies between the two, so ``resid_mid`` is absent. Queries, keys and
    values come from one fused projection, the role ``attention.qkv``.
    """

    architectures = ("GPTNeoXForCausalLM",)
    layers_path = "gpt_neox.layers"
    embedding_path = "gpt_neox.embed_in"
    final_norm_path = "gpt_neox.final_layer_norm"
    unembedding_path = "lm_head"
    cache_argument = "layer_past"

    def operator_type(self, layer: int) -> str:
        """Return ``attention``: every layer attends."""
        return "attention"

    def head_layout(self, layer: int) -> HeadLayout:
        """Read the heads from the attention module; keys and values are not shared."""
        attention = self.module(f"{self.layer_path(layer)}.attention")
        n_heads = attention.dense.in_features // attention.head_size
        return HeadLayout(n_heads, n_heads, attention.head_size)

    def output_projection(self, layer: int) -> str:
        """Return the attention's output projection."""
        return f"{self.layer_path(layer)}.attention.dense"

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the sites; ``resid_mid`` only where the model was built with blocks in sequence."""
        block, layout = self.layer_path(layer), self.head_layout(layer)
        points = {
            "resid_pre": HookPoint(block, "input"),
            "heads": HookPoint(self.output_projection(layer), "input", Heads(layout.n_heads, layout.d_head)),
            "attention_pattern": HookPoint(f"{block}.attention", "output", Pattern()),
            "operator_out": HookPoint(f"{block}.attention", "output"),
            "mlp_out": HookPoint(f"{block}.mlp", "output"),
            "resid_post": HookPoint(block, "output"),
        }
        if not self.module(block).use_parallel_residual:
            norm = f"{block}.post_attention_layernorm"
            points["resid_mid"] = HookPoint(norm, "input", edit_as="operator_out")
        return points

    def roles(self, layer: int) -> dict[str, str]:
        """Return the four linear modules of a block."""
        block = self.layer_path(layer)
        return {
            "attention.qkv": f"{block}.attention.query_key_value",
            "attention.out": f"{block}.attention.dense",
            "mlp.up": f"{block}.mlp.dense_h_to_4h",
            "mlp.down": f"{block}.mlp.dense_4h_to_h",
        }


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
    """Return the GPT-NeoX adapter."""
    return [GptNeoxAdapter]


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [WriteAgreement]
