"""Estimates count about what probes hand to the engine."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from xatlas import manager
from xatlas.api import load
from xatlas.config import find_suite
from xatlas.contracts.probe import Inputs
from xatlas.suites import Suite

DOORS = ("xatlas.sweep.sweep", "xatlas.engine.sweep.sweep")


@pytest.fixture(scope="module")
def model():
    return load("lfm2-mini", device="cpu")


@pytest.mark.parametrize("name", sorted(set(manager.probes()) - {"residual_norms"}))
def test_the_estimate_is_near_what_is_run(name, model):
    """Within a factor of two and a half: half of the layers have no convolution, or no attention."""
    suite = Suite("few", find_suite("quick").prompts[::5])
    counted = [0]

    def count(model, prompts, conditions, metrics, **_):
        counted[0] += len(prompts) * len(conditions)
        return np.zeros((len(metrics), len(prompts), len(conditions)))

    probe, reference = manager.probes()[name](), find_suite("train")
    needed = {each.probe: manager.probes()[each.probe]() for each in probe.requires}
    results = {n: each.measure(model, suite, Inputs(reference=reference)) for n, each in needed.items()}
    patches = [mock.patch(door, count) for door in DOORS]
    for patch in patches:
        patch.start()
    try:
        measured = probe.measure(model, suite, Inputs(reference=reference, results=results))
    finally:
        for patch in patches:
            patch.stop()
    prompts = measured.sizes["prompt"]
    size = {"prompt": prompts, "layer": model.n_layers, "head": 4, "kv_group": 2}
    guess = probe.n_conditions(size, 1) * prompts
    assert counted[0] / 2.5 <= guess <= counted[0] * 2.5
