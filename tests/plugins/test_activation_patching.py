"""Patching finds what was planted, gives the plain loop's numbers, and refuses what says nothing."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import reference
from models import SHAPES, VOCABULARY
from planted_patching import planted, suite

from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.plugins.activation_patching import ActivationPatching
from xatlas.probing import patching
from xatlas.probing.patching import Pair, Pairs, Patching, read_pairs
from xatlas.prompts.reader import TokenPrompt
from xatlas.schema import validate
from xatlas.suites import Prompt, Suite

SITES, POSITIONS = ("resid_post", "operator_out", "mlp_out"), ("first", "subject", "last", "other")


def some_pairs(count=2):
    """Return pairs of random tokens: of five and of seven, the subject at 1 and 2, the readout last.

    Their distance is said to be 1, so that recovery is the change in logits.
    """
    rng = np.random.default_rng(0)
    pairs = []
    for i, length in enumerate((5, 7, 5)[:count]):
        ids = rng.integers(3, VOCABULARY, size=length)
        twin = ids.copy()
        twin[[1, 2, 3]] = rng.integers(3, VOCABULARY, size=3)
        clean, corrupt = (
            TokenPrompt(Prompt(f"p{i}", "f", "text"), tuple(map(int, row)), length, length - 1, 7, 11, (7,), (1, 2))
            for row in (ids, twin)
        )
        pairs.append(Pair(clean, corrupt))
    return Pairs(tuple(pairs), np.ones(count), np.zeros(count), {})


def by_hand(model, pair, sites, places, mode):
    """Return ``(site, place)``: what patching each does to the difference of logits in the plain loop."""
    into, source = (pair.corrupt, pair.clean) if mode == "denoise" else (pair.clean, pair.corrupt)
    there = reference.every_value(model, source.ids, sites)
    chosen = {place: list(range(len(into.ids)) if place == "all" else into.positions(place)) for place in places}

    def patch(site, place, value):
        new = value.clone()
        new[:, chosen[place]] = there[site][:, chosen[place]]
        return new

    cells = itertools.product(sites, places)
    rows = [[], *([(*site, functools.partial(patch, site, place))] for site, place in cells)]
    last = reference.many_logits(model, into.ids, rows)[:, -1].numpy()
    moved = last[:, 7] - last[:, 11]
    change = (moved[1:] - moved[0]).reshape(len(sites), len(places))
    return change if mode == "denoise" else -change


@pytest.mark.parametrize(
    ("mode", "name"), [*(("denoise", name) for name in SHAPES), ("noise", "llama-untied-biased"), ("noise", "lfm2")]
)
def test_patches_are_the_plain_loops(shape, name, mode):
    model = shape(name)
    pairs = some_pairs()
    kinds, places = ("resid_pre", "operator_out", "resid_mid", "mlp_out", "resid_post"), ("all", *POSITIONS)
    ours = Patching(model, pairs, kinds, places).recovery(mode, Inputs(), "test", control=False)["recovery"]
    assert ours.dims == ("prompt", "layer", "site", "position")
    sites = list(itertools.product(range(model.n_layers), kinds))
    expected = np.reshape([by_hand(model.model, pair, sites, places, mode) for pair in pairs.pairs], ours.shape)
    assert reference.agree(ours, expected)
    assert np.abs(expected).max() > 0.01


def test_what_the_last_layer_mixes_is_patched_at_other_positions_too(shape):
    model = shape("lfm2")
    pairs = some_pairs(1)
    patching = Patching(model, pairs, ("conv_signal",), ("other",))
    ours = patching.recovery("denoise", Inputs(), "test", control=False)["recovery"]
    last = model.n_layers - 1
    expected = by_hand(model.model, pairs.pairs[0], [(last, "conv_signal")], ["other"], "denoise").item()
    assert expected != 0
    assert ours.sel(layer=last).item() == pytest.approx(expected, abs=1e-4)
    assert np.isnan(ours.sel(layer=1)).all()  # attention has no such site


def measured(model=None, prompts=None, **parameters):
    probe = ActivationPatching(**parameters)
    dataset = probe.measure(model or planted(), prompts or suite(), Inputs())
    validate(dataset, probe)
    return dataset


def test_a_planted_head_is_exactly_what_is_found():
    dataset = measured()
    assert set(dataset["mode"].values) == {"denoise", "noise"}
    expected = np.zeros((3, 4, 3))  # (site, position, layer)
    expected[0, 1, 0] = 1  # the stream holds it at the subject after the MLP of layer 0 …
    expected[0, 2, 1:] = 1  # … and at the readout after the head of layer 1
    expected[1, 2, 1] = 1
    expected[2, 1, 0] = 1
    for mode in ("denoise", "noise"):
        found = dataset["recovery"].sel(mode=mode).transpose("prompt", "site", "position", "layer")
        assert list(found["site"].values) == list(SITES)
        assert list(found["position"].values) == list(POSITIONS)
        wanted = np.broadcast_to(expected, found.shape).copy()
        wanted[np.isnan(found.values)] = np.nan
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    # the control moves as far, in directions that hardly anything reads, each pair's its own
    assert float(np.abs(dataset["recovery_control"]).mean()) < 0.1


def test_where_no_patch_can_have_an_effect_all_is_0():
    """Both runs begin with one token, so that at position 0 nothing is left to measure."""
    dataset = measured(positions="first")
    assert np.abs(dataset["recovery"]).max() == np.abs(dataset["recovery_control"]).max() == 0
    assert not dataset["recovery"].isnull().any()


def test_a_class_without_tokens_is_nan_with_a_reason():
    dataset = measured(prompts=suite(subject=None))
    assert np.isnan(dataset["recovery"].sel(position="subject")).all()
    assert np.isfinite(dataset["recovery"].sel(position=["first", "last"])).all()
    assert "no token of this class" in json.loads(dataset.attrs["absent"])["position subject"]


def test_pairs_that_say_nothing_are_dropped_with_their_reason():
    good = suite().prompts[0]
    odd = (
        good,
        replace(good, id="long", corrupt_text="B is not ="),
        replace(good, id="no-foil", foil=None),
        replace(good, id="no-twin", corrupt_text=None),
        replace(good, id="same", corrupt_text=good.text),
        replace(good, id="wrong", target="q", foil="p"),
        replace(good, id="neither", corrupt_text="C is ="),
        replace(good, id="elsewhere", text="AA is =", corrupt_text="ABBis =", subject=(1, 2)),
    )
    pairs = read_pairs(planted(), Suite("odd", odd), 0.5)
    assert [pair.clean.prompt.id for pair in pairs.pairs][:1] == [good.id]
    told = pairs.dropped
    assert told["long"] == "text and twin differ in token length"
    assert told["no-foil"] == told["no-twin"] == "no foil or no corrupt twin"
    assert told["same"] == "text and twin are the same tokens"
    assert "clean run does not prefer the target by 0.5" in told["wrong"]
    assert "corrupt run does not prefer the foil by 0.5" in told["neither"]


def test_a_subject_at_other_tokens_in_the_twin_is_dropped():
    first = suite().prompts[0]
    moved = replace(first, id="moved", text="A é=", corrupt_text="BB  =", subject=(0, 1))  # é is two tokens
    pairs = read_pairs(planted(), Suite("moved", (first, moved)), 0.5)
    assert pairs.dropped == {"moved": "the subject lies at other tokens in the twin"}


@pytest.mark.parametrize(
    ("clean", "corrupt", "told"),
    [
        (0.5, -0.5, None),
        (0.4, -0.6, "the clean run does not prefer the target by 0.5 logits"),
        (0.6, -0.4, "the corrupt run does not prefer the foil by 0.5 logits"),
        (0.9, 0.6, "the corrupt run does not prefer the foil by 0.5 logits"),
        (np.nan, -0.6, "logits were not finite"),
        (0.6, -np.inf, "logits were not finite"),
    ],
)
def test_pairs_are_kept_whose_runs_lead_as_far_as_is_demanded_to_either_side(monkeypatch, clean, corrupt, told):
    found = iter([np.array([clean, 1.0]), np.array([corrupt, -1.0])])
    monkeypatch.setattr(patching, "logit_differences", lambda model, prompts: next(found))
    first, second = suite().prompts[:2]
    pairs = read_pairs(planted(), Suite("two", (first, second)), 0.5)
    assert pairs.dropped == ({first.id: told} if told else {})
    assert [pair.clean.prompt.id for pair in pairs.pairs] == [first.id] * (not told) + [second.id]


def split():
    """Return prompts whose "=" belongs to the answers: the readout lies behind the text."""
    prompts = (replace(p, text=p.text[:-1], corrupt_text=p.corrupt_text[:-1]) for p in suite())
    return tuple(replace(p, target="=pxyz", foil="=q") for p in prompts)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda twin: "it is too long", "the twin can't be read: it is too long"),
        (lambda twin: replace(twin, readout=twin.readout - 1), "target and foil part at another token after the twin"),
        (
            lambda twin: replace(twin, ids=(*twin.ids[: twin.n_text], 7, *twin.ids[twin.n_text + 1 :])),
            "target and foil part at another token after the twin",
        ),
        (lambda twin: replace(twin, answer=7), "target and foil are other tokens after the twin"),
        (lambda twin: replace(twin, foil_answer=7), "target and foil are other tokens after the twin"),
    ],
)
def test_pairs_whose_answers_are_read_otherwise_after_the_twin_are_dropped(monkeypatch, read, told):
    """As tokenizers may that merge over the end of a text."""
    model, (first, second, *_) = planted(), split()
    plain = model.reader.prompt
    odd = (first.corrupt_text, first.text)
    monkeypatch.setattr(
        model.reader, "prompt", lambda p: read(plain(p)) if (p.text, p.corrupt_text) == odd else plain(p)
    )
    assert read_pairs(model, Suite("split", (first, second)), 0.5).dropped == {first.id: told}


def test_answers_of_several_tokens_are_told_apart_where_they_differ():
    model, prompts = planted(), split()
    pairs = read_pairs(model, Suite("split", prompts), 0.5)
    assert len(pairs) == len(prompts)
    assert all(pair.clean.readout == len(pair.clean.ids) - 1 == pair.clean.n_text for pair in pairs.pairs)
    assert (pairs.clean > 0.5).all()
    assert (pairs.corrupt < -0.5).all()


@pytest.mark.parametrize(
    ("prompts", "parameters", "told"),
    [
        (suite(foil=None), {}, "Families with a foil: none; with a corrupt_text: f0, f1"),
        (suite(corrupt_text=None), {}, "Families with a foil: f0, f1; with a corrupt_text: none"),
        (suite(target="q", foil="p"), {}, "all 8 are dropped: 8 × the clean run does not prefer the target"),
        (suite(), {"least": 0.0}, "least = 0 does not fit"),
        (suite(), {"sites": "mlp_in"}, "unknown site kind 'mlp_in'"),
        (
            suite(),
            {"positions": "middle"},
            "positions = 'middle' does not fit: it takes a list, comma-separated, of one of first",
        ),
        (
            suite(),
            {"modes": "both"},
            "modes = 'both' does not fit: it takes a list, comma-separated, of one of denoise, noise",
        ),
    ],
)
def test_what_can_not_be_patched_is_told_in_one_line(prompts, parameters, told):
    with pytest.raises(XatlasError) as caught:
        measured(prompts=prompts, **parameters)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_position_0_is_patched_where_only_some_pairs_differ_there(shape):
    model, pairs = shape("llama"), some_pairs()
    same, other = pairs.pairs
    twin = replace(other.corrupt, ids=((other.corrupt.ids[0] + 1) % 97, *other.corrupt.ids[1:]))
    pairs = replace(pairs, pairs=(same, replace(other, corrupt=twin)))
    ours = Patching(model, pairs, ("resid_post",), ("first",)).recovery("denoise", Inputs(), "test", control=False)
    site, places = (0, "resid_post"), ["first"]
    expected = [by_hand(model.model, pair, [site], places, "denoise").item() for pair in pairs.pairs]
    assert abs(expected[1]) > 1e-4
    assert reference.agree(ours["recovery"].sel(layer=0).values.ravel(), expected)
