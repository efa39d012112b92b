"""Steering: the reference loop's numbers, the planted direction is found, shuffled labels find nothing."""

from __future__ import annotations

import string
from dataclasses import replace

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES, build, token_prompt

from xatlas.api import load
from xatlas.config import find_suite
from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.model import HookedModel
from xatlas.plugins.steering import Steering
from xatlas.probing.directions import (
    contrasts,
    matched_direction,
    median_norms,
    random_direction,
    readout_values,
    shuffle,
)
from xatlas.schema import notes, validate
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::4])
FEW = {"strengths": "-0.5,2", "random": 2, "matched": 1, "families": "echo"}
D = 32


def measure(hf, suite=SUITE, reference=None, seed=0, **parameters):
    probe = Steering(**parameters)
    model = HookedModel(hf, byte_tokenizer())
    dataset = probe.measure(model, suite, Inputs(reference=reference or tiny_reference(), seed=seed))
    validate(dataset, probe)
    return dataset, model


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("llama-odd-heads", "qwen2-untied")])
def test_the_numbers_of_the_reference_loop(name):
    """On every architecture, conv states included; nothing but the readout position is recomputed."""
    kind, overrides = SHAPES[name]
    hf = build(kind, **overrides, vocab_size=260)
    dataset, model = measure(hf, **FEW | {"random": 1, "matched": 0, "shuffled": "no"})
    for row, prompt in enumerate(model.read(SUITE).prompts):
        clean = ref.logits(hf, prompt.ids)[prompt.readout]
        for cell in np.ndindex(dataset["kl"].shape[1:]):
            layer, direction, strength, scale = cell
            if strength != (row + layer) % 2:  # half of them: the reference loop is slow
                continue
            vector = torch.from_numpy(dataset["direction_vector"].values[direction, layer])
            added = vector * float(dataset["length"].values[layer, strength, scale])

            def add(value, added=added, at=prompt.readout):
                value = value.clone()
                value[:, at] += added
                return value

            steered = ref.logits(hf, prompt.ids, [(layer, "resid_post", add)])[prompt.readout]
            assert ref.agree(dataset["kl"].values[(row, *cell)], ref.kl(clean, steered))
            moved = steered - clean
            wanted = float(moved[prompt.answer] - moved[prompt.foil_answer])
            assert ref.agree(dataset["delta_logit_diff"].values[(row, *cell)], wanted)
    assert (dataset["kl"].sel(strength=2) > 1e-3).mean() > 0.9


def test_one_position_is_recomputed(monkeypatch):
    positions = set()
    run_layer = HookedModel.run_layer

    def spy(self, layer, hidden, *rest):
        positions.add(hidden.shape[1])
        return run_layer(self, layer, hidden, *rest)

    model = HookedModel(build("lfm2", vocab_size=260), byte_tokenizer())
    monkeypatch.setattr(HookedModel, "run_layer", spy)
    Steering(**FEW).measure(model, SUITE, Inputs(reference=tiny_reference()))
    assert positions == {1}


def planted(shift):
    """Return a model whose logits follow one coordinate alone, which the token ``!`` has more of.

    Layers add nothing, so every readout is its token's embedding: noise, and ``shift`` in that coordinate.
    """
    hf = build("llama", vocab_size=260, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        hf.model.norm.weight.fill_(1)
        hf.model.embed_tokens.weight.copy_(torch.randn(260, D, generator=generator))
        for letter in string.ascii_lowercase[:20]:
            hf.model.embed_tokens.weight[byte_tokenizer()(letter).input_ids[0], 0] += shift
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[byte_tokenizer()("1").input_ids[0], 0] = 4
    return hf


def letters(name):
    """Return three families that end in letters; only those of ``marked`` have more of the coordinate."""
    families = {
        "marked": string.ascii_lowercase[:20],
        "capitals": string.ascii_uppercase[:20],
        "others": "56789+-*/=<>",
    }
    return Suite(
        name,
        tuple(
            Prompt(f"{name}-{family}-{i}", family, f"x {letter}", target="1", foil="2")
            for family, ends in families.items()
            for i, letter in enumerate(ends)
        ),
    )


def test_the_direction_that_alone_sets_a_logit_is_found():
    dataset, _ = measure(planted(4.0), letters("suite"), letters("reference"), strengths="-1,1")
    kl = dataset["kl"].sel(scale="relative", strength=1).mean("prompt")
    random = kl.isel(direction=dataset["direction_kind"].values == "random").max("direction")
    assert (kl.sel(direction="marked") > 2 * random).all()
    assert kl.isel(layer=0).idxmax() == "marked"
    change = dataset["delta_logit_diff"].sel(direction="marked", scale="relative")
    assert (change.sel(strength=1).mean("prompt") > 1).all()
    assert (change.sel(strength=-1).mean("prompt") < -1).all()
    assert (np.abs(dataset["direction_vector"].sel(direction="marked").values[:, 0]) > 0.8).all()


def test_shuffled_labels_are_as_many_of_each_on_other_prompts():
    labels = list("aaaabbbbcc")
    orders = [shuffle(labels, seed) for seed in range(20)]
    assert all(sorted(order) == labels for order in orders)
    assert len({*map(tuple, orders)}) > 15


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_fall_into_the_random_bands(seed):
    dataset, _ = measure(planted(2.0), letters("suite"), letters("reference"), seed, strengths="1")
    kl = dataset["kl"].sel(scale="relative", strength=1).mean("prompt")
    kinds = dataset["direction_kind"].values
    for kind in ("random", "matched"):
        band = kl.isel(direction=kinds == kind)
        assert (kl.isel(direction=kinds == "shuffled") <= band.max("direction")).all(), kind
        assert (kl.sel(direction="marked") > band.max("direction")).all(), kind


def test_where_the_stream_is_wide_shuffled_labels_fall_among_matched_directions_only():
    """Most of the stream's spread is in the one coordinate that sets logits: uniform directions hardly meet it."""
    hf = planted(0.0)
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, 0] *= 8
    dataset, _ = measure(hf, letters("suite"), letters("reference"), strengths="1", matched=40)
    kl = dataset["kl"].sel(scale="relative", strength=1).mean("prompt").isel(layer=0)
    kinds = dataset["direction_kind"].values
    uniform, matched, shuffled = (kl.values[kinds == kind] for kind in ("random", "matched", "shuffled"))
    assert (shuffled > np.median(uniform)).all()
    assert matched.min() <= shuffled.min()
    assert shuffled.max() <= matched.max()


def test_on_trained_weights_shuffled_labels_fall_among_matched_directions():
    """Uniform directions do less in a trained stream; a draw of twenty holds nine tenths of its like."""
    model = load("smollm2-mini", device="cpu")
    suite = Suite("few", find_suite("quick").prompts[::3])
    dataset = Steering(strengths="0.25").measure(model, suite, Inputs(reference=find_suite("train")))
    kl = dataset["kl"].sel(scale="relative", strength=0.25).mean("prompt").values  # (layer, direction)
    kinds = dataset["direction_kind"].values
    uniform, matched, shuffled = (kl[:, kinds == kind] for kind in ("random", "matched", "shuffled"))
    lowest, highest = matched.min(1, keepdims=True), matched.max(1, keepdims=True)
    assert ((shuffled >= lowest) & (shuffled <= highest)).mean() > 0.75
    ratio = np.median(np.median(shuffled, 1) / np.median(matched, 1))  # in the median layer
    assert 0.6 < ratio < 1.4
    assert np.median(np.median(shuffled, 1) / np.median(uniform, 1)) > 1.4


def test_the_readout_is_read_wherever_it_stands(shape):
    """Target and foil may part before the last token that is run."""
    model, sites = shape("llama"), [Site(layer, "resid_post") for layer in range(3)]
    prompts = [replace(token_prompt("a", 9), readout=4), token_prompt("b", 5), replace(token_prompt("c", 9), readout=6)]
    values = readout_values(model, prompts)
    for row, prompt in enumerate(prompts):
        found = model.capture(model.tokens([prompt]), sites)
        expected = torch.stack([found[site][0, prompt.readout] for site in sites])
        torch.testing.assert_close(values[:, row], expected)


def test_strength_is_a_length_or_a_share_of_the_norm():
    """One random vector at one length measures 1 / norm of the stream; at one share of the norm it doesn't."""
    hf = planted(2.0)
    with torch.no_grad():  # the second layer doubles nothing but the stream's length
        hf.model.layers[1].mlp.down_proj.weight.normal_(0, 3)
    dataset, model = measure(hf, strengths="-0.5,1", random=1, matched=0, families="echo", shuffled="no")
    norms = np.median(readout_values(model, model.read(SUITE).prompts).norm(dim=-1), axis=-1)
    length = dataset["length"]
    np.testing.assert_allclose(dataset["median_norm"], norms, rtol=1e-6)
    assert median_norms(torch.tensor([[1.0, 2.0, 4.0, 8.0]])[..., None]).tolist() == [3]
    np.testing.assert_allclose(length.sel(scale="relative", strength=1), dataset["median_norm"], rtol=1e-6)
    assert np.ptp(length.sel(scale="absolute", strength=1).values) == 0
    np.testing.assert_allclose(length.sel(strength=-0.5), -0.5 * length.sel(strength=1), rtol=1e-6)
    fixed, _ = measure(hf, unit=3, strengths="2", random=1, matched=0, families="echo", shuffled="no")
    assert (fixed["length"].sel(scale="absolute") == 6).all()


def test_directions_can_be_made_again():
    dataset, model = measure(build("qwen2", vocab_size=260), seed=7, **FEW)
    labels = dataset["direction"].values.tolist()
    assert labels == ["random:7000", "random:7001", "matched:7000", "echo", "shuffled:echo"]
    vectors = torch.from_numpy(dataset["direction_vector"].values)
    torch.testing.assert_close(vectors[1], random_direction(D, 7001).expand(3, -1))
    reference = model.read(tiny_reference()).prompts
    families = [prompt.prompt.family for prompt in reference]
    values = readout_values(model, reference)
    torch.testing.assert_close(vectors[2], matched_direction(values, 7000))
    torch.testing.assert_close(vectors[3], contrasts(values, families)["echo"])
    torch.testing.assert_close(vectors[4], contrasts(values, shuffle(families, 7))["echo"])
    assert shuffle(families, 7) != shuffle(families, 8)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5, 3))


def test_matched_directions_have_the_covariance_of_the_stream():
    """Over many seeds the directions' second moments are those of the values, up to their common length."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([10.0, 3.0, 1.0, 0.0])
    values = 50 + torch.randn(1, 400, 4, generator=generator) * spread  # the mean itself is no direction of spread
    drawn = torch.stack([matched_direction(values, seed)[0] for seed in range(2000)])
    ratios = drawn[:, 1] / drawn[:, 0]  # the length cancels: a Cauchy variable, whose scale is that of the spreads
    assert ratios.abs().median().item() == pytest.approx(float(values[0, :, 1].std() / values[0, :, 0].std()), rel=0.1)
    assert drawn[:, 3].abs().max() < 1e-5
    assert matched_direction(torch.ones(2, 5, 4), 0).isnan().all()


def test_family_against_rest_is_a_difference_of_means():
    values = torch.zeros(1, 4, 3)
    values[0, :, 0] = torch.tensor([3.0, 5.0, 1.0, 1.0])
    values[0, :, 1] = torch.tensor([0.0, 0.0, 3.0, 5.0])
    found = contrasts(values, ["a", "a", "b", "c"])
    expected = torch.tensor([[3.0, -4.0, 0.0]]) / 5
    torch.testing.assert_close(found["a"], expected)
    assert contrasts(values, ["a"] * 4) == {}
    assert contrasts(torch.ones(1, 2, 3), ["a", "b"])["a"].isnan().all()


def test_prompts_without_foil_have_no_logit_difference():
    suite = Suite("open", (Prompt("a", "echo", "one two"), SUITE.prompts[0]))
    dataset, _ = measure(build("llama", vocab_size=260), suite, **FEW)
    assert dataset["delta_logit_diff"].isel(prompt=0).isnull().all()
    assert dataset["delta_logit_diff"].isel(prompt=1).notnull().all()
    assert dataset["kl"].notnull().all()
    assert notes(dataset, "absent")["delta_logit_diff"] == "1 prompts have no foil"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"strengths": "0.5,0"}, "other than 0"),
        ({"strengths": ""}, "nothing does not fit"),
        ({"strengths": "1,1"}, "twice"),
        ({"random": -1}, "from 0"),
        ({"matched": -1}, "from 0"),
        ({"unit": 0}, "above 0"),
    ],
)
def test_what_can_not_be_steered_is_refused_before_a_model_is_loaded(parameters, told):
    with pytest.raises(XatlasError, match=told):
        Steering(**parameters)


def test_an_unknown_family_names_those_there_are():
    with pytest.raises(XatlasError, match=r"unknown family 'ecko'; did you mean 'echo'\? Valid: echo, order, sums"):
        measure(build("llama", vocab_size=260), families="ecko")


def test_a_direction_that_does_not_exist_is_no_prompts_fault():
    lone = Suite("lone", (Prompt("a", "echo", "same", target=" b"), Prompt("c", "order", "same", target=" d")))
    dataset, _ = measure(build("llama", vocab_size=260), reference=lone, strengths="1", random=1, matched=1)
    assert dataset["kl"].sel(direction="echo").isnull().all()
    assert notes(dataset, "dropped") == {}
    assert "nothing to tell apart" in notes(dataset, "absent")["direction=echo"]


def test_family_directions_need_a_reference():
    model = HookedModel(build("llama", vocab_size=260), byte_tokenizer())
    with pytest.raises(XatlasError, match="--reference"):
        Steering().measure(model, SUITE, Inputs())
