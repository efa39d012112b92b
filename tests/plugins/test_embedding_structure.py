"""Embeddings: cosines over all pairs, the effective rank of known matrices, and what kind of token each row is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import build

import xatlas
from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.embedding_structure import EmbeddingStructure, categories, effective_rank
from xatlas.schema import validate
from xatlas.testing import byte_tokenizer, tiny_suite


def measured(weight=None):
    hf = build("llama", vocab_size=264)
    if weight is not None:
        hf.model.embed_tokens.weight.copy_(weight)
    model = HookedModel(hf, byte_tokenizer())
    dataset = EmbeddingStructure().measure(model, tiny_suite(), Inputs())
    validate(dataset, EmbeddingStructure, model)
    return dataset, hf.model.embed_tokens.weight.double().numpy()


def test_cosines_are_means_over_all_pairs_of_tokens():
    weight = torch.randn(264, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    weight[100] = 0  # has no direction
    dataset, rows = measured(weight)
    norm = np.sqrt((rows**2).sum(1))
    np.testing.assert_allclose(dataset["norm"], norm, rtol=1e-6)
    kinds = dataset["token_category"].values
    with np.errstate(invalid="ignore"):
        cosine = (rows @ rows.T) / np.outer(norm, norm)
    cosine[np.eye(264, dtype=bool)] = np.nan
    for kind in ("piece", "punctuation", "bytes", "unused"):
        own = kinds == kind
        assert own.sum() > 1
        one = dataset.sel(category=kind)
        assert float(one["cosine_within"]) == pytest.approx(np.nanmean(cosine[np.ix_(own, own)]))
        assert float(one["cosine_between"]) == pytest.approx(np.nanmean(cosine[np.ix_(own, ~own)]))


def test_the_effective_rank_counts_directions_that_are_used_alike():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 8)))[0]
    assert effective_rank(basis.T @ basis) == pytest.approx(8)
    thin = np.outer(rng.normal(size=50), rng.normal(size=8))
    assert effective_rank(thin.T @ thin) == pytest.approx(1, abs=1e-3)
    dataset, rows = measured()
    share = np.linalg.svd(rows, compute_uv=False)
    share /= share.sum()
    assert float(dataset["effective_rank"]) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_categories_of_bytes():
    tokenizer = byte_tokenizer()
    found = categories(tokenizer, 264)
    kind = {text: found[tokenizer(text)["input_ids"][0]] for text in ("a", "7", "?", " ", "\n", "é")}
    assert kind == {"a": "piece", "7": "digit", "?": "punctuation", " ": "space", "\n": "space", "é": "bytes"}
    assert found[tokenizer.bos_token_id] == "special"
    assert found[262:] == ["unused"] * 2


def test_a_space_before_letters_begins_a_word():
    model = xatlas.load("lfm2-mini", device="cpu")
    found = categories(model.tokenizer, model.adapter.vocabulary)
    ids = model.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert found[ids[0]] == "word"
