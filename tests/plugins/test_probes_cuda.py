"""On a CUDA device every probe, and generation, gives what it gives on the CPU: trained weights, every variable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import xatlas
from xatlas.interventions import Zero
from xatlas.manager import probes, suites

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
#: Ranks of cells that are all but equal turn with rounding.
LOOSE = {"rank_correlation": 0.02}
MINIS = ("lfm2-mini", "qwen-mini", "smollm2-mini")


def two_of_each_family():
    seen = Counter()
    kept = []
    for prompt in suites()["quick"].load().prompts:
        seen[prompt.family] += 1
        if seen[prompt.family] <= 2:
            kept.append(prompt)
    return xatlas.Suite("two-each", tuple(kept))


@pytest.mark.parametrize("probe", sorted(probes()))
@pytest.mark.parametrize("name", MINIS)
def test_every_probe_measures_the_same_as_on_the_cpu(name, probe, tmp_path):
    suite = two_of_each_family()
    here, there = (
        xatlas.measure(name, probe, suite=suite, out=tmp_path / device, device=device) for device in ("cpu", "cuda")
    )
    assert set(here.data_vars) == set(there.data_vars)
    for variable, expected in here.data_vars.items():
        if expected.dtype.kind == "f":
            size = float(np.nanmax(np.abs(expected))) if expected.notnull().any() else 0.0
            atol = LOOSE.get(str(variable), 1e-4 + 1e-5 * size)
            np.testing.assert_allclose(there[variable], expected, rtol=1e-3, atol=atol, err_msg=str(variable))


def test_generation_under_interventions_is_that_of_the_cpu():
    texts = []
    for device in ("cpu", "cuda"):
        model = xatlas.load("lfm2-mini", device=device)
        ids = model.tokenizer("copy: red blue green =", return_tensors="pt").input_ids.to(model.device)
        with model.intervene([xatlas.Intervention(xatlas.Site(1, "mlp_out"), Zero())]):
            texts.append(model.model.generate(ids, max_new_tokens=12, do_sample=False).cpu())
    assert torch.equal(*texts)
