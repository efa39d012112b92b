"""The engine gives the numbers of the plain hook loop, on every shape and for everything that can be changed."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES, build, token_prompt
from sweeping import METRICS, PROMPTS, VECTOR, Part, Plain, all_cases, editable, measured, random_means

from xatlas.contracts.adapter import Site
from xatlas.interventions import Add, Change, FromRun, InSubspace, Intervention, Mean, RandomDirection, Zero
from xatlas.metrics import KL, Top1Changed
from xatlas.model import HookedModel
from xatlas.model.hooks import record_last_position, rows_of
from xatlas.sweep import sweep


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_gives_the_numbers_of_the_reference_loop(shape, name):
    model = shape(name)
    cases = all_cases(model)
    # Two sites of one layer given twice in a case would be one intervention too many for the plain hooks.
    cases = [case for case in cases if len({part.site for part in case}) == len(case)]
    ours, theirs = measured(model, cases), Plain(model, random_means(model)).expected(cases)
    wrong = [case for column, case in enumerate(cases) if not ref.agree(ours[:, :, column], theirs[:, :, column])]
    assert wrong == []
    missing = [column for column, case in enumerate(cases) if any(part.how == "run" for part in case)]
    assert missing
    assert np.isnan(ours[0]).sum() == len(missing)  # one prompt has no donor; nothing else is NaN
    assert np.nanmax(ours[0]) > 1e-2  # the interventions matter, so agreement means something


@pytest.mark.parametrize("name", SHAPES)
def test_changes_at_the_readout_alone_give_the_numbers_of_the_reference_loop(shape, name):
    model = shape(name)
    cases = [
        [Part(site.layer, site.kind, how, None, "last")] for site in editable(model) for how in ("zero", "mean", "run")
    ]
    cases += [
        [Part(0, "operator_out", "zero", None, "last"), Part(model.n_layers - 1, "mlp_out", "mean", None, "last")]
    ]
    cases = [case for case in cases if len({part.site for part in case}) == len(case)]
    ours = measured(model, cases, [KL(), Top1Changed()])
    theirs = Plain(model, random_means(model)).expected(cases)[[0, 3]]
    wrong = [case for column, case in enumerate(cases) if not ref.agree(ours[:, :, column], theirs[:, :, column])]
    assert wrong == []


@pytest.mark.parametrize("window", [1, 2, 3, 50])
def test_the_readout_alone_under_a_sliding_window_gives_the_numbers_of_the_reference_loop(window):
    """Hugging Face's cache of a window of 1 keeps every key, its mask none."""
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    hf = build("qwen2", use_sliding_window=True, sliding_window=window, layer_types=types)
    model = HookedModel(hf, None)
    sites = [site for kind in ("resid_pre", "heads", "operator_out", "mlp_out") for site in model.sites(kind)]
    cases = [[Part(site.layer, site.kind, how, None, "last")] for site in sites for how in ("zero", "run")]
    theirs = Plain(model, random_means(model)).expected(cases)[[0, 3]]
    assert ref.agree(measured(model, cases, [KL(), Top1Changed()]), theirs)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_step_on_the_clean_cache_leaves_it_as_it_was(shape, copies):
    """Keys are appended and conv states written in place: in copies of the rows that are asked for."""
    model = shape("lfm2-kernel-4-biased")
    last, clean = record_last_position(model, torch.tensor([PROMPTS[0].ids, PROMPTS[0].ids[::-1]]))

    def held():
        states = [layer.conv_states[0] if hasattr(layer, "conv_states") else layer.keys for layer in clean.layers]
        return [state.clone() for state in states]

    before = held()
    for layer, call in enumerate(last.calls):
        rows = torch.arange(2).repeat(copies)
        hidden = last.inputs[layer][rows]
        output = model.run_layer(layer, hidden, call, prompts=2, cache=rows_of(clean, rows))
        expected = last.inputs[layer + 1] if layer + 1 < model.n_layers else last.final
        assert torch.allclose(output, expected[rows], atol=1e-5)
    assert all(map(torch.equal, before, held()))


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_edits_of_one_layer_are_made_in_the_forwards_order_whatever_stands_beside_them(shape, name):
    """The stream after the operator is edited by way of the operator's output: both edits hook one module."""
    model = shape(name)
    both = [Part(1, "operator_out", "add"), Part(1, "resid_mid", "zero")]
    entered = [Part(1, "resid_pre", "mean"), Part(1, "resid_mid", "add")]
    left = [Part(1, "mlp_out", "zero"), Part(1, "resid_post", "mean")]
    cases = [[Part(1, "resid_mid", "add")], both, both[::-1], entered, entered[::-1], left, left[::-1]]
    in_order = [cases[0], both, both, entered, entered, left, left]
    assert ref.agree(measured(model, cases), Plain(model, random_means(model)).expected(in_order))


@pytest.mark.parametrize("name", ["llama", "lfm2"])
@pytest.mark.parametrize("positions", ["first", "last"])
def test_an_mlp_that_is_replaced_at_one_position_reads_elsewhere_what_the_operator_became(shape, name, positions):
    model = shape(name)
    cases = [
        [Part(layer, "operator_out", "mean"), Part(layer, "mlp_out", "mean", None, positions)]
        for layer in range(model.n_layers)
    ]
    assert ref.agree(measured(model, cases), Plain(model, random_means(model)).expected(cases))


def test_a_change_that_works_in_place_changes_only_its_own_value(shape):
    class InPlace(Change):
        def __call__(self, value, target):
            return value.zero_()

    def conditions(change):
        own = [Intervention(Site(1, "heads"), change, heads=heads) for heads in ((0,), (0, 1), (0, 2), None)]
        return [(each,) for each in own] + [
            *((Intervention(each.site, RandomDirection((each,)), heads=each.heads),) for each in own),
            (Intervention(Site(1, "heads"), InSubspace(change, 16, "0")),),
        ]

    zero, in_place = (sweep(shape("llama"), PROMPTS, conditions(change), [KL()]) for change in (Zero(), InPlace()))
    assert np.array_equal(zero, in_place)
    assert (zero > 1e-4).all()


@pytest.mark.parametrize("inside", [lambda change: change, lambda change: InSubspace(change, 8, "here")])
def test_what_a_change_sees_of_other_positions_is_whole_though_only_the_readout_is_changed(shape, inside):
    class Before(Change):
        def __call__(self, value, target):
            return target.context.clean(Site(target.site.layer, "resid_pre")).cumsum(1)

        def reads_sites(self, site):
            return (Site(site.layer, "resid_pre"),)

    model = shape("lfm2")
    conditions = [(Intervention(site, inside(Before()), positions="last"),) for site in model.sites("mlp_out")]
    last = sweep(model, PROMPTS, conditions, [KL()])
    assert ref.agree(last, sweep(model, PROMPTS, conditions, [KL(), KL("all")])[:1])


@pytest.mark.parametrize("name", ["lfm2", "lfm2-all-conv", "lfm2-kernel-4-biased", "llama"])
def test_only_what_decides_the_readout_is_run(shape, name, monkeypatch):
    """Convolutions at the end run on the positions that they read; the numbers are those of a run on all."""
    model = shape(name)
    cases = [case for case in all_cases(model) if any(part.positions != "last" for part in case)]
    whole = measured(model, cases)[0]  # KL at scope all is read as well, so every position is run
    run_layer, lengths = model.run_layer, {}

    def spy(layer, hidden, *rest):
        lengths.setdefault(layer, set()).add(hidden.shape[1])
        return run_layer(layer, hidden, *rest)

    monkeypatch.setattr(model, "run_layer", spy)
    assert ref.agree(measured(model, cases, [KL()])[0], whole)
    kernel = model.adapter.receptive_field(2)
    shortest = {layer: min(found) for layer, found in lengths.items()}
    everything = min(prompt.readout + 1 for prompt in PROMPTS)
    expected = everything if kernel is None else kernel
    assert shortest[2] == expected
    if name == "lfm2-all-conv":
        assert shortest[1] == min(2 * kernel - 1, everything)


@pytest.mark.parametrize("name", ["llama-untied-biased", "lfm2", "lfm2-kernel-4-biased"])
def test_skipping_a_layer_is_joint_at_zero(shape, name):
    """Block output := block input, by a plain hook, is what ``joint`` at ``zero`` measures."""
    model = shape(name)
    for layer in range(model.n_layers):
        joint = tuple(Intervention(Site(layer, kind), Zero()) for kind in ("operator_out", "mlp_out"))
        ours = sweep(model, PROMPTS, [joint], [KL()])[0, :, 0]
        for row, prompt in enumerate(PROMPTS):
            clean = ref.logits(model.model, prompt.ids)
            entering = ref.values(model.model, prompt.ids, layer, "resid_pre")
            skipped = ref.logits(model.model, prompt.ids, [(layer, "resid_post", lambda _, x=entering: x)])
            assert ref.agree(ours[row], ref.kl(clean[prompt.readout], skipped[prompt.readout]))


def test_a_change_that_changes_nothing_is_exactly_zero(shape):
    model = shape("lfm2")
    nothing = [(Intervention(site, Add(torch.zeros(32))),) for site in editable(model) if site.kind != "heads"]
    nothing += [(Intervention(Site(0, "mlp_out"), FromRun("self")),)]
    own = {"self": [prompt.ids for prompt in PROMPTS]}
    values = sweep(model, PROMPTS, nothing, METRICS, runs=own)
    assert np.nanmax(np.abs(values)) == 0


def test_a_change_that_changes_nothing_leaves_what_is_done_beside_it(shape):
    """Where the last of several changes is none, as with a donor of the same value, the condition still is one."""
    model, nothing = shape("lfm2"), Add(torch.zeros(32))
    for site, behind in [("operator_out", Site(2, "mlp_out")), ("mlp_out", Site(1, "resid_post"))]:
        one = Intervention(Site(1, site), Zero())
        both = (one, Intervention(behind, nothing))
        alone, beside = sweep(model, PROMPTS, [(one,), both], [KL()])[0].T
        assert ref.agree(alone, beside)
        assert (alone > 1e-3).all()


def test_a_change_after_the_last_position_that_is_read_does_nothing(shape):
    """Prompt c runs one token of its target; ``all`` reads the text only, ``other`` leaves the target alone."""
    model = shape("llama")
    condition = (Intervention(Site(0, "mlp_out"), Mean(), positions="other"),)
    values = sweep(model, PROMPTS, [condition], [KL()], means=random_means(model))
    assert values.min() > 0
    untouched = token_prompt("short", 2, subject=())  # its two positions are the first and the readout
    values = sweep(model, [untouched], [condition], [KL(), KL("all")], means=random_means(model))
    assert values.max() == 0


def test_logits_that_are_not_finite_stay_with_their_prompt_and_condition(shape):
    """One condition overflows in one prompt; its neighbours in batch and condition keep their numbers."""
    model = shape("llama")
    far = (Intervention(Site(1, "resid_post"), Add(torch.full((32,), torch.inf)), positions="subject"),)
    near = (Intervention(Site(1, "resid_post"), Add(VECTOR)),)
    # The second prompt has no subject, so nothing is added there.
    prompts = [token_prompt("has", 5), token_prompt("lacks", 5, seed=3, subject=())]
    values = sweep(model, prompts, [far, near], [KL(), KL("all"), Top1Changed()])
    assert np.isnan(values[:, 0, 0]).all()
    assert (values[:, 1, 0] == 0).all()
    alone = sweep(model, prompts, [near], [KL(), KL("all"), Top1Changed()])
    assert ref.agree(values[:, :, 1], alone[:, :, 0])


def test_logits_that_a_change_makes_finite_are_held_against_none(shape):
    model, beyond = shape("llama"), Add(torch.full((32,), torch.inf))
    with model.intervene([Intervention(Site(0, "mlp_out"), beyond)]):
        values = sweep(model, PROMPTS, [(Intervention(Site(1, "resid_post"), Zero()),)], METRICS)
    assert np.isnan(values).all()


def test_two_changes_of_one_value_are_made_one_after_the_other(shape):
    model, prompt, site = shape("llama"), token_prompt("a", 5), Site(1, "mlp_out")
    both = (Intervention(site, Add(torch.linspace(-1, 1, 32))), Intervention(site, Zero()))
    clean = ref.logits(model.model, prompt.ids)[prompt.readout]
    zeroed = ref.logits(model.model, prompt.ids, [(1, "mlp_out", torch.zeros_like)])[prompt.readout]
    assert ref.agree(sweep(model, [prompt], [both], [KL()])[0, 0, 0], ref.kl(clean, zeroed))
