"""The noise floor."""

from __future__ import annotations

from dataclasses import replace

import torch
from models import build, token_prompt

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
