"""Logits that overflow float16 in a sweep or a pair: the reason says what to do."""

from __future__ import annotations

import pytest
import torch
from models import build

from xatlas import AblationProbe, Variable
from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.interventions import Add, Intervention
from xatlas.model import HookedModel
from xatlas.schema import notes
from xatlas.suites import Suite
from xatlas.testing import byte_tokenizer, tiny_suite


class Overflowing(AblationProbe):
    """Adds nothing to speak of, and more than any number format holds."""

    name = "overflowing"
    variables = {"kl": Variable(("prompt", "size"), "nats", "KL(clean || changed)")}  # noqa: RUF012

    def labels(self, model):
        return super().labels(model) | {"size": ["small", "endless"]}

    def cells(self, model, draw):
        for label, size in (("small", 1.0), ("endless", torch.inf)):
            added = Add(torch.full((model.d_model,), size))
            yield {"size": label}, (Intervention(Site(1, "resid_post"), added),), None


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float16, True), (torch.bfloat16, False)])
def test_the_reason_of_a_dropped_prompt_says_which_dtype_would_do(dtype, advice):
    model = HookedModel(build("llama", vocab_size=260).to(dtype), byte_tokenizer())
    one = Suite("one", tiny_suite().prompts[:1])
    told = "logits were not finite in 1 of 2 conditions"
    told += ": float16 overflows, use float32 or bfloat16" if advice else ""
    assert notes(Overflowing().measure(model, one, Inputs()), "dropped") == {one.prompts[0].id: told}
