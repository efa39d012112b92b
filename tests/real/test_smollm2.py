"""Real trained weights: the engine, the proof and the best-known fact about small Llamas' MLPs."""

from __future__ import annotations

import os

import numpy as np
import pytest
import reference as ref
import torch

from xatlas.config import find_suite
from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Mean, RandomDirection, Zero
from xatlas.metrics import KL, DeltaNLL, LogitDifference, Top1Changed
from xatlas.model import HookedModel
from xatlas.model.proof import prove
from xatlas.plugins.attention_patterns import AttentionPatterns
from xatlas.probing.means import reference_means
from xatlas.probing.patching import Patching, read_pairs
from xatlas.suites import Prompt, Suite
from xatlas.sweep import sweep

pytestmark = pytest.mark.real

PROMPTS = [
    Prompt("france", "facts", "The capital of France is", target=" Paris", foil=" Rome"),
    Prompt("copy", "copying", "red blue green red blue", target=" green", foil=" red"),
    Prompt("sum", "sums", "2 + 3 =", target=" 5", foil=" 7"),
    Prompt("days", "order", "Monday, Tuesday,", target=" Wednesday", foil=" Sunday"),
    Prompt("count", "order", "one two three", target=" four", foil=" two"),
    Prompt("close", "code", "print(x", target=")", foil="]"),
]


@pytest.fixture(scope="session")
def smollm2():
    from xatlas.loading.loader import load
    from xatlas.loading.model_names import resolve

    try:
        resolved = resolve("smollm2-135m-q4")
    except XatlasError as error:
        if "CI" in os.environ:  # where it can be had, so that what fails is ours
            raise
        pytest.skip(f"smollm2-135m-q4 can't be had here: {error}")
    parts = load(resolved, device="cpu")
    return HookedModel(parts.model, parts.tokenizer, prove=False)


@pytest.fixture(scope="session")
def tokens(smollm2):
    found = smollm2.read(PROMPTS)
    assert not found.dropped
    return found.prompts


def test_the_proof_passes_on_every_layer(smollm2):
    prove(smollm2)
    assert smollm2.n_layers == 30
    assert {(layout.n_heads, layout.n_kv_heads, layout.d_head) for layout in smollm2.head_layouts} == {(9, 3, 64)}


def without(*heads):
    def change(value):
        value = value.clone()
        value[:, :, list(heads)] = 0
        return value

    return change


def test_the_engine_gives_the_numbers_of_the_reference_loop(smollm2, tokens):
    zero = torch.zeros_like
    cases = []
    for layer in (0, 14, 29):
        operator, mlp = Site(layer, "operator_out"), Site(layer, "mlp_out")
        both = (Intervention(operator, Zero()), Intervention(mlp, Zero()))
        cases += [
            (both[:1], [(layer, "operator_out", zero)]),
            (both[1:], [(layer, "mlp_out", zero)]),
            (both, [(layer, "operator_out", zero), (layer, "mlp_out", zero)]),
            ((Intervention(Site(layer, "heads"), Zero(), heads=(3, 4, 5)),), [(layer, "heads", without(3, 4, 5))]),
        ]
    metrics = [KL(), KL("all"), DeltaNLL(), Top1Changed(), LogitDifference()]
    ours = sweep(smollm2, tokens[:3], [condition for condition, _ in cases], metrics)
    theirs = np.empty_like(ours)
    for row, prompt in enumerate(tokens[:3]):
        clean = ref.logits(smollm2.model, prompt.ids)
        for column, (_, edits) in enumerate(cases):
            theirs[:, row, column] = ref.measure(prompt, clean, ref.logits(smollm2.model, prompt.ids, edits))
    # The logits themselves, thousands of them per prompt, are summed here in float64 and there in float32.
    assert ref.agree(ours, theirs), np.abs(ours - theirs).max((1, 2))


@pytest.mark.parametrize(
    ("suite", "agreeing", "by_nll", "by_kl"),
    [("quick[2]", 0.8, 2.5, 1.8), pytest.param("quick", 0.9, 3, 2.2, marks=pytest.mark.slow)],
)
def test_zeroing_mlps_finds_layer_0(smollm2, suite, agreeing, by_nll, by_kl):
    """Without layer 0 the target loses three times what it loses without any other; and nearly every family agrees.

    By KL it leads by less, 2.5 times the next layer on `quick` and 1.8 times where all positions are read: what
    else could follow moves more than the target does.
    """
    prompts = smollm2.read(find_suite(suite).prompts).prompts
    conditions = [(Intervention(site, Zero()),) for site in smollm2.sites("mlp_out")]
    effects = sweep(smollm2, prompts, conditions, [DeltaNLL(), KL()])  # (metric, prompt, layer)
    families = [prompt.prompt.family for prompt in prompts]
    members = [[f == family for f in families] for family in sorted(set(families))]
    nll, kl = (np.stack([effect[rows].mean(0) for rows in members]) for effect in effects)  # (family, layer)
    assert (nll.argmax(1) == 0).mean() > agreeing
    assert (kl.argmax(1) == 0).mean() > 0.9
    assert nll.mean(0)[0] >= by_nll * nll.mean(0)[1:].max()
    assert kl.mean(0)[0] >= by_kl * kl.mean(0)[1:].max()


def test_the_finding_is_more_than_a_matter_of_norm(smollm2, tokens):
    """A random change of the same norm at the same place does less on most prompts."""
    own = (Intervention(Site(0, "mlp_out"), Zero()),)
    controls = [(Intervention(Site(0, "mlp_out"), RandomDirection(own, draw)),) for draw in range(4)]
    values = sweep(smollm2, tokens, [own, *controls], [KL()])[0]
    assert (values[:, :1] > values[:, 1:]).mean() > 0.7


def test_the_mlp_that_writes_the_massive_activation_shows_at_position_0_and_not_by_its_mean(smollm2, tokens):
    sites = smollm2.sites("mlp_out")
    written = [smollm2.capture(smollm2.tokens([prompt]), sites) for prompt in tokens]
    writers = {max(sites, key=lambda site: float(values[site][0, 0].norm())) for values in written}
    assert writers == {Site(11, "mlp_out")}
    (writer,) = writers
    silent = [(Intervention(site, Zero(), positions="first"),) for site in sites]
    reference = smollm2.read(find_suite("train"))
    means = reference_means(smollm2, reference, [writer]).values
    values = sweep(smollm2, tokens, [*silent, (Intervention(writer, Mean()),)], [KL()], means=means)[0].mean(0)
    assert int(values[:-1].argmax()) == writer.layer
    assert values[writer.layer] > 10 * values[-1]


def test_mean_ablation_at_a_prompts_own_values_is_nothing(smollm2, tokens):
    """With the prompt's two means at a text of two tokens, mean ablation leaves the model as it is."""
    short = smollm2.reader.prompt(Prompt("short", "f", "Hello"))
    site = Site(3, "mlp_out")
    value = smollm2.capture(smollm2.tokens([short]), [site])[site]
    assert value.shape[1] == 2
    kl = sweep(smollm2, [short], [(Intervention(site, Mean()),)], [KL()], means={site: value[0]})
    assert kl.max() < 1e-8


def test_the_capital_moves_with_the_patch(smollm2):
    text, twin = "The capital of France is", "The capital of Japan is"
    prompt = Prompt("capital", "recall", text, " Paris", " Tokyo", twin, (15, 21))
    pairs = read_pairs(smollm2, Suite("capitals", (prompt,)), 0.5)
    patching = Patching(smollm2, pairs, ("resid_post",), ("subject", "last"))
    stream = patching.recovery("denoise", Inputs(), "test", control=False)["recovery"].isel(prompt=0, site=0)
    subject, readout = (stream.sel(position=name).values for name in ("subject", "last"))  # (layer,)
    assert subject[0] > 0.9
    assert readout[0] < 0.1
    assert readout[-2] > 0.9
    assert subject[-2] < 0.1


def test_an_induction_head_loses_its_score_with_its_pattern(smollm2):
    """Its queries set to zero, it looks at all tokens alike: that is the head, and of its layer no other."""
    suite, (layer, head) = Suite("two", tuple(PROMPTS[:2])), (18, 6)
    period = AttentionPatterns().parameters.period

    def scores():
        return AttentionPatterns().measure(smollm2, suite, Inputs())["induction_score"].mean("prompt")

    before = scores()
    assert [int(before.argmax(...)[dim]) for dim in ("layer", "head")] == [layer, head]
    assert float(before.max()) > 0.6
    d_head = smollm2.head_layouts[layer].d_head
    queries = smollm2.adapter.module(smollm2.adapter.roles(layer)["attention.q"]).weight
    own = slice(head * d_head, (head + 1) * d_head)
    kept = queries[own].clone()
    try:
        with torch.no_grad():
            queries[own] = 0
        after = scores()
    finally:
        with torch.no_grad():
            queries[own] = kept
    even = np.mean([1 / (query + 1) for query in range(period + 1, 2 * period + 1)])
    assert float(after[layer, head]) == pytest.approx(even, rel=1e-3)
    others = [other for other in range(before.sizes["head"]) if other != head]
    np.testing.assert_allclose(after[: layer + 1, others], before[: layer + 1, others], rtol=1e-4, atol=1e-6)


def test_writes_sum_to_the_logit_difference_and_the_lens_ends_in_the_output(smollm2):
    """In a stream with massive coordinates, too: what the norm scales down is a thousand times what tells answers."""
    from xatlas.plugins.direct_logit_attribution import DirectLogitAttribution
    from xatlas.plugins.logit_lens import LogitLens
    from xatlas.probing.reading import read_together

    suite = Suite("real", tuple(PROMPTS))
    lens, parts = read_together([LogitLens(), DirectLogitAttribution()], smollm2, suite, [Inputs(), Inputs()])
    total = (parts.embedding + parts.attribution.sum(["layer", "component"])).values
    heads = parts.attribution_head.sum("head") - parts.attribution.sel(component="operator", drop=True)
    size = float(abs(parts.attribution).max())
    assert float(abs(heads).max()) < 1e-4 * size
    for row, prompt in enumerate(smollm2.read(suite).prompts):
        own = ref.logits(smollm2.model, list(prompt.ids))[prompt.readout].double()
        gap = float(own[prompt.answer] - own[prompt.foil_answer])
        assert abs(total[row] - gap) < 1e-4 * max(size, abs(gap))
        last = lens.isel(prompt=row).sel(layer=smollm2.n_layers - 1, site="resid_post")
        np.testing.assert_allclose(last.target_logprob, own.log_softmax(-1)[prompt.answer], atol=1e-4, rtol=1e-4)
    rank = lens.target_rank.mean("prompt")
    before, after = rank.sel(layer=0, site="resid_pre"), rank.sel(layer=smollm2.n_layers - 1, site="resid_post")
    assert before > 100 * after
