"""The reading passes: one for all, a second for attention patterns alone, and in buckets that memory has room for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import build, token_prompt

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, ReadingProbe
from xatlas.engine.schedule import Budget
from xatlas.model import HookedModel
from xatlas.probing.reading import captured, head_scores, read_together
from xatlas.testing import byte_tokenizer, tiny_suite


class Reader(ReadingProbe):
    name = "reader"

    def __init__(self, *sites):
        super().__init__()
        self.sites, self.values = sites, {}

    def start(self, model, suite, inputs):
        self.model = model

    def update(self, capture):
        for row, index in enumerate(capture.index):
            self.values[index] = {site: value[row] for site, value in capture.values.items()}

    def finish(self):
        return self.values


def test_patterns_are_read_in_a_pass_of_their_own_and_only_where_asked_for(monkeypatch):
    model = HookedModel(build("lfm2", vocab_size=260), byte_tokenizer())
    loaded, passes, seen = model.model.config._attn_implementation, [], []
    capture, layer = model.capture, model.adapter.module("model.layers.1.self_attn")
    layer.register_forward_pre_hook(lambda *_: seen.append(model.model.config._attn_implementation))

    def watched(ids, sites):
        passes.append({site.kind for site in sites})
        return capture(ids, sites)

    monkeypatch.setattr(model, "capture", watched)
    suite = tiny_suite()
    read_together([Reader("resid_pre"), Reader("mlp_out")], model, suite, [Inputs()] * 2)
    assert set(seen) == {loaded}
    assert all(kinds == {"resid_pre", "mlp_out"} for kinds in passes)
    one_pass = len(passes)
    progress = []
    inputs = Inputs(progress=lambda *each: progress.append(each))
    probes = [Reader("attention_pattern", "heads"), Reader("resid_pre")]
    patterns, streams = read_together(probes, model, suite, [inputs] * 2)
    assert passes[one_pass:] == [{"resid_pre"}] * one_pass + [{"attention_pattern", "heads"}] * one_pass
    assert set(seen[-one_pass:]) == {"eager"}
    assert "eager" not in seen[:-one_pass]
    assert model.model.config._attn_implementation == loaded
    assert progress[-1][1:] == (2 * len(suite), 2 * len(suite))
    assert len(patterns) == len(streams) == len(suite)
    assert {site.kind for site in patterns[0]} == {"attention_pattern", "heads"}
    assert {site.layer for site in patterns[0]} == {1}


def test_patterns_grow_with_the_square_of_a_text_and_fewer_are_read_at_a_time(monkeypatch):
    model = HookedModel(build("llama"), None)
    prompts = [token_prompt(f"{n}-{i}", n, seed=i) for n in (6, 12) for i in range(8)]
    sites, limit = model.sites("attention_pattern"), 4 * 3 * 4 * 6 * 6 * 6
    monkeypatch.setattr(Budget, "for_device", lambda device: Budget(stream_bytes=limit))
    batches = list(captured(model, prompts, sites))
    for batch in batches:
        values = list(batch.values.values())
        assert len(batch.prompts) == 1 or sum(value.nbytes for value in values) <= limit
    assert max(len(batch.prompts) for batch in batches) > 1
    assert sorted(index for batch in batches for index in batch.index) == list(range(16))
    site = Site(2, "attention_pattern")
    for batch in batches:
        for row, prompt in enumerate(batch.prompts):
            alone = model.capture(torch.tensor([prompt.ids]), [site])[site][0]
            torch.testing.assert_close(batch.values[site][row], alone)


@pytest.mark.parametrize("window", [None, 1, 2, 4, 99])
def test_scores_of_a_head_are_means_over_the_queries_that_can_see_what_is_scored(window):
    n, seen = 6, window or 6
    weights = torch.rand(2, n, n, generator=torch.Generator().manual_seed(0)).tril().triu(1 - seen)
    pattern = weights / weights.sum(-1, keepdim=True)
    found = head_scores(pattern, window)
    for head, rows in enumerate(pattern.tolist()):
        queries = range(2, n)
        expected = {
            "entropy": [-sum(p * math.log(p) for p in rows[q] if p) for q in queries],
            "distance": [sum(p * (q - key) for key, p in enumerate(rows[q])) for q in queries],
            "first_weight": [rows[q][0] for q in queries if q < seen],
            "previous_score": [rows[q][q - 1] for q in queries if seen > 1],
        }
        for name, values in expected.items():
            assert float(found[name][head]) == pytest.approx(np.mean(values or [np.nan]), abs=1e-6, nan_ok=True), name
