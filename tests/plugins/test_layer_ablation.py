"""Layer ablation: planted layers come out as planted, joint at zero is skipping, blocks can't be zeroed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref
import torch
from models import build, token_prompt

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Target, Zero
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.plugins.layer_ablation import COMPONENTS, LayerAblation
from xatlas.probing.means import reference_means
from xatlas.schema import notes, validate
from xatlas.suites import Prompt, Suite
from xatlas.sweep import sweep
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

BYTES = {"vocab_size": 260}
SUITE = Suite("few", tiny_suite().prompts[::2])


def hooked(hf):
    return HookedModel(hf, byte_tokenizer())


def measure(hf, suite=SUITE, draws=1, **parameters):
    probe = LayerAblation(**parameters)
    dataset = probe.measure(hooked(hf), suite, Inputs(reference=tiny_reference(), draws=draws))
    validate(dataset, probe)
    return dataset


def test_a_layer_of_zero_weights_gives_exactly_0():
    hf = build("llama", **BYTES)
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight.zero_()
        hf.model.layers[1].mlp.down_proj.weight.zero_()
    dataset = measure(hf, scopes="last,all")
    assert np.abs(dataset.kl.sel(layer=1)).max() == 0
    assert np.abs(dataset.kl_control.sel(layer=1)).max() == 0
    assert np.abs(dataset.kl_position.sel(layer=1)).max() == 0
    assert np.abs(dataset.delta_nll.sel(layer=1)).max() == 0
    assert dataset.kl.sel(layer=[0, 2]).mean("prompt").min() > 1e-3


def test_two_equal_layers_that_commute_are_a_tie():
    """MLPs whose hidden units are constants write the same vector, wherever they stand."""
    hf = build("llama", **BYTES, mlp_bias=True, num_hidden_layers=2)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.gate_proj.weight.zero_()
            layer.mlp.up_proj.weight.zero_()
            layer.mlp.down_proj.weight.copy_(hf.model.layers[0].mlp.down_proj.weight)
            for name in ("gate_proj", "up_proj", "down_proj"):
                bias = getattr(hf.model.layers[0].mlp, name).bias
                getattr(layer.mlp, name).bias.copy_(bias)
            layer.mlp.gate_proj.bias.fill_(1)
    dataset = measure(hf, ablations="zero")
    first, second = (dataset.kl.sel(layer=layer, component="mlp").values for layer in (0, 1))
    assert ref.agree(first, second)
    assert first.max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_the_probe_gives_the_numbers_of_the_reference_loop(kind):
    hf = build(kind, **BYTES)
    dataset = measure(hf, ablations="zero")
    tokens = hooked(hf).read(SUITE)
    edits = {"operator": ["operator_out"], "mlp": ["mlp_out"], "joint": ["operator_out", "mlp_out"]}
    for row, prompt in enumerate(tokens.prompts[:3]):
        clean = ref.logits(hf, prompt.ids)
        for layer in range(3):
            for component, kinds in edits.items():
                changed = ref.logits(hf, prompt.ids, [(layer, kind, torch.zeros_like) for kind in kinds])
                numbers = ref.measure(prompt, clean, changed)
                ours = dataset.isel(prompt=row).sel(layer=layer, component=component, ablation="zero")
                found = [ours.kl.item(), ours.delta_nll.item(), ours.top1_changed.item()]
                assert ref.agree(found, [numbers[0], *numbers[2:4]])


def test_draws_are_directions_of_the_controls_and_none_is_averaged():
    hf = build("llama", **BYTES)
    one, three = measure(hf, ablations="mean,resample"), measure(hf, draws=3, ablations="mean,resample")
    assert ref.agree(one.kl, three.kl)  # one donor, however many directions
    assert three.draw.values.tolist() == [0, 1, 2]
    assert ref.agree(one.kl_control.sel(draw=0), three.kl_control.sel(draw=0))
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert not any(ref.agree(*(three.kl_control.sel(draw=draw) for draw in pair)) for pair in pairs)


def test_only_mean_has_controls():
    assert "kl_control" not in measure(build("llama", **BYTES), ablations="zero,resample")


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_controls_give_the_numbers_of_the_reference_loop(kind):
    """Directions are combinations of 512 tokens of the stream behind the component, written out for each prompt."""
    hf = build(kind, **BYTES)
    dataset = measure(hf, draws=2, ablations="mean")
    model = hooked(hf)
    layer = 1
    kinds = {"operator": "operator_out", "mlp": "mlp_out"}
    streams = {"operator": "resid_mid", "mlp": "resid_post", "joint": "resid_post"}
    reference = model.read(tiny_reference())
    means = reference_means(model, reference, [Site(layer, site) for site in kinds.values()]).values
    samples = reference_means(model, reference, [], [Site(layer, site) for site in streams.values()]).samples
    for row, prompt in enumerate(model.read(SUITE).prompts[:2]):
        clean = ref.logits(hf, prompt.ids)
        changes = {}
        for component, site in kinds.items():
            value, (first, others) = ref.values(hf, prompt.ids, layer, site)[0], means[Site(layer, site)]
            changes[component] = torch.stack([first] + [others] * (len(value) - 1)) - value  # (pos, d_model)
        changes["joint"] = changes["operator"] + changes["mlp"]
        for draw, (component, change) in product((0, 1), changes.items()):
            at = kinds.get(component, "resid_post")
            sample = samples[Site(layer, streams[component])]
            context = SimpleNamespace(seed=0, names=[prompt.prompt.id])
            weights = Target(context, Site(layer, at), None).random_by_prompt(
                [len(sample)], f"direction {draw}", sample
            )
            direction = (weights[0, :, None] * sample).sum(0)
            added = change.norm(dim=-1, keepdim=True) * direction / direction.norm()
            edit = (layer, at, lambda value, added=added: value + added)
            expected = ref.kl(clean[prompt.readout], ref.logits(hf, prompt.ids, [edit])[prompt.readout])
            ours = dataset.kl_control.isel(prompt=row, scope=0).sel(layer=layer, component=component, draw=draw)
            assert ref.agree(ours, expected)


def test_a_control_is_a_prompts_own_whatever_is_measured_beside_it():
    hf = build("llama", **BYTES)
    twin = replace(SUITE.prompts[0], id="twin")
    alone, together = (
        measure(hf, Suite("s", prompts), ablations="mean").kl_control
        for prompts in ([SUITE.prompts[1]], [twin, *SUITE.prompts])
    )
    assert ref.agree(alone.isel(prompt=0), together.sel(prompt=SUITE.prompts[1].id))
    assert not ref.agree(together.sel(prompt="twin"), together.sel(prompt=SUITE.prompts[0].id))


def test_position_0_and_the_rest_give_the_numbers_of_the_reference_loop():
    hf = build("lfm2", **BYTES)
    dataset = measure(hf, ablations="zero")
    edits = {"operator": ["operator_out"], "mlp": ["mlp_out"], "joint": ["operator_out", "mlp_out"]}

    def silent(value, where):
        new = value.clone()
        new[:, where] = 0
        return new

    places = {"first": slice(0, 1), "rest": slice(1, None)}
    for row, prompt in enumerate(hooked(hf).read(SUITE).prompts[:2]):
        clean = ref.logits(hf, prompt.ids)
        for layer, (component, kinds), (name, where) in product(range(3), edits.items(), places.items()):
            edit = [(layer, kind, partial(silent, where=where)) for kind in kinds]
            expected = ref.measure(prompt, clean, ref.logits(hf, prompt.ids, edit))[0]
            ours = dataset.kl_position.isel(prompt=row).sel(layer=layer, component=component, where=name)
            assert ref.agree(ours, expected)
    assert dataset.kl_position.sel(layer=0).min() > 1e-5  # the attention behind it moves either to the readout


def test_a_prompt_without_a_donor_is_nan_and_counted():
    lonely = Prompt("lonely", "sums", "a text of a length that no donor has at all", target=" 1")
    dataset = measure(build("llama", **BYTES), Suite("s", (*SUITE.prompts[:2], lonely)))
    assert np.isnan(dataset.kl.sel(prompt="lonely", ablation="resample")).all()
    assert not np.isnan(dataset.kl.sel(ablation=["zero", "mean"])).any()
    assert not np.isnan(dataset.kl.isel(prompt=[0, 1])).any()
    told = "no donor of equal token length, other family and other target for 1 prompts"
    assert notes(dataset, "absent") == {"resample": told}


def test_without_a_target_there_is_no_delta_nll_and_it_says_so():
    """Such prompts have donors, and a text of one token has nothing that scope all reads."""
    bare = Suite("s", (*(Prompt(p.id, p.family, p.text) for p in tiny_suite()), Prompt("one", "sums", "x")))
    native = HookedModel(build("llama", **BYTES), byte_tokenizer(), bos="native")
    probe = LayerAblation(ablations="mean,resample", scopes="last,all")
    long = tuple(Prompt(f"long {i}", "long", p.text) for i, p in enumerate(tiny_suite().prompts * 12))
    dataset = probe.measure(native, bare, Inputs(reference=Suite("r", long)))
    validate(dataset, probe)
    told = notes(dataset, "absent")
    assert told["delta_nll"] == f"{len(bare)} prompts have no position that it is read at"
    assert told["scope all"] == "1 prompts have no position that it is read at"
    assert notes(dataset, "dropped") == {}
    assert dataset.kl.sel(ablation="resample", scope="last").isel(prompt=slice(-1)).notnull().all()
    assert told["position rest"] == f"1 of {len(bare)} prompts have no token of this class"
    assert dataset.kl_position.sel(where="rest").isnull().sum() == 9


def test_numbers_that_are_not_finite_are_told_by_prompt():
    hf = build("llama", **BYTES, tie_word_embeddings=False)
    with torch.no_grad():
        hf.model.embed_tokens.weight[byte_tokenizer()("+")["input_ids"][0]] = torch.inf
    hot = Prompt("hot", "sums", "1 plus+2 makes", target=" 3")  # of the others' length
    model = HookedModel(hf, byte_tokenizer(), prove=False)
    suite = Suite("s", (*SUITE.prompts[:2], hot))
    dataset = LayerAblation(ablations="zero").measure(model, suite, Inputs())
    assert np.isnan(dataset.kl.sel(prompt="hot")).all()
    assert not np.isnan(dataset.kl.isel(prompt=[0, 1])).any()
    assert list(notes(dataset, "dropped")) == ["hot"]
    assert "not finite" in notes(dataset, "dropped")["hot"]


def test_what_stands_in_coordinates_and_attributes():
    dataset = measure(build("lfm2", **BYTES), ablations="zero")
    assert list(dataset.operator_type.values) == ["conv", "attention", "conv"]
    assert list(dataset.component.values) == list(COMPONENTS)
    assert 0 <= json.loads(dataset.attrs["noise_floor"])["kl"] < 1e-4
    assert dataset.appended.values.tolist() == [1] * len(SUITE)  # a space, then the digit is read out


def test_mean_ablation_without_a_reference_is_one_clear_line():
    with pytest.raises(XatlasError, match="ablation, and controls, need a reference suite: pass --reference FILE"):
        LayerAblation().measure(hooked(build("llama", **BYTES)), SUITE, Inputs())


# -- why a block's output is never zeroed -----------------------------------------------------------


def test_zeroing_the_blocks_output_gives_the_same_number_at_every_layer():
    """It erases the stream: without biases nothing is left to tell the layers apart."""
    hf = build("llama", num_hidden_layers=4, tie_word_embeddings=False)
    prompts = [token_prompt("a", 5), token_prompt("b", 7)]
    erased = [(Intervention(Site(layer, "resid_post"), Zero()),) for layer in range(4)]
    values = sweep(HookedModel(hf, None), prompts, erased, [KL()])[0]
    assert values.min() > 1e-2
    assert ref.agree(values, values[:, :1].repeat(4, axis=1))
    # And all of them give the model without any input at all: uniform logits.
    logits = ref.logits(hf, prompts[0].ids, [(1, "resid_post", torch.zeros_like)])
    assert logits.abs().max() == 0


def test_no_parameter_of_the_probe_asks_for_it():
    """Components are fixed, and none of the ablation's conditions edits the stream itself."""
    with pytest.raises(XatlasError, match="unknown parameter of layer_ablation 'components'"):
        LayerAblation(components="resid_post")
    with pytest.raises(XatlasError, match="'resid_post' does not fit"):
        measure(build("llama", **BYTES), ablations="resid_post")
    model = hooked(build("lfm2", **BYTES))
    for _, condition, _ in LayerAblation().cells(model, 0):
        assert {part.site.kind for part in condition} <= {"operator_out", "mlp_out"}
