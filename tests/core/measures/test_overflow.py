"""Logits that overflow float16 in a sweep or a pair: the reason says what to do."""

from __future__ import annotations

import pytest
import torch
from models import build, token_prompt

from xatlas.interventions import Add, Intervention
from xatlas.measures.ablation import Grid
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.probe import Inputs
from xatlas.prompts import TokenSuite
from xatlas.sites import Site


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float16, True), (torch.bfloat16, False)])
def test_the_reason_of_a_dropped_prompt_says_which_dtype_would_do(dtype, advice):
    model = HookedModel(build("llama").to(dtype), None)
    grid = Grid({"kl": (2,)})
    for cell, size in enumerate((1.0, torch.inf)):
        grid.add("kl", (cell,), Intervention(Site(1, "resid_post"), Add(torch.full((32,), size))))
    measured = grid.measure(model, TokenSuite((token_prompt("a", 5),)), [KL()], Inputs(), "grid")
    told = "logits were not finite in 1 of 2 conditions"
    assert measured.dropped == {"a": told + (": float16 overflows, use float32 or bfloat16" if advice else "")}
