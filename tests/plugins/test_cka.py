"""CKA at word ends: what is sampled, what is trimmed, and that models of different tokenizers line up."""

from __future__ import annotations

import numpy as np
import pytest
from models import build

import xatlas
from xatlas import manager
from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.model import HookedModel
from xatlas.plugins.cka import CKA, evenly, word_ends
from xatlas.schema import notes, validate
from xatlas.similarity import Grams, mirrored
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_reference

SUITE = tiny_reference()


@pytest.fixture(scope="module")
def model():
    return HookedModel(build("llama", vocab_size=260, hidden_size=128, head_dim=32), byte_tokenizer())


def measured(model, probe=None, **inputs):
    probe = probe or CKA(permutations=20)
    dataset = probe.measure(model, SUITE, Inputs(**inputs))
    validate(dataset, CKA, model, SUITE)
    return dataset


def planted(model, features):
    """Return what the probe makes of ``features (layer, sample, feature)`` in place of the streams."""
    probe = CKA(permutations=40)
    probe.start(model, SUITE, Inputs())
    n = len(probe.labels)
    assert len(features) == len(probe.layers)
    probe.features = np.asarray(features[:, :n], dtype=np.float32)
    return probe.finish()


def test_samples_are_the_streams_at_the_last_tokens_of_words(model):
    dataset = measured(model)
    tokens = {each.prompt.id: each for each in model.read(SUITE).prompts}
    rows = []
    for label in dataset["sample"].values:
        name, _, end = str(label).rpartition(":")
        prompt = tokens[name]
        text = prompt.prompt.text
        assert text[int(end) - 1].isalnum()
        assert not text[int(end) :][:1].isalnum()
        value = model.capture(model.tokens([prompt]), [Site(1, "resid_post")])[Site(1, "resid_post")]
        rows.append(value[0, len(text[: int(end)].encode())].numpy())  # a token a byte, and one in front
    centred = np.array(rows, dtype=float)
    centred -= centred.mean(0)
    found = mirrored(dataset["gram"].sel(variant="all", layer=1).values)
    np.testing.assert_allclose(found, centred @ centred.T, rtol=2e-4, atol=1e-3)
    assert dataset["sample_prompt"].values.tolist() == [
        str(label).rpartition(":")[0] for label in dataset["sample"].values
    ]


def test_what_is_stored_gives_the_cka_that_is_stored(model):
    dataset = measured(model)
    grams = Grams(mirrored(dataset["gram"].sel(variant="all").values), dataset["sample_prompt"].values)
    np.testing.assert_allclose(grams.cka(grams), dataset["cka"].sel(variant="all"), atol=1e-5)


def test_samples_are_drawn_by_the_seed_from_the_text_alone():
    """Also those of prompts in another order, and no text is drawn twice: a causal model gives it one stream."""
    texts = [[prompt.text[:end] for prompt, end in word_ends(suite, 100, 0)] for suite in (SUITE, reordered())]
    assert sorted(texts[0]) == sorted(texts[1])
    assert len(set(texts[0])) == 100
    assert set(texts[0]) != {prompt.text[:end] for prompt, end in word_ends(SUITE, 100, 1)}


def reordered():
    return Suite("reordered", SUITE.prompts[::-1])


def test_models_of_different_tokenizers_read_the_same_samples(model):
    """One has a token a byte, one whole words: what either has read at a sample ends with the word."""
    suite = manager.suites()["quick"].load()
    held, lengths = [], []
    for each in (model, xatlas.load("lfm2-mini", device="cpu")):
        probe = CKA(samples=300)
        probe.start(each, suite, Inputs())
        held.append(probe.labels)
        lengths.append(sum(len(tokens.ids) for tokens in probe.tokens.prompts))
        for label, row, at in zip(probe.labels, probe.rows, probe.at, strict=True):
            tokens = probe.tokens.prompts[row]
            upto = tokens.prompt.text[: int(label.rpartition(":")[2])]
            assert tokens.ids[0] == each.reader.first_token
            before, with_it = (each.tokenizer.decode(tokens.ids[1:end]).strip() for end in (at, at + 1))
            assert len(before) < len(upto.strip())
            assert with_it.startswith(upto.strip())
    assert lengths[0] > 2 * lengths[1]
    assert held[0] == held[1]


def test_independent_noise_lies_in_the_null(model):
    rng = np.random.default_rng(0)
    dataset = planted(model, rng.normal(size=(3, 300, 128)))
    apart = ~np.eye(3, dtype=bool)
    assert (np.abs(dataset["cka"].values[:, apart]) < 0.05).all()
    inside = dataset["cka"].values[:, apart] <= dataset["cka_null_q95"].values[:, apart]
    assert inside.mean() > 0.7
    np.testing.assert_allclose(dataset["cka"].values[:, ~apart], 1)


def test_four_shared_spikes_are_similarity_only_untrimmed(model):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 300, 128))
    features[:, [10, 60, 110, 160], 5] += 2000
    dataset = planted(model, features)
    whole, trimmed = dataset["cka"].sel(layer=0, layer_other=1).values
    assert whole > 0.99
    assert abs(trimmed) < 0.03
    assert dataset["cka_null_q95"].sel(variant="trimmed", layer=0, layer_other=1) < 0.05


def test_position_0_is_trimmed_where_words_end_there():
    """Without a beginning token of its own a model reads the first word's end at position 0."""
    model = HookedModel(build("llama", vocab_size=260, hidden_size=128, head_dim=32), byte_tokenizer(), bos="native")
    dataset = measured(model)
    bare = dataset["gram"].sel(variant="trimmed", layer=0).values.diagonal()
    at_0 = [str(label).endswith(":1") for label in dataset["sample"].values]
    assert any(at_0)
    assert np.isnan(bare).tolist() == at_0
    assert not np.isnan(dataset["gram"].sel(variant="all", layer=0).values.diagonal()).any()


def test_a_stream_too_narrow_to_tell_what_is_massive_is_absent_with_a_reason():
    narrow = HookedModel(build("llama", vocab_size=260, hidden_size=16), byte_tokenizer())
    dataset = measured(narrow)
    assert np.isnan(dataset["cka"].sel(variant="trimmed")).all()
    assert not np.isnan(dataset["cka"].sel(variant="all")).any()
    assert any("trimmed" in key for key in notes(dataset, "absent"))


def test_too_few_word_ends_are_refused_in_one_line(model):
    few = Suite("few", tuple(Prompt(f"p{i}", "f", f"word {i} ends here") for i in range(20)))
    with pytest.raises(XatlasError, match=r"cka needs 200 word ends, and suite 'few' has \d+") as caught:
        CKA().measure(model, few, Inputs())
    assert "\n" not in str(caught.value)
    with pytest.raises(XatlasError, match=r"cka.samples = 20"):
        CKA(samples=20)


def test_layers_are_evenly_spaced_with_both_ends():
    assert evenly(30, 16) == [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 29]
    assert evenly(4, 16) == [0, 1, 2, 3]
    assert evenly(1, 16) == [0]
