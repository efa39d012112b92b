"""What the engine refuses before it runs, keeps of a run that stopped, and tells on the way."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from models import donor_for, token_prompt
from sweeping import PROMPTS, Part, measured

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Add, FromRun, InSubspace, Intervention, Mean, One, RandomDirection, Zero
from xatlas.metrics import KL
from xatlas.sweep import Budget, named_sweep, sweep


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ((), "at least one intervention"),
        ((Intervention(Site(9, "mlp_out"), Zero()),), "layer 9 is out of range"),
        ((Intervention(Site(0, "conv_gate"), Zero()),), "unknown site kind in layer 0"),
        ((Intervention(Site(0, "mlp_out"), Mean()),), "no reference mean was given for L0.mlp_out"),
        ((Intervention(Site(0, "mlp_out"), FromRun("x")),), "was not given the run 'x'"),
        ((Intervention(Site(1, "heads"), Zero(), heads=(3, 4)),), "head 4 is out of range: layer 1 has heads 0 to 3"),
        ((Intervention(Site(1, "heads"), Zero(), heads=(-1,)),), "head -1 is out of range"),
        (
            (Intervention(Site(0, "mlp_out"), RandomDirection((Intervention(Site(0, "conv_gate"), Zero()),))),),
            "unknown site kind in layer 0",
        ),
    ],
)
def test_what_can_not_be_measured_is_refused_before_anything_runs(shape, monkeypatch, condition, told):
    model = shape("llama")
    monkeypatch.setattr(model, "record", lambda *asked: pytest.fail("it ran"))
    with pytest.raises(XatlasError, match=told):
        sweep(model, PROMPTS, [condition], [KL()])


@pytest.mark.parametrize("row", range(len(PROMPTS)))
@pytest.mark.parametrize("more", [-1, 1])
def test_a_run_of_another_length_is_refused(shape, row, more):
    """A longer one, too: of each run only what stands at the prompt's own positions would be read."""
    prompt, runs = PROMPTS[row], [prompt.ids for prompt in PROMPTS]
    length = len(prompt.ids)
    runs[row] = (*prompt.ids, 1)[: length + more]
    condition = (Intervention(Site(0, "mlp_out"), FromRun("donor")),)
    with pytest.raises(XatlasError, match=f"of prompt '{prompt.prompt.id}' has {length + more} tokens, not {length}"):
        sweep(shape("llama"), PROMPTS, [condition], [KL()], runs={"donor": runs})


class Kept:
    def __init__(self):
        self.parts = {}

    def load(self, key):
        return self.parts.get(key)

    def save(self, key, arrays):
        self.parts[key] = arrays


def test_finished_buckets_are_not_measured_again(shape, monkeypatch):
    model, kept = shape("llama"), Kept()
    cases = [[Part(layer, "mlp_out", "zero")] for layer in range(3)]
    first = measured(model, cases, checkpoint=kept)
    assert len(kept.parts) == len({len(prompt.ids) for prompt in PROMPTS})
    gone = kept.parts.popitem()
    runs, record = [], model.record
    monkeypatch.setattr(model, "record", lambda *asked: runs.append(asked) or record(*asked))
    assert ref.agree(measured(model, cases, checkpoint=kept), first)
    assert len(runs) == 1
    assert gone[0] in kept.parts


@pytest.mark.parametrize("budget", [Budget(), Budget(stream_bytes=10_500)])
def test_a_layer_is_called_once_a_bucket_and_once_more_where_its_values_would_not_fit(shape, monkeypatch, budget):
    """Conditions that begin, are under way and have ended share a call; the clean run keeps what they look at."""
    model = shape("llama")
    cases = [[Part(layer, kind, "random")] for layer in range(3) for kind in ("resid_mid", "mlp_out")]
    calls, run_layer = [], model.run_layer
    monkeypatch.setattr(model, "run_layer", lambda layer, *rest: calls.append(layer) or run_layer(layer, *rest))
    measured(model, cases, [KL()], budget=budget)
    fits = budget == Budget()
    buckets = len({len(prompt.ids) for prompt in PROMPTS})
    assert sorted(calls) == sorted([0, 1, 2] * buckets * (1 if fits else 2))


def test_progress_counts_prompts(shape):
    heard = []
    cases = [[Part(0, "mlp_out", "zero")]]
    measured(shape("llama"), cases, progress=lambda *told: heard.append(told), label="demo")
    assert heard[-1] == ("demo", len(PROMPTS), len(PROMPTS))
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_a_sweep_while_interventions_are_held_measures_the_model_as_it_is_held(shape, name):
    """Held edits come first and at every call of a layer, once each: in recorded and in perturbed runs."""
    model, vector = shape(name), torch.linspace(-1, 1, 32)

    def at_first(value):
        return torch.cat([value[:, :1] + vector, value[:, 1:]], 1)

    sites = [Site(layer, kind) for layer in range(3) for kind in ("resid_pre", "resid_mid", "mlp_out", "resid_post")]
    conditions = [(Intervention(site, Zero()),) for site in sites]
    conditions += [(Intervention(site, Add(vector), positions="last"),) for site in sites]
    for site in (Site(1, kind) for kind in ("resid_pre", "operator_out", "mlp_out", "resid_post")):
        for held, change, positions in ((torch.ones_like, One(), "all"), (at_first, Add(vector), "first")):
            edits = [(site.layer, site.kind, held)]
            with model.intervene([Intervention(site, change, positions=positions)]):
                ours = sweep(model, PROMPTS, conditions, [KL()], budget=Budget(stream_bytes=10_500))[0]
                both = sweep(model, PROMPTS, conditions, [KL(), KL("all")])[0]
            for row, prompt in enumerate(PROMPTS):
                clean = ref.logits(model.model, prompt.ids, edits)[prompt.readout]

                def last(value, at=prompt.readout):
                    value = value.clone()
                    value[:, at] += vector
                    return value

                rows = [[*edits, (s.layer, s.kind, change)] for change in (torch.zeros_like, last) for s in sites]
                changed = ref.many_logits(model.model, prompt.ids, rows)[:, prompt.readout]
                wanted = [ref.kl(clean, each) for each in changed]
                assert ref.agree(ours[row], wanted), (site, positions)
                assert ref.agree(both[row], wanted), (site, positions)


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_what_is_held_at_the_newest_token_is_held_at_the_readout_alone(shape, name):
    """Also where the readout is all that is changed: the tokens before it are no newest ones of their own."""
    model, vector = shape(name), torch.linspace(-3, 3, 32)
    held = Intervention(Site(0, "mlp_out"), Add(vector), positions="last")
    with model.intervene([held]):
        ours = sweep(model, PROMPTS, [(Intervention(Site(1, "operator_out"), Zero(), positions="last"),)], [KL()])
    for row, prompt in enumerate(PROMPTS):
        at = torch.arange(len(prompt.ids))[None, :, None] == prompt.readout
        edits = [(0, "mlp_out", lambda value, at=at: value + vector * at)]
        clean = ref.logits(model.model, prompt.ids, edits)[prompt.readout]
        edits += [(1, "operator_out", lambda value, at=at: value * ~at)]
        assert ref.agree(ours[0, row, 0], ref.kl(clean, ref.logits(model.model, prompt.ids, edits)[prompt.readout]))


def test_a_named_sweep_holds_what_the_sweep_gives_under_the_names_of_its_cells(shape):
    model = shape("llama")
    prompts = [token_prompt("a", 5), token_prompt("b", 4)]
    cells = [{"layer": layer, "kind": kind} for layer in (2, 0) for kind in ("mlp_out", "heads", "mlp_out")][:-1]
    conditions = [
        (Intervention(Site(cell["layer"], cell["kind"]), change),)
        for cell, change in zip(cells, [Zero(), Zero(), One(), Zero(), Zero()], strict=True)
    ]
    metrics = {"kl last": KL(), "kl all": KL("all")}
    plain = sweep(model, prompts, conditions, list(metrics.values()))
    named = named_sweep(model, prompts, conditions, metrics)
    assert named.dims == ("metric", "prompt", "condition")
    assert np.array_equal(named.values, plain)
    grid = named_sweep(model, prompts, conditions, metrics, [*cells[:-1], {"layer": 1, "kind": "heads"}])
    assert grid.dims == ("metric", "prompt", "layer", "kind")
    assert [*grid.layer.values, *grid.kind.values] == [2, 0, 1, "mlp_out", "heads"]
    one = grid.sel(metric="kl all", prompt="b")
    assert float(one.sel(layer=2, kind="mlp_out")) == plain[1, 1, [0, 2]].mean()
    assert float(one.sel(layer=2, kind="heads")) == plain[1, 1, 1]
    assert float(one.sel(layer=0, kind="mlp_out")) == plain[1, 1, 3]
    assert np.isnan(grid.sel(layer=0, kind="heads")).all()


def test_a_cell_one_of_whose_draws_has_no_number_has_none(shape):
    prompt = token_prompt("a", 5)
    conditions = [(Intervention(Site(1, "mlp_out"), FromRun(f"donor {draw}")),) for draw in (0, 1)]
    runs = {"donor 0": [donor_for(prompt)], "donor 1": [None]}
    assert np.isnan(
        named_sweep(shape("llama"), [prompt], conditions, {"kl": KL()}, [{"layer": 1}] * 2, runs=runs)
    ).all()


def test_a_run_that_is_missing_is_missed_inside_a_subspace_too(shape):
    prompt = token_prompt("a", 5)
    condition = (Intervention(Site(1, "heads"), InSubspace(FromRun("donor"), 4, "here")),)
    assert np.isnan(sweep(shape("llama"), [prompt], [condition], [KL()], runs={"donor": [None]})).all()
