"""On a CUDA device the engine gives the numbers that it gives on the CPU, where they are proved."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES
from sweeping import Part, all_cases, editable, measured, random_means

from xatlas.engine.schedule import Budget
from xatlas.metrics import KL
from xatlas.model import HookedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture
def on_cuda(shape):
    """Return ``on_cuda(name, dtype)``: a shape with the same weights, proved anew on the device."""

    def move(name, dtype=torch.float32):
        model = copy.deepcopy(shape(name).model).to("cuda", dtype)
        return HookedModel(model, None, slug=name)

    return move


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_gives_the_numbers_of_the_cpu(shape, on_cuda, name):
    model = shape(name)
    means = random_means(model)
    cases = all_cases(model)
    assert ref.agree(measured(on_cuda(name), cases, means=means), measured(model, cases, means=means))


@pytest.mark.parametrize("name", SHAPES)
def test_one_position_runs_give_the_numbers_of_the_cpu(shape, on_cuda, name):
    model = shape(name)
    means = random_means(model)
    hows = ("zero", "mean", "run")
    cases = [[Part(site.layer, site.kind, how, None, "last")] for site in editable(model) for how in hows]
    there, here = (measured(each, cases, [KL()], means=means) for each in (on_cuda(name), model))
    assert ref.agree(there, here)


@pytest.mark.parametrize("name", ["lfm2", "llama", "qwen2"])
def test_bfloat16_gives_about_the_same(shape, on_cuda, name):
    model = shape(name)
    means = random_means(model)
    cases = [[Part(layer, kind, "mean")] for layer in range(3) for kind in ("operator_out", "mlp_out")]
    there, here = (measured(each, cases, [KL()], means=means)[0] for each in (on_cuda(name, torch.bfloat16), model))
    assert np.corrcoef(there.flatten(), here.flatten())[0, 1] > 0.98
    assert np.abs(there - here).max() < 0.1 * here.max()


def test_memory_that_runs_out_is_halved_and_nothing_changes(shape, on_cuda, monkeypatch):
    """The device's real out-of-memory error, by a limit on what this process may take."""
    there, means = on_cuda("llama"), random_means(shape("llama"))
    cases = [[Part(layer, kind, "mean")] for layer in range(3) for kind in ("operator_out", "mlp_out")] * 2000
    roomy = Budget(stream_bytes=1 << 33, logit_bytes=1 << 33, tile_tokens=1 << 22)
    halvings, halved = [], Budget.halved
    monkeypatch.setattr(Budget, "halved", lambda self: halvings.append(self) or halved(self))
    torch.cuda.empty_cache()
    before, total = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.reset_peak_memory_stats()
    plain = measured(there, cases, [KL()], means=means, budget=roomy)
    assert not halvings
    enough = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((before + enough / 2) / total)
    try:
        found = measured(there, cases, [KL()], means=means, budget=roomy)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halvings
    assert ref.agree(found, plain)
