"""A run gives a probe its seed, its lock, and what it requires with the parameters that it asks for."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from running import Counting, another, go, plugged, seeds

from xatlas.api import load, measure
from xatlas.contracts.probe import Requirement
from xatlas.files import held
from xatlas.results.store import Store


def draws():
    return [random.random(), np.random.random(), float(torch.rand(1))]


def test_a_probe_that_draws_for_itself_draws_by_the_seed_and_nobody_else_notices(folder, settings):
    seen = []

    def drawing(self, model, suite, inputs):
        seen.append(draws())
        return seeds(self.variables, suite, inputs)

    hooked, after = load(str(folder / "tiny"), device="cpu"), []
    with plugged(xatlas_probes=[another("draws", drawing)]):
        for seed in (3, 4, 3):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            measure(hooked, "draws", suite=settings.suite, seed=seed)
            after.append(draws())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == [draws()] * 3
    first, other, again = seen
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_a_job_is_locked_while_it_is_measured(model, settings, tmp_path):
    """Two runs that want one job measure it once."""
    seen = []

    def look(self, model, suite, inputs):
        seen.extend(held(lock) for lock in tmp_path.glob("*/.looks-*.lock"))
        return seeds(self.variables, suite, inputs)

    with plugged(xatlas_probes=[another("looks", look)]):
        go(model, settings, Store(tmp_path), "looks")
    assert seen == [True]


@dataclasses.dataclass(frozen=True)
class Sized:
    size: int = 1


def test_what_a_probe_requires_has_the_parameters_that_it_asks_for(folder, model, settings, tmp_path):
    """In memory as in an atlas."""

    def sized(self, model, suite, inputs):
        return seeds(self.variables, suite, dataclasses.replace(inputs, seed=self.parameters.size))

    def upper(self, model, suite, inputs):
        return seeds(self.variables, suite, dataclasses.replace(inputs, seed=float(inputs.results["sized"].value[0])))

    needs = property(lambda self: (Requirement("sized", {"size": 2}),))
    probes = [another("sized", sized, Parameters=Sized), another("upper", upper, requires=needs)]
    with plugged(xatlas_probes=[Counting, *probes]):
        in_memory = measure(load(str(folder / "tiny"), device="cpu"), "upper", suite=settings.suite)
        job = go(model, settings, Store(tmp_path), "upper").measured[-1].job
    assert (in_memory.value == 2).all()
    assert (Store(tmp_path).read(job).value == 2).all()
