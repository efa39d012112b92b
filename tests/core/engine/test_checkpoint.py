"""A finished bucket is taken from a checkpoint only by the sweep that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference as ref
import torch
from models import build, donor_for, token_prompt

from xatlas.contracts.adapter import Site
from xatlas.engine.schedule import canonical_digest
from xatlas.interventions import Add, Change, FromRun, InSubspace, Intervention, Mean, RandomDirection, Zero
from xatlas.metrics import KL, Top1Changed
from xatlas.model import HookedModel
from xatlas.sweep import sweep

SITE = Site(1, "mlp_out")
PROMPTS = [token_prompt("a", 5), token_prompt("b", 6)]
MEANS = {SITE: torch.linspace(-1, 1, 64).reshape(2, 32), Site(0, "mlp_out"): torch.ones(2, 32)}
VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


class Kept:
    def __init__(self):
        self.parts, self.loaded = {}, 0

    def load(self, key):
        self.loaded += key in self.parts
        return self.parts.get(key)

    def save(self, key, arrays):
        self.parts[key] = arrays


class Scaled(Change):
    """A plain object: no dataclass, told by its attributes."""

    def __init__(self, factors):
        self.factors = factors

    def __call__(self, value, target):
        return value * self.factors["all"]


class Slotted(Change):
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, value, target):
        return value * self.factor


@dataclass(frozen=True, eq=False)
class Reads(Change):
    """Looks at another intervention's site."""

    of: tuple

    def __call__(self, value, target):
        return value - target.context.clean(self.of[0].site)

    def reads(self):
        return self.of


def at(change, site=SITE, **more):
    return [(Intervention(site, change, **more),)]


#: Name → what two sweeps differ in; each is the base with something replaced.
BASE = {
    "conditions": at(Zero()),
    "metrics": [KL()],
    "prompts": PROMPTS,
    "runs": {"r": [donor_for(p) for p in PROMPTS]},
    "seed": 0,
}
own = at(Zero())[0]
PAIRS = {
    "site": [{"conditions": at(Zero(), Site(layer, kind))} for layer, kind in [(1, "mlp_out"), (2, "mlp_out")]],
    "kind": [{"conditions": at(Zero(), Site(1, kind))} for kind in ("mlp_out", "operator_out")],
    "change": [{"conditions": at(change)} for change in (Zero(), Mean())],
    "vector": [{"conditions": at(Add(vector))} for vector in VECTORS],
    "dtype of a vector": [{"conditions": at(Add(v))} for v in (VECTORS[0], VECTORS[0].bfloat16())],
    "heads": [{"conditions": at(Zero(), Site(1, "heads"), heads=heads)} for heads in ((0,), (1,), None)],
    "positions": [{"conditions": at(Zero(), positions=where)} for where in ("all", "first", "last")],
    "run": [{"runs": {"r": [donor_for(p, seed) for p in PROMPTS]}, "conditions": at(FromRun("r"))} for seed in (1, 2)],
    "draw": [{"conditions": at(RandomDirection(own, draw))} for draw in (0, 1)],
    "nested": [{"conditions": at(Reads(at(Zero(), Site(1, kind))[0]))} for kind in ("resid_pre", "operator_out")],
    "subspace": [{"conditions": at(InSubspace(Zero(), 4, label))} for label in ("one", "two")],
    "width": [{"conditions": at(InSubspace(Zero(), width, "one"))} for width in (4, 8)],
    "seed": [{"conditions": at(RandomDirection(own)), "seed": seed} for seed in (0, 1)],
    "mean": [{"conditions": at(Mean()), "means": {**MEANS, SITE: MEANS[SITE] * sign}} for sign in (1, -1)],
    "metric": [{"metrics": [metric]} for metric in (KL(), KL("all"), Top1Changed())],
    "readout": [{"prompts": [replace(p, readout=readout) for p in PROMPTS]} for readout in (3, 4)],
    "tokens": [{"prompts": [replace(p, ids=(*p.ids[:-1], n)) for p in PROMPTS]} for n in (7, 8)],
    "an object's attributes": [{"conditions": at(Scaled({"all": factor}))} for factor in (0.5, 2.0)],
    "slots": [{"conditions": at(Slotted(factor))} for factor in (0.5, 2.0)],
    "order": [{"conditions": at(Zero()) + at(Mean()), "metrics": [KL()]}, {"conditions": at(Mean()) + at(Zero())}],
}


def swept(model, kept, **more):
    given = {**BASE, "means": MEANS, **more}
    prompts, conditions, metrics = (given.pop(name) for name in ("prompts", "conditions", "metrics"))
    return sweep(model, prompts, conditions, metrics, checkpoint=kept, label="same", **given)


@pytest.mark.parametrize("name", PAIRS)
def test_two_sweeps_under_one_label_each_get_their_own_numbers(shape, name):
    model, kept = shape("llama"), Kept()
    alone = [swept(model, None, **more) for more in PAIRS[name]]
    assert all(np.array_equal(swept(model, kept, **more), own) for more, own in zip(PAIRS[name], alone, strict=True))
    assert kept.loaded == 0
    again = [swept(model, kept, **more) for more in PAIRS[name]]
    assert all(np.array_equal(values, own) for values, own in zip(again, alone, strict=True))
    assert kept.loaded == len(kept.parts) >= len(PAIRS[name])


def test_sweeps_that_differ_in_their_label_alone_are_kept_apart(shape):
    model, kept = shape("llama"), Kept()
    for label in ("one", "two"):
        sweep(model, PROMPTS, at(Zero()), [KL()], checkpoint=kept, label=label)
    assert kept.loaded == 0
    assert len(kept.parts) == 2 * len(PROMPTS)


@pytest.mark.parametrize("templates", [1, 2, 4])
def test_what_is_kept_of_the_first_templates_is_what_a_sweep_over_more_of_them_looks_for(shape, templates):
    """A prompt without a template counts as one of its own."""
    prompts = [token_prompt(f"{family}{n}", 5 + n % 2, seed=n, family=family) for n in range(7) for family in "fg"]
    model, kept = shape("llama"), Kept()
    swept(model, kept, prompts=prompts[: 2 * templates], runs={})
    finished = len(kept.parts)
    values = swept(model, kept, prompts=prompts, runs={})
    assert kept.loaded == finished
    assert np.array_equal(values, swept(model, None, prompts=prompts, runs={}))


@pytest.mark.parametrize("through", ["data", "no_grad", "another tensor", "a buffer"])
def test_a_sweep_after_a_training_step_is_not_the_one_before_it(through):
    model, kept = HookedModel(build("llama"), None), Kept()
    module = model.model.model.layers[2].mlp.down_proj
    module.register_buffer("scale", torch.ones(1))
    swept(model, kept)
    with torch.no_grad():
        if through == "data":
            module.weight.data.mul_(1.5)
        elif through == "a buffer":
            module.scale.fill_(2.0)
        elif through == "no_grad":
            module.weight.copy_(module.weight.flip(0))
        else:
            module.weight = torch.nn.Parameter(module.weight.flip(0))
    assert np.array_equal(swept(model, kept), swept(model, None))
    assert kept.loaded == 0


def test_a_sweep_under_held_interventions_is_not_the_one_without(shape):
    model, kept = shape("llama"), Kept()
    plain = swept(model, kept)
    with model.intervene([Intervention(Site(0, "mlp_out"), Add(VECTORS[0] * 9))]):
        held = swept(model, kept)
    assert kept.loaded == 0
    assert not ref.agree(plain, held)


def by_closure(factor):
    class Local(Change):
        def __call__(self, value, target):
            return value * factor

    return Local()


@pytest.mark.parametrize("make", [by_closure, lambda factor: Scaled({"all": factor, "how": lambda x: x * factor})])
def test_what_can_not_be_told_by_its_fields_is_measured_anew_with_a_line(shape, caplog, make):
    """Two classes made by one function have one name, and a lambda has none: their numbers are never kept."""
    model, kept = shape("llama"), Kept()
    found = [swept(model, kept, conditions=at(make(factor))) for factor in (0.5, 2.0)]
    assert kept.parts == {}
    assert not ref.agree(*found)
    assert "sweep 'same' can't be resumed" in caplog.text


def test_a_digest_is_of_what_is_held_and_not_of_how_it_lies_in_memory():
    """A resumed run is another process: equal things, other objects, other hash seeds."""
    shared = ["x", "y"]
    assert canonical_digest([shared, shared]) == canonical_digest([["x", "y"], ["x", "y"]])
    whole = torch.arange(64.0).reshape(2, 32)
    assert canonical_digest(whole[1]) == canonical_digest(whole[1].clone())
    assert canonical_digest(whole.T.contiguous().T) == canonical_digest(whole)
    assert canonical_digest(torch.tensor(1.0)) != canonical_digest(torch.tensor(2.0))
    assert canonical_digest(whole) != canonical_digest(whole.reshape(32, 2))
    names = [str(n) for n in range(50)]
    assert canonical_digest(set(names)) == canonical_digest(set(names[::-1]))
    assert canonical_digest({"a"}) != canonical_digest({"b"})


def test_a_change_that_holds_the_model_is_told_without_its_weights_twice(shape):
    model, kept = shape("llama"), Kept()
    swept(model, kept, conditions=at(Scaled({"all": 2.0, "model": model})))
    swept(model, kept, conditions=at(Scaled({"all": 2.0, "model": model})))
    assert kept.loaded == len(kept.parts) == len(PROMPTS)
