"""Metrics on logits made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from models import token_prompt

from xatlas.metrics import KL, DeltaNLL, LogitDifference, TokenLogits, Top1Changed, kl_divergence

CLEAN = torch.tensor([[0.0, math.log(3.0), -math.inf], [1.0, 1.0, 1.0]]).clamp(min=-80)
CHANGED = torch.tensor([[[0.0, 0.0, -80.0], [1.0, 1.0, 1.0]], [[2.0, 2.0 + math.log(3.0), -78.0], [0.0, 0.0, 5.0]]])


@pytest.fixture
def tokens():
    answer, foil = torch.tensor([1, -1]), torch.tensor([0, -1])
    return TokenLogits(CLEAN, CHANGED, torch.tensor([1, -1]), answer, foil)


def test_kl_is_from_clean_to_intervened(tokens):
    """The other direction would give another number: p = (1/4, 3/4), q = (1/2, 1/2)."""
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    found = KL().per_token(tokens)
    assert found[0, 0] == pytest.approx(expected, abs=1e-6)
    assert found[1, 0] == pytest.approx(0, abs=1e-6)  # a constant added to all logits changes nothing
    assert found[0, 1] == 0
    assert found[1, 1] == pytest.approx(math.log((2 + math.exp(5)) / 3) - 5 / 3, abs=1e-5)


def test_rounding_makes_no_kl_negative():
    clean = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0)) * 5
    noise = torch.randn(200, 1000, generator=torch.Generator().manual_seed(1)) * 1e-5
    assert kl_divergence(clean, clean + noise).min() == 0


def test_delta_nll_is_positive_where_the_target_got_less_likely(tokens):
    assert DeltaNLL().per_token(tokens)[0, 0] == pytest.approx(math.log(0.75) - math.log(0.5), abs=1e-6)


def test_top1_tells_whether_another_token_leads(tokens):
    assert Top1Changed().per_token(tokens).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_logit_difference_is_target_minus_foil(tokens):
    assert LogitDifference(change=False).per_token(tokens)[:, 0].tolist() == pytest.approx([0, math.log(3.0)])
    assert LogitDifference().per_token(tokens)[:, 0].tolist() == pytest.approx([-math.log(3.0), 0], abs=1e-6)


def test_where_each_metric_reads():
    plain, long = token_prompt("a", 5), token_prompt("b", 4, 3)
    assert list(KL().positions(long)) == [5]
    assert list(KL("all").positions(long)) == [1, 2, 3]  # the text but its first; the target never
    assert list(DeltaNLL().positions(long)) == [3, 4, 5]
    assert [long.target_at(p) for p in (3, 4, 5)] == list(long.target_ids)
    assert [long.target_at(p) for p in (2, 6)] == [None, None]
    assert list(DeltaNLL().positions(plain)) == []
    assert list(LogitDifference().positions(plain)) == []
    assert list(Top1Changed().positions(long)) == [5]


def test_means_over_tokens_and_sums_over_bytes():
    long = token_prompt("b", 4, 3)
    assert KL("all").weight(long) == pytest.approx(1 / 3)
    assert DeltaNLL().weight(long) == pytest.approx(1 / 3)  # three tokens, of a target of three bytes
    from dataclasses import replace

    umlaut = replace(long, prompt=replace(long.prompt, target="über"))
    assert DeltaNLL().weight(umlaut) == pytest.approx(1 / 5)
