"""What changes do to a value, and which interventions are refused when they are made."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import (
    Add,
    Change,
    FromRun,
    InSubspace,
    Intervention,
    Mean,
    One,
    RandomDirection,
    Target,
    Zero,
    ablation,
    edit,
    means_needed,
)
from xatlas.vocabulary import FactorAblationKind

MLP, HEADS = Site(1, "mlp_out"), Site(1, "heads")


class Stage:
    """A context of two prompts and four tokens."""

    def __init__(self, seed=0):
        self.seed, self.names = seed, ["a", "b"]
        generator = torch.Generator().manual_seed(3)
        self.values = {
            MLP: torch.randn(2, 4, 6, generator=generator),
            Site(1, "operator_out"): torch.randn(2, 4, 6, generator=generator),
            Site(1, "resid_post"): torch.randn(2, 4, 6, generator=generator),
            HEADS: torch.randn(2, 4, 3, 2, generator=generator),
        }
        self.means = {
            site: torch.randn(2, *value.shape[2:], generator=generator) for site, value in self.values.items()
        }

    def first(self):
        return torch.tensor([[True, False, False, False]] * 2)

    def mask(self, positions):
        last = torch.tensor([[False, False, True, False], [False, False, False, True]])
        return {"all": None, "first": self.first(), "last": last}[positions]

    def mean(self, site):
        return self.means[site]

    def source(self, site, name):
        return self.values[site].flip(0)

    def clean(self, site):
        return self.values[site]


@pytest.fixture
def stage():
    return Stage()


def moved(part, context):
    value = context.values[part.site]
    return edit(part, value, context) - value


def test_the_mean_at_position_0_is_its_own(stage):
    new = edit(Intervention(MLP, Mean()), stage.values[MLP], stage)
    for row in range(2):
        assert torch.equal(new[row, 0], stage.means[MLP][0])
        assert all(torch.equal(new[row, p], stage.means[MLP][1]) for p in (1, 2, 3))


def test_heads_are_picked_and_the_others_left(stage):
    new = edit(Intervention(HEADS, Zero(), heads=(2, 0)), stage.values[HEADS], stage)
    assert new[:, :, [0, 2]].abs().max() == 0
    assert torch.equal(new[:, :, 1], stage.values[HEADS][:, :, 1])
    new = edit(Intervention(HEADS, Mean(), heads=(1,)), stage.values[HEADS], stage)
    assert torch.equal(new[0, 3, 1], stage.means[HEADS][1, 1])


def test_positions_limit_a_change_to_their_tokens(stage):
    change = moved(Intervention(MLP, One(), positions="last"), stage).abs().sum(-1) > 0
    assert torch.equal(change, stage.mask("last"))


@pytest.mark.parametrize(
    "own", [(Intervention(MLP, Zero()),), (Intervention(MLP, Mean()),), (Intervention(MLP, FromRun("d")),)]
)
def test_a_control_has_the_norm_of_the_change_at_every_token(stage, own):
    control = moved(Intervention(MLP, RandomDirection(own)), stage)
    torch.testing.assert_close(control.norm(dim=-1), moved(own[0], stage).norm(dim=-1))
    unit = control / control.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit, unit[:, :1].expand_as(unit))  # one direction for all tokens of a prompt
    assert abs(float(unit[0, 0] @ unit[1, 0])) < 0.99


def test_a_joint_control_has_the_norm_of_the_summed_changes(stage):
    parts = (Intervention(Site(1, "operator_out"), Zero()), Intervention(MLP, Mean()))
    control = moved(Intervention(Site(1, "resid_post"), RandomDirection(parts)), stage)
    summed = sum(moved(part, stage) for part in parts)
    torch.testing.assert_close(control.norm(dim=-1), summed.norm(dim=-1))


def test_a_change_at_some_positions_has_a_control_at_those_only(stage):
    own = (Intervention(MLP, Zero(), positions="first"),)
    control = moved(Intervention(MLP, RandomDirection(own)), stage)
    assert control[:, 1:].abs().max() == 0
    torch.testing.assert_close(control[:, 0].norm(dim=-1), stage.values[MLP][:, 0].norm(dim=-1))


@pytest.mark.parametrize("sample", [None, torch.eye(6) - 1 / 6])
def test_directions_depend_on_seed_place_draw_and_prompt_and_on_nothing_else(sample):
    own = (Intervention(MLP, Zero()),)

    def direction(seed=0, draw=0, site=MLP, row=0, names=("a", "b")):
        stage = Stage(seed)
        stage.names = names
        change = moved(Intervention(site, RandomDirection(own, draw, sample)), stage)[row, 0]
        return change / change.norm()

    torch.manual_seed(1)
    first = direction()
    torch.manual_seed(2)
    assert torch.equal(direction(), first)
    torch.testing.assert_close(direction(row=1, names=("c", "a")), first)
    others = [direction(seed=1), direction(draw=1), direction(site=Site(1, "resid_post")), direction(row=1)]
    assert all((other @ first).abs() < 0.99 for other in others)


def test_matched_directions_have_the_covariance_of_their_sample(stage):
    sample = torch.randn(512, 6, generator=torch.Generator().manual_seed(5)) * torch.tensor([9.0, 3, 1, 1, 0, 0])
    sample = sample - sample.mean(0)
    stage.names = [f"p{row}" for row in range(4000)]
    stage.values[MLP] = torch.ones(4000, 1, 6)
    change = moved(Intervention(MLP, RandomDirection((Intervention(MLP, Zero()),), 0, sample)), stage)[:, 0]
    torch.testing.assert_close(change.norm(dim=-1), torch.full((4000,), 6**0.5))
    drawn = torch.randn(4000, 512, generator=torch.Generator().manual_seed(6)) @ sample
    expected = (drawn / drawn.norm(dim=-1, keepdim=True)).T.cov() * 6
    torch.testing.assert_close(change.T.cov(), expected, atol=0.15, rtol=0.1)


def test_a_change_of_nothing_has_a_control_of_nothing_even_where_nothing_varies(stage):
    own = (Intervention(MLP, Zero(), positions="first"),)
    change = moved(Intervention(MLP, RandomDirection(own, 0, torch.zeros(9, 6))), stage)
    assert torch.equal(change[:, 1:], torch.zeros(2, 3, 6))
    assert change[:, 0].isnan().all()


def test_a_change_in_a_subspace_stays_in_it(stage):
    part = Intervention(HEADS, InSubspace(Zero(), 2, "here"))
    change = moved(part, stage).flatten(2).reshape(-1, 6)
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2
    # A projection: doing it again changes nothing more.
    once = edit(part, stage.values[HEADS], stage)
    torch.testing.assert_close(edit(part, once, stage), once)
    # In the whole space it is the change itself.
    whole = edit(Intervention(HEADS, InSubspace(Mean(), 6, "here")), stage.values[HEADS], stage)
    torch.testing.assert_close(whole, edit(Intervention(HEADS, Mean()), stage.values[HEADS], stage))


def test_a_vector_is_added_to_every_token(stage):
    torch.testing.assert_close(moved(Intervention(MLP, Add(torch.arange(6.0))), stage)[1, 2], torch.arange(6.0))


class WrongShape(Change):
    def __call__(self, value, target):
        return value[:, :1]


def test_a_change_of_another_shape_is_named(stage):
    with pytest.raises(
        XatlasError, match=r"WrongShape at L1.mlp_out returned the shape \(2, 1, 6\) instead of \(2, 4, 6\)"
    ):
        edit(Intervention(MLP, WrongShape()), stage.values[MLP], stage)


def test_a_direction_without_its_ablation_is_refused(stage):
    with pytest.raises(XatlasError, match="needs the ablation that it controls"):
        edit(Intervention(MLP, RandomDirection(())), stage.values[MLP], stage)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Intervention(Site(0, "attention_pattern"), Zero()), "L0.attention_pattern can be read, not changed"),
        (lambda: Intervention(MLP, Zero(), heads=(1,)), "L1.mlp_out has no heads"),
        (lambda: Intervention(MLP, Zero(), positions="final"), "unknown positions 'final'. Valid: all, first, subject"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_made(made, told):
    with pytest.raises(XatlasError, match=told):
        made()


@pytest.mark.parametrize("kind", get_args(FactorAblationKind))
def test_every_kind_of_ablation_has_its_change(stage, kind):
    assert moved(Intervention(MLP, ablation(kind)), stage).abs().min() > 0


def test_a_kind_of_ablation_that_is_none_is_refused():
    with pytest.raises(XatlasError, match="unknown ablation 'median'"):
        ablation("median")


def test_what_a_list_of_conditions_needs_is_found_however_deep():
    own = Intervention(MLP, Mean())
    control = Intervention(
        Site(1, "resid_post"), RandomDirection((own, Intervention(Site(1, "operator_out"), FromRun("d"))))
    )
    inside = Intervention(HEADS, InSubspace(Mean(), 2, "x"))
    assert means_needed([(control,), (inside,)]) == {MLP, HEADS}
    assert control.change.runs() == {"d"}
    assert means_needed([(Intervention(MLP, Zero()),)]) == frozenset()


def test_random_numbers_of_a_place_do_not_depend_on_precision():
    target = Target(Stage(), MLP, None)
    full, half = (target.random((6,), "x", torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(full, half.float(), atol=0.02, rtol=0.01)
