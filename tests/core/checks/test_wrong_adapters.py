"""Adapters that are wrong in ways that loading alone, or a look at shapes, would let pass."""

from dataclasses import dataclass, replace

import pytest

from xatlas.architectures.llama import LlamaAdapter
from xatlas.checks import check_adapter
from xatlas.contracts.adapter import HeadLayout, Heads, HookPoint, Part, PreNormAdapter, Scaled, View
from xatlas.errors import XatlasError
from xatlas.model import HookedModel
from xatlas.testing import tiny_hf_model


def points(adapter, **changed):
    """Return the adapter with some points made from what they were."""

    class Wrong(adapter):
        def hook_points(self, layer):
            found = super().hook_points(layer)
            return found | {kind: change(found[kind]) for kind, change in changed.items()}

    return Wrong


def roles(adapter, **changed):
    """Return the adapter with some roles at the places of others."""

    class Wrong(adapter):
        def roles(self, layer):
            found = super().roles(layer)
            return found | {role.replace("_", "."): found[other.replace("_", ".")] for role, other in changed.items()}

    return Wrong


class EightHeads(LlamaAdapter):
    """Four heads of eight taken for eight of four, of four groups: all widths fit."""

    def head_layout(self, layer):
        return HeadLayout(8, 4, 4)


class OneGroup(LlamaAdapter):
    def head_layout(self, layer):
        return HeadLayout(4, 1, 8)


class Phi(PreNormAdapter):
    """Queries, keys and values in one projection; the keys said to be as many as the queries."""

    architectures = ("Phi3ForCausalLM",)
    groups = 4

    def head_layout(self, layer):
        return HeadLayout(4, self.groups, 8)

    def roles(self, layer):
        qkv, wide = f"{self.operator_path(layer)}.qkv_proj", 8 * self.groups
        parts = {"attention.q": Part(qkv, 0, 32), "attention.k": Part(qkv, 32, 32 + wide)}
        return parts | {"attention.v": Part(qkv, 32 + wide, 32 + 2 * wide)}


class PlainGranite(PreNormAdapter):
    """Granite without its multipliers."""

    architectures = ("GraniteForCausalLM",)


class HalfOfTheExperts(PreNormAdapter):
    """A layer whose routed experts stand beside shared ones, which are forgotten."""

    architectures = ("GraniteMoeSharedForCausalLM",)
    mlp_name = "block_sparse_moe"
    mlp_roles = {}  # noqa: RUF012


@dataclass(frozen=True)
class InPlace(View):
    """Writes into the tensor that the model goes on with."""

    def write(self, tensor, value):
        return tensor.copy_(value)


@dataclass(frozen=True)
class Detached(Scaled):
    """A factor written by numbers alone: right values, no gradient."""

    def write(self, tensor, value):
        return tensor + (value.detach() - tensor * self.factor) / self.factor


CASES = {
    "head count": (EightHeads, "L0.heads .*attention gives 4 patterns, the adapter says 8 heads"),
    "groups": (OneGroup, r"k_proj gives 16 numbers"),
    "groups of a fused projection": (Phi, r"start=64, stop=96.* gives 0 numbers"),
    "a missing term": (HalfOfTheExperts, r"L0\.resid_post .*don't add up"),
    "a factor left out": (PlainGranite, r"L0\.resid_mid .*don't add up"),
    "in-place write": (
        points(LlamaAdapter, mlp_out=lambda point: replace(point, view=InPlace())),
        r"L0\.mlp_out .*writes into the tensor",
    ),
    "wrong side of the projection": (
        points(LlamaAdapter, heads=lambda point: HookPoint(point.module, "output", Heads(4, 8))),
        r"L0\.heads .*does not give operator_out",
    ),
    "no gradient": (
        points(LlamaAdapter, mlp_out=lambda point: replace(point, view=Detached(1.0))),
        r"L0\.mlp_out .*no gradient reaches it",
    ),
    "keys for values": (roles(LlamaAdapter, attention_k="attention_v", attention_v="attention_k"), "'attention.v'"),
    "queries for keys": (roles(LlamaAdapter, attention_k="attention_q", attention_q="attention_k"), "'attention.q'"),
    "gate for up": (roles(LlamaAdapter, mlp_gate="mlp_up", mlp_up="mlp_gate"), "are gate and up swapped"),
}
#: What makes the model one where it shows.
CONFIG = {
    "queries for keys": {"num_key_value_heads": 4},
    "a factor left out": {"residual_multiplier": 0.4},
    "a missing term": {"shared_intermediate_size": 16},
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_adapter_is_refused_and_what_is_wrong_named(name):
    adapter, told = CASES[name]
    hf = tiny_hf_model(adapter.architectures[0], **{"num_hidden_layers": 2} | CONFIG.get(name, {}))
    with pytest.raises(XatlasError, match=told) as error:
        check_adapter(HookedModel(hf, None, adapter=adapter(hf)))
    assert "\n" not in str(error.value)
