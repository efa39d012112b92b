"""The load-time proof refuses adapters that are wrong in the ways in which adapters are wrong."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from models import SHAPES, build
from transformers import Lfm2Config, Lfm2ForCausalLM

from xatlas.architectures.lfm2 import Lfm2Adapter
from xatlas.architectures.llama import LlamaAdapter
from xatlas.contracts.adapter import HeadLayout, Heads, HookPoint, Whole
from xatlas.errors import XatlasError
from xatlas.model import HookedModel


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_right_adapters_pass_on_every_shape(name, dtype):
    kind, overrides = SHAPES[name]
    HookedModel(build(kind, **overrides).to(dtype), None)


def wrong(base=LlamaAdapter, layer=None, **points):
    """Return an adapter with some hook points replaced, in one layer or in all; None takes one away."""

    class Wrong(base):
        def hook_points(self, at):
            found = super().hook_points(at)
            if layer in (None, at):
                block = self.layer_path(at)
                changed = {kind: point(block) for kind, point in points.items() if point is not None}
                found = {kind: point for kind, point in (found | changed).items() if points.get(kind, 0) is not None}
            return found

    return Wrong


class HalfWritten(Whole):
    """Writes only half of what it was given."""

    def write(self, tensor, value):
        return torch.cat([value[..., :5], tensor[..., 5:] * 0], dim=-1)


class Deaf(Whole):
    """Writes nothing back: an edit would silently do nothing."""

    def write(self, tensor, value):
        return tensor


CASES = {
    "modules swapped": (
        wrong(
            operator_out=lambda block: HookPoint(f"{block}.mlp", "output"),
            mlp_out=lambda block: HookPoint(f"{block}.self_attn", "output"),
        ),
        r"wrong about L0\.resid_mid .*don't add up",
    ),
    "another layer's MLP": (
        wrong(layer=1, mlp_out=lambda block: HookPoint("model.layers.0.mlp", "output")),
        r"wrong about L1\.resid_post \(module model\.layers\.1\): resid_pre and what the layer wrote",
    ),
    "the stream behind the norm": (
        wrong(resid_pre=lambda block: HookPoint(f"{block}.input_layernorm", "output")),
        r"wrong about L0\.resid_mid .*don't add up",
    ),
    "a module inside the MLP": (
        wrong(mlp_out=lambda block: HookPoint(f"{block}.mlp.up_proj", "output")),
        r"wrong about L0\.mlp_out \(module model\.layers\.0\.mlp\.up_proj\): its shape is",
    ),
    "a module that is not called": (
        wrong(layer=2, mlp_out=lambda block: HookPoint(f"{block}.mlp.spare", "output")),
        r"wrong about L2\.mlp_out \(module model\.layers\.2\.mlp\.spare\): the hook fired 0 times",
    ),
    "a module that is called for every layer": (
        wrong(layer=0, operator_out=lambda block: HookPoint("shared", "output")),
        r"wrong about L0\.operator_out \(module shared\): the hook fired 3 times",
    ),
    "heads before the attention": (
        wrong(heads=lambda block: HookPoint(f"{block}.self_attn.q_proj", "output", Heads(4, 8))),
        r"wrong about L0\.heads \(module model\.layers\.0\.self_attn\.q_proj\): through .*o_proj it does not give",
    ),
    "heads split otherwise than laid out": (
        wrong(heads=lambda block: HookPoint(f"{block}.self_attn.o_proj", "input", Heads(8, 4))),
        r"wrong about L0\.heads .*its shape is .*the adapter says HeadLayout",
    ),
    "a view that writes what it did not read": (
        wrong(layer=1, mlp_out=lambda block: HookPoint(f"{block}.mlp", "output", HalfWritten())),
        r"L1\.mlp_out|changes the logits",
    ),
    "a view that writes nothing": (
        wrong(layer=1, mlp_out=lambda block: HookPoint(f"{block}.mlp", "output", Deaf())),
        r"wrong about L1\.mlp_out .*does not read what it has written",
    ),
    "a module that is not there": (
        wrong(mlp_out=lambda block: HookPoint(f"{block}.feed_forward", "output")),
        r"looks for the module 'model\.layers\.0\.feed_forward', which LlamaForCausalLM does not have",
    ),
}


def model_with_extras():
    """A tiny Llama with a module that is never called and one that every layer calls."""
    hf = build("llama")
    hf.shared = torch.nn.Identity()
    for layer in hf.model.layers:
        layer.mlp.spare = torch.nn.Identity()
        layer.self_attn.register_forward_hook(lambda module, args, output: (hf.shared(output[0]), *output[1:]))
    return hf


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_adapter_is_refused_by_name(name):
    adapter, told = CASES[name]
    hf = model_with_extras() if "called" in name else build("llama")
    with pytest.raises(XatlasError, match=told) as error:
        HookedModel(hf, None, adapter=adapter(hf))
    assert "\n" not in str(error.value)


class WithoutFinalNorm(LlamaAdapter):
    final_norm_path = "model.layers.0.input_layernorm"


class WrongRole(LlamaAdapter):
    def roles(self, layer):
        return super().roles(layer) | {"mlp.down": f"{self.layer_path(layer)}.mlp.w2"}


class WrongHeads(LlamaAdapter):
    """Says more heads than there are."""

    def head_layout(self, layer):
        return HeadLayout(2, 2, 16)

    def hook_points(self, layer):
        points = super().hook_points(layer)
        return points | {"heads": HookPoint(points["heads"].module, "input", Heads(4, 8))}


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (WithoutFinalNorm, r"input_layernorm and lm_head does not give the model's logits"),
        (WrongRole, r"looks for the module 'model\.layers\.0\.mlp\.w2'"),
        (WrongHeads, r"wrong about layer 0: .*k_proj gives 16 numbers"),
    ],
)
def test_wrong_facts_are_refused_by_name(adapter, told):
    hf = build("llama")
    with pytest.raises(XatlasError, match=told):
        HookedModel(hf, None, adapter=adapter(hf))


class Between(torch.nn.ModuleList):
    """Layers whose model changes the stream before one of them."""

    def __getitem__(self, index):
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return [partial(self.enter, at, layer) for at, layer in enumerate(self)]

    def enter(self, at, layer, hidden, **arguments):
        return layer(self.change(hidden) if at == self.at else hidden, **arguments)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize(
    "change", [lambda hidden: hidden * 1.5, lambda hidden: hidden + 0.1, lambda hidden: hidden.roll(1, 1)]
)
def test_a_model_that_changes_the_stream_between_layers_is_refused(at, change):
    hf = build("llama")
    hf.model.layers = Between(hf.model.layers)
    hf.model.layers.at, hf.model.layers.change = at, lambda hidden: hidden
    HookedModel(hf, None)
    hf.model.layers.change = change
    with pytest.raises(XatlasError, match=rf"LlamaForCausalLM changes the stream between layers {at - 1} and {at} "):
        HookedModel(hf, None)


class HooksTheConvolution(Lfm2Adapter):
    """The classic: the convolution's module is never called, its weight is handed to a function."""

    def hook_points(self, layer):
        points = super().hook_points(layer)
        if "conv_signal" in points:
            points["conv_signal"] = HookPoint(f"{self.operator_path(layer)}.conv", "input")
        return points


class ReceptiveFieldTooShort(Lfm2Adapter):
    def receptive_field(self, layer):
        return 2 if self.conv_path(layer) else None


class AttentionWithAReceptiveField(LlamaAdapter):
    def receptive_field(self, layer):
        return 3


@pytest.mark.parametrize(
    ("adapter", "kind"), [(ReceptiveFieldTooShort, "lfm2"), (AttentionWithAReceptiveField, "llama")]
)
def test_a_receptive_field_that_is_too_short_is_refused(adapter, kind):
    hf = build(kind)
    with pytest.raises(XatlasError, match=r"wrong about layer 0: its last output does not follow"):
        HookedModel(hf, None, adapter=adapter(hf))


class WithoutItsPast(LlamaAdapter):
    cache_argument = "past"  # which a layer takes, and passes over


def test_a_step_that_does_not_read_the_cache_is_refused():
    hf = build("llama")
    with pytest.raises(XatlasError, match=r"wrong about 'past': run on its cache alone the last position of layer 0"):
        HookedModel(hf, None, adapter=WithoutItsPast(hf))


def test_rounding_of_wide_layers_is_no_fault_of_an_adapter():
    """A step multiplies other shapes than a whole: sums of thousands of numbers round otherwise."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 97}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "layer_types": ["conv", "full_attention"] * 4}
    config = Lfm2Config(**sizes, **heads, block_auto_adjust_ff_dim=False, initializer_range=0.1)
    HookedModel(Lfm2ForCausalLM(config).eval(), None)


def test_a_hook_on_lfm2s_convolution_is_refused():
    hf = build("lfm2")
    with pytest.raises(XatlasError, match=r"L0\.conv_signal \(module model\.layers\.0\.conv\.conv\): .*fired 0 times"):
        HookedModel(hf, None, adapter=HooksTheConvolution(hf))


def test_a_site_read_by_zero_weights_only_need_not_move_the_logits():
    hf = build("llama")
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight.zero_()
    HookedModel(hf, None)


def test_the_proof_leaves_no_hook_and_no_changed_weight():
    hf = build("lfm2")
    weights = {name: weight.clone() for name, weight in hf.state_dict().items()}
    HookedModel(hf, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())
    assert all(torch.equal(weight, weights[name]) for name, weight in hf.state_dict().items())


def overflowing(site):
    """A tiny Llama whose numbers leave float16's range at a site, though all weights are in it."""
    hf = build("llama")
    with torch.no_grad():
        module, factor = {
            "L1.mlp_out": (hf.model.layers[1].mlp.down_proj, 6e4),
            "L0.operator_out": (hf.model.layers[0].self_attn.o_proj, 6e4),
            "logits": (hf.model.norm, 6e4),
        }[site]
        module.weight.copy_((module.weight * factor).clamp(-6e4, 6e4))
    return hf


@pytest.mark.parametrize("site", ["L1.mlp_out", "L0.operator_out", "logits"])
def test_numbers_beyond_float16_are_told_as_that(site):
    HookedModel(overflowing(site), None)
    HookedModel(overflowing(site).bfloat16(), None)
    where = "in the logits" if site == "logits" else rf"at {site} \(module model\.layers\.{site[1]}\.\w+\)"
    with pytest.raises(XatlasError, match=f"not finite, first {where}: float16 overflows, use float32 or bfloat16"):
        HookedModel(overflowing(site).half(), None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    hf = build("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(XatlasError, match=r"^model\.layers\.1\.mlp\.up_proj\.weight in the model is not finite"):
        HookedModel(hf, None)


def test_weights_that_overflow_float32_are_no_fault_of_the_adapter():
    hf = build("llama")
    with torch.no_grad():
        for weight in (hf.model.layers[0].mlp.up_proj.weight, hf.model.layers[0].mlp.down_proj.weight):
            weight.mul_(1e20)
    with pytest.raises(XatlasError, match=r"not finite, first at L0\.mlp_out .*too large"):
        HookedModel(hf, None)


def test_a_perturbation_that_overflows_has_reached_the_logits():
    """Close below float16's limit the proof's own noise is too much; the model itself is sound."""
    hf = build("llama")
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.mul_(4e3)
    HookedModel(hf.half(), None)
