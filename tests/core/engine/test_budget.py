"""The budget of memory: what is run at once never changes the numbers, and too little memory is told."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from sweeping import Part, all_cases, measured

from xatlas.contracts.adapter import Site
from xatlas.engine.schedule import Budget, kept_sites
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Zero


def test_the_budget_changes_nothing_but_memory(shape):
    model = shape("lfm2")
    cases = all_cases(model)[::3]
    small = Budget(stream_bytes=6000, logit_bytes=1500, tile_tokens=64)
    assert ref.agree(measured(model, cases), measured(model, cases, budget=small))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_halves_the_budget(shape, monkeypatch, error):
    from xatlas.engine import walk

    model = shape("llama")
    cases = all_cases(model)[::5]
    plain = measured(model, cases)
    tiles, run = [], walk.Walk.run

    def failing(self):
        tiles.append(self.tile)
        if len(tiles) == 1:
            raise error
        yield from run(self)

    monkeypatch.setattr(walk.Walk, "run", failing)
    assert ref.agree(measured(model, cases), plain)
    assert tiles[1] < tiles[0]


def test_memory_that_stays_short_is_told_in_one_line(shape, monkeypatch):
    from xatlas.engine import walk

    def failing(self):
        raise torch.OutOfMemoryError("out of memory")
        yield

    monkeypatch.setattr(walk.Walk, "run", failing)
    with pytest.raises(XatlasError, match="not enough memory for a single prompt"):
        measured(shape("llama"), [[Part(0, "mlp_out", "zero")]])


def test_other_errors_of_a_run_are_not_taken_for_memory(shape, monkeypatch):
    from xatlas.engine import walk

    def failing(self):
        raise RuntimeError("shapes cannot be multiplied")
        yield

    monkeypatch.setattr(walk.Walk, "run", failing)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measured(shape("llama"), [[Part(0, "mlp_out", "zero")]])


def test_what_the_clean_run_keeps_is_counted_as_it_lies_in_memory(shape):
    """A third of a convolution's projection keeps the whole; what can't be counted is never kept."""

    class Looks(Zero):
        def reads_sites(self, site):
            return (Site(site.layer, "attention_pattern"),)

    model = shape("lfm2")
    conditions = [(Intervention(site, Zero()),) for site in (Site(0, "conv_gate"), Site(1, "mlp_out"))]
    needed = 10 * 4 * (3 * model.d_model + model.d_model)
    kept = kept_sites(model, conditions, 10, Budget(stream_bytes=needed))
    assert {Site(0, "conv_gate"), Site(1, "mlp_out")} <= set(kept)
    assert kept_sites(model, conditions, 10, Budget(stream_bytes=needed - 1)) == []
    assert kept_sites(model, [(Intervention(Site(1, "mlp_out"), Looks()),)], 10, Budget()) == []
