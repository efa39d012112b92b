"""The noise floor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference as ref
import torch
from models import VOCABULARY, build, token_prompt

from xatlas.model import HookedModel
from xatlas.probing.means import noise_floor

PROMPTS = [token_prompt("a", 5), token_prompt("b", 9)]


def test_float32_noise_is_rounding_alone_and_bfloat16_noise_is_larger():
    full = noise_floor(HookedModel(build("llama"), None), PROMPTS)["kl"]
    half = noise_floor(HookedModel(build("llama").to(torch.bfloat16), None), PROMPTS)["kl"]
    assert 0 <= full < 1e-8
    assert 1e-7 < half < 0.1


def test_the_model_keeps_its_precision():
    model = HookedModel(build("llama").to(torch.bfloat16), None)
    before = model.checksum()
    noise_floor(model, PROMPTS)
    assert model.dtype == torch.bfloat16
    assert model.checksum() == before


def test_the_noise_of_a_logit_difference_has_no_sign():
    model, prompt = HookedModel(build("llama").to(torch.bfloat16), None), token_prompt("c", 4, 2)
    turned = replace(prompt, answer=prompt.foil_answer, foil_answer=prompt.answer)
    one, other = (noise_floor(model, [each])["logit_diff"] for each in (prompt, turned))
    assert one == other > 0


@pytest.mark.parametrize("sizes", [(0.1, 0.5), (0.5, 0.1)])
def test_the_noise_is_the_largest_difference_that_a_batch_makes_to_any_prompt(sizes):
    prompts = [token_prompt("a", 5, 1), token_prompt("b", 9, 1)]
    model = HookedModel(build("llama"), None)
    alone = [ref.logits(model.model, prompt.ids)[prompt.readout] for prompt in prompts]
    added = {}
    for prompt, size in zip(prompts, sizes, strict=True):
        added[len(prompt.ids)] = torch.zeros(VOCABULARY).index_fill(0, torch.tensor(prompt.answer), size)

    def in_a_batch(_, __, output):
        if len(output.logits) > 1:
            output.logits += added[output.logits.shape[1]]

    model.model.register_forward_hook(in_a_batch)
    found = noise_floor(model, prompts)
    expected = [ref.kl(row, row + more) for row, more in zip(alone, added.values(), strict=True)]
    assert found == pytest.approx({"kl": float(max(expected)), "logit_diff": 0.5}, rel=1e-3)
