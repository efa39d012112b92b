"""Interventions held over Hugging Face's own forward and ``generate``."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import permutations

import pytest
import reference as ref
import torch
from models import build

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Add, FromRun, InSubspace, Intervention, Mean, One, RandomDirection, Zero
from xatlas.model import HookedModel
from xatlas.vocabulary import forward_order

PROMPT = torch.tensor([[5, 17, 60, 3, 44]])
SHORT = torch.tensor([[71, 30, 8]])
VECTOR = torch.linspace(-2, 2, 32)


def generate(model, ids, mask=None, **more):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, **more)


def padded():
    ids = torch.cat([PROMPT, torch.cat([torch.zeros(1, 2, dtype=torch.long), SHORT], 1)])
    return ids, torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def grow(model, ids, edits, steps=6):
    """Generate greedily, a whole plain forward per token."""
    tokens = ids[0].tolist()
    for _ in range(steps):
        tokens.append(int(ref.logits(model, tokens, edits)[-1].argmax()))
    return tokens


@pytest.mark.parametrize("name", ["llama", "qwen2", "lfm2", "lfm2-kernel-4-biased"])
@pytest.mark.parametrize(
    ("site", "change", "plain"),
    [
        (Site(1, "mlp_out"), Zero(), torch.zeros_like),
        (Site(0, "resid_mid"), Add(VECTOR), lambda value: value + VECTOR),
        (Site(2, "operator_out"), Add(VECTOR), lambda value: value + VECTOR),
    ],
)
def test_every_decode_step_is_intervened_on(shape, name, site, change, plain):
    """Cached decoding under ``intervene`` gives the tokens of uncached forwards under plain hooks."""
    model = shape(name)
    wanted = grow(model.model, PROMPT, [(site.layer, site.kind, plain)])
    with model.intervene([Intervention(site, change)]):
        assert generate(model.model, PROMPT)[0].tolist() == wanted
    assert generate(model.model, PROMPT)[0].tolist() == grow(model.model, PROMPT, [])


def test_a_forward_under_intervene_is_that_of_plain_hooks(shape):
    model = shape("lfm2")
    heads = Intervention(Site(1, "heads"), Zero(), heads=(1,))
    with torch.no_grad(), model.intervene([heads, Intervention(Site(2, "conv_gate"), Zero())]):
        ours = model.model(input_ids=PROMPT).logits[0].double()

    def without_head(value):
        value = value.clone()
        value[:, :, 1] = 0
        return value

    plain = ref.logits(
        model.model, PROMPT[0].tolist(), [(1, "heads", without_head), (2, "conv_gate", torch.zeros_like)]
    )
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "lfm2"])
def test_a_left_padded_batch_gives_what_its_prompts_give_alone(shape, name):
    model = shape(name)
    means = {Site(1, "mlp_out"): torch.stack([VECTOR, -VECTOR])}
    held = [
        Intervention(Site(0, "mlp_out"), Zero(), positions="first"),
        Intervention(Site(1, "mlp_out"), Mean()),
        Intervention(Site(2, "resid_post"), Add(VECTOR), positions="last"),
    ]
    ids, mask = padded()
    with model.intervene(held, means):
        alone = [generate(model.model, PROMPT)[0, 5:].tolist(), generate(model.model, SHORT)[0, 3:].tolist()]
        together = generate(model.model, ids, mask)[:, 5:].tolist()
        with torch.no_grad():
            single = model.model(input_ids=SHORT).logits[0]
            batch = model.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits[1, 2:]
    assert together == alone
    torch.testing.assert_close(batch, single, atol=1e-4, rtol=1e-4)


def positions(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


def test_padding_in_front_of_a_biased_convolution_warns_and_equals_hugging_face(shape):
    """HF itself is not exact there; held interventions give what plain hooks give in the same padded run."""
    model = shape("lfm2-kernel-4-biased")
    ids, mask = padded()

    def zero_real(_, __, output):
        return torch.where(mask.bool()[:, :, None], torch.zeros_like(output), output)

    with torch.no_grad(), ExitStack() as stack:
        handle = model.model.get_submodule("model.layers.1.feed_forward").register_forward_hook(zero_real)
        stack.callback(handle.remove)
        plain = model.model(input_ids=ids, attention_mask=mask).logits
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="padding in front of a convolution with bias is not exact"),
        model.intervene([Intervention(Site(1, "mlp_out"), Zero())]),
    ):
        ours = model.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_only_padding_before_a_biased_convolution_warns(shape, recwarn):
    ids, mask = padded()
    runs = [("lfm2", ids, mask), ("lfm2-kernel-4-biased", PROMPT, torch.ones_like(PROMPT))]
    for name, ids, mask in runs:
        with torch.no_grad(), shape(name).intervene([Intervention(Site(1, "mlp_out"), Zero())]):
            shape(name).model(input_ids=ids, attention_mask=mask)
    assert not [warning for warning in recwarn if "padding" in str(warning.message)]


def test_last_is_the_newest_token_of_each_step(shape):
    """In the prompt that is its last token, in each decode step the one token that is run."""
    model, seen = shape("llama"), []

    class Look(Add):
        def __call__(self, value, target):
            seen.append(target.context.mask("last").tolist())
            return super().__call__(value, target)

    with model.intervene([Intervention(Site(1, "mlp_out"), Look(VECTOR), positions="last")]):
        found = generate(model.model, PROMPT)[0].tolist()
    assert seen == [[[False] * 4 + [True]]] + [[[True]]] * 5

    def newest(since):
        def change(value):
            value = value.clone()
            value[:, since:] += VECTOR
            return value

        return change

    # Cached keys keep the change of earlier newest tokens: it was made at every position from the prompt's end on.
    assert found == grow(model.model, PROMPT, [(1, "mlp_out", newest(4))])


def test_first_is_position_0_only_once(shape):
    model = shape("llama")

    def first(value):
        value = value.clone()
        value[:, 0] += VECTOR
        return value

    with model.intervene([Intervention(Site(0, "mlp_out"), Add(VECTOR), positions="first")]):
        found = generate(model.model, PROMPT)[0].tolist()
    assert found == grow(model.model, PROMPT, [(0, "mlp_out", first)])


OWN = (Intervention(Site(0, "mlp_out"), Zero()),)


@pytest.mark.parametrize("size", [0.0, 1e8])
def test_a_stream_that_is_replaced_after_the_operator_keeps_nothing_of_one_however_large(shape, size):
    """It is edited by way of what the operator adds, of which a small one is lost beside a large stream."""
    model, end = shape("llama"), Site(1, "resid_post")
    replaced = Intervention(Site(1, "resid_mid"), One())
    with model.intervene([replaced]):
        plain = model.capture(PROMPT, [end])[end]
    with model.intervene([Intervention(Site(1, "resid_pre"), Add(torch.full((32,), size))), replaced]):
        found = model.capture(PROMPT, [end])[end]
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    "kinds", [*permutations(("resid_pre", "operator_out", "resid_mid", "mlp_out", "resid_post"), 2)]
)
def test_edits_are_made_in_the_forwards_order_however_they_are_given(shape, kinds):
    """Also where both hook one module: the stream after the operator is edited by way of the operator's output."""
    model, ids = shape("llama"), PROMPT[0].tolist()
    changes = [(Zero(), torch.zeros_like), (Add(VECTOR), lambda value: value + VECTOR)]
    parts = [Intervention(Site(1, kind), change) for kind, (change, _) in zip(kinds, changes, strict=True)]
    edits = [(1, kind, plain) for kind, (_, plain) in zip(kinds, changes, strict=True)]
    wanted = ref.logits(model.model, ids, sorted(edits, key=lambda edit: forward_order(edit[1])))
    for given in (parts, parts[::-1]):
        with model.intervene(given):
            logits = model.model(input_ids=PROMPT).logits[0].double()
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (Intervention(Site(1, "heads"), Zero(), heads=(4,)), "head 4 is out of range: layer 1 has heads 0 to 3"),
        (
            Intervention(Site(0, "mlp_out"), FromRun("donor")),
            "no other run to take values from: use zero",
        ),
        (Intervention(Site(0, "mlp_out"), RandomDirection(OWN)), r"no other run|no clean run"),
        (Intervention(Site(0, "mlp_out"), Mean()), "no reference mean was given for L0.mlp_out"),
        (Intervention(Site(7, "mlp_out"), Zero()), "layer 7 is out of range"),
    ],
)
def test_what_can_not_be_held_is_refused_at_once(shape, held, told):
    model = shape("llama")
    with pytest.raises(XatlasError, match=told), model.intervene([held]):
        pytest.fail("it was held")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_positions_that_only_a_prompt_has_are_refused(shape):
    model = shape("llama")
    with (
        pytest.raises(XatlasError, match="positions 'subject' are not known: use all, first, rest or last"),
        model.intervene([Intervention(Site(0, "mlp_out"), Zero(), positions="subject")]),
    ):
        model.model(input_ids=PROMPT)


def test_generation_without_attention_layers_is_one_clear_line(shape):
    model = shape("lfm2-all-conv")
    with (
        pytest.raises(XatlasError, match=r"no attention layer.*pass use_cache=False"),
        model.intervene([Intervention(Site(0, "mlp_out"), Zero())]),
    ):
        generate(model.model, PROMPT)
    with model.intervene([Intervention(Site(0, "mlp_out"), Zero())]):
        found = generate(model.model, PROMPT, use_cache=False)[0].tolist()
    assert found == grow(model.model, PROMPT, [(0, "mlp_out", torch.zeros_like)])


def test_nothing_is_held_after_an_error_inside():
    model = HookedModel(build("llama"), None)
    before = model.model(input_ids=PROMPT).logits
    with pytest.raises(KeyError), model.intervene([Intervention(Site(0, "mlp_out"), Zero())]):
        raise KeyError
    assert torch.equal(model.model(input_ids=PROMPT).logits, before)


def test_a_run_draws_its_directions_by_its_seed(shape):
    model, ids = shape("llama"), torch.tensor([[5, 17, 60, 3]])
    held = [Intervention(Site(1, "mlp_out"), InSubspace(Zero(), 4, "here"))]
    with torch.no_grad():
        one, two = (model.run(ids, held, seed=seed).last_hidden_state for seed in (0, 1))
        with model.intervene(held, seed=1):
            assert torch.equal(model.run(ids).last_hidden_state, two)
    assert not torch.allclose(one, two)
