"""Where LoRA weights go: roles and strategies become modules."""

from __future__ import annotations

from collections import Counter

import pytest
import xarray as xr
from peft import LoraConfig, get_peft_model

import xatlas
from xatlas import Inputs, Prompt, Suite, XatlasError, manager, testing
from xatlas.config import MeasureConfig
from xatlas.model import HookedModel
from xatlas.plugins.training import finetune, targets
from xatlas.plugins.training.targets import by_strategy, layer_effects, lora_size, target_modules
from xatlas.plugins.training.trainer import Run, lora


@pytest.fixture(scope="module")
def lfm2():
    return xatlas.load("lfm2-mini")


def last(path):
    return path.rpartition(".")[2]


def test_mlps_of_a_hybrid_are_its_three_matrices_in_every_layer(lfm2):
    targets = by_strategy(lfm2, "mlp_only", list, 0)
    assert Counter(map(last, targets.modules)) == dict.fromkeys(("w1", "w2", "w3"), lfm2.n_layers)
    with lora(lfm2, targets, Run(rank=2)) as tuned:
        assert tuned.modules == 3 * lfm2.n_layers
        assert tuned.parameters == lora_size(lfm2, targets, 2)
        adapted = {name for name, module in tuned.peft.named_modules() if hasattr(module, "base_layer")}
        assert {last(name) for name in adapted} == {"w1", "w2", "w3"}
    assert not any("lora" in name for name, _ in lfm2.model.named_modules())


def test_output_projections_of_attention_are_told_from_those_of_convolutions(lfm2):
    """By their name, out_proj, peft would take both."""
    types = lfm2.operator_types
    attention, conv = target_modules(lfm2, ["attention.out"]), target_modules(lfm2, ["conv.out"])
    assert {last(path) for path in attention.modules + conv.modules} == {"out_proj"}
    assert (len(attention.modules), len(conv.modules)) == (types.count("attention"), types.count("conv"))
    both = target_modules(lfm2, ["out"])
    assert sorted(both.modules) == sorted(attention.modules + conv.modules)
    one = target_modules(lfm2, ["mlp", "out"], [0])
    assert [path.split(".")[2] for path in one.modules] == ["0"] * 4


def test_peft_itself_has_no_modules_for_this_architecture():
    hf = testing.tiny_hf_model("Lfm2ForCausalLM")
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM"))


def test_roles_that_match_nothing_are_refused_by_what_there_is(lfm2):
    with pytest.raises(XatlasError, match=r"role 'lm_head'.*there are: .*mlp\.down.*conv\.in"):
        target_modules(lfm2, ["mlp", "lm_head"])
    with pytest.raises(XatlasError, match=r"no module has the role 'gate_proj'"):
        target_modules(lfm2, ["gate_proj"])
    with pytest.raises(XatlasError, match="layer 99 is out of range"):
        target_modules(lfm2, ["mlp"], [99])
    plain = testing.tiny_model(manager.adapters()["LlamaForCausalLM"], "LlamaForCausalLM")
    with pytest.raises(XatlasError, match="role 'conv'"):
        by_strategy(plain, "conv_only", list, 0)


def test_a_fused_projection_is_adapted_whole_or_not_at_all():
    model = testing.tiny_model(manager.adapters()["Phi3ForCausalLM"], "Phi3ForCausalLM")
    with pytest.raises(XatlasError, match=r"attention\.q of layer 0 is fused with attention\.k, attention\.v"):
        target_modules(model, ["attention.q"])
    assert {last(path) for path in target_modules(model, ["attention"]).modules} == {"qkv_proj", "o_proj"}


def test_random_layers_are_others_of_the_same_types_and_size(lfm2, monkeypatch):
    n, types = lfm2.n_layers, lfm2.operator_types
    effects = [float(n - layer) for layer in range(n)]  # the first third matters most
    guided = by_strategy(lfm2, "atlas_guided", lambda: effects, 0)
    assert guided.layers == tuple(range(-(-n // 3)))
    assert {last(path) for path in guided.modules} == {"out_proj", "w1", "w2", "w3"}
    drawn = [by_strategy(lfm2, "random_layers", lambda: effects, seed) for seed in range(8)]
    for one in drawn:
        assert one.layers != guided.layers
        assert Counter(types[layer] for layer in one.layers) == Counter(types[layer] for layer in guided.layers)
        assert lora_size(lfm2, one, 8) == lora_size(lfm2, guided, 8)
    assert len({one.layers for one in drawn}) > 1
    # where layers differ in width, too: of such a size, here the sum of their numbers, there are few
    monkeypatch.setattr(targets, "lora_size", lambda model, chosen: sum(chosen.layers))
    same = by_strategy(lfm2, "random_layers", lambda: [float(layer in (1, 4, 6, 8, 9)) for layer in range(n)], 0)
    assert sum(same.layers) == 28
    full = by_strategy(lfm2, "atlas_full", lambda: effects, 0)
    assert full.layers == guided.layers
    assert set(guided.modules) < set(full.modules)
    single = HookedModel(testing.tiny_hf_model("LlamaForCausalLM", num_hidden_layers=1), None)
    with pytest.raises(XatlasError, match="no other layers"):
        by_strategy(single, "random_layers", lambda: [1.0], 0)


def test_hub_stands_for_the_third_of_the_layers_that_matters_most(lfm2, monkeypatch):
    n = lfm2.n_layers
    monkeypatch.setattr(finetune, "layer_effects", lambda *_: list(map(float, range(n))))
    assert finetune._targets(lfm2, ["out"], "hub", MeasureConfig.make()).layers == tuple(range(n - -(-n // 3), n))


def test_layers_matter_as_much_as_in_the_mean_of_families(monkeypatch):
    """A family of many prompts counts no more than one of few."""
    model = testing.tiny_model(manager.adapters()["LlamaForCausalLM"], "LlamaForCausalLM")
    prompts = [Prompt(str(n), "many" if n else "few", "a b", template="t") for n in range(4)]
    monkeypatch.setattr("xatlas.probing.means.sources", lambda model, prompts, conditions, inputs: ({}, {}, conditions))

    def swept(model, prompts, conditions, metrics, **_):
        kl = [[[float(prompt.prompt.family == "few")] * len(conditions) for prompt in prompts]]
        return xr.DataArray(kl, dims=("metric", "prompt", "condition"))

    monkeypatch.setattr("xatlas.sweep.named_sweep", swept)
    assert layer_effects(model, Inputs(reference=Suite("r", tuple(prompts)))) == [0.5] * model.n_layers
