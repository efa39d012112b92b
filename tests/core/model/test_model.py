"""HookedModel: capture and edit sites, refuse what is not there, tell whether weights were touched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import reference as ref
import torch
from models import SHAPES, build

from xatlas import manager
from xatlas.api import load
from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Zero
from xatlas.model import HookedModel
from xatlas.model.hooked import adapter_for
from xatlas.model.hooks import LayerCall, attached, count_hooks, one_row
from xatlas.suites import Prompt
from xatlas.testing import tiny_model
from xatlas.vocabulary import READ_ONLY, SITE_KINDS

IDS = torch.tensor([[5, 17, 60, 3, 44], [9, 2, 71, 30, 8]])


def editable(model):
    kinds = [kind for kind in SITE_KINDS if kind not in READ_ONLY]
    return [site for kind in kinds for site in model.sites(kind)]


@pytest.mark.parametrize("name", SHAPES)
def test_captured_values_are_those_of_plain_hooks(shape, name):
    model = shape(name)
    sites = editable(model)
    values = model.capture(IDS, [*sites, sites[0]])
    for row, ids in enumerate(IDS.tolist()):
        plain = ref.every_value(model.model, ids, [(site.layer, site.kind) for site in sites])
        for site in sites:
            torch.testing.assert_close(values[site][row], plain[site.layer, site.kind][0], atol=2e-5, rtol=1e-5)


def test_a_record_that_is_refused_leaves_no_hooks(shape):
    model = shape("llama")
    with pytest.raises(XatlasError, match="unknown site kind in layer 1"):
        model.record(IDS, [Site(0, "mlp_out"), Site(1, "conv_gate")])
    assert count_hooks(model.model) == 0


@pytest.mark.parametrize("name", ["llama", "lfm2-kernel-4-biased"])
def test_edits_are_those_of_plain_hooks_and_leave_nothing_behind(shape, name):
    model = shape(name)
    before = model.model(input_ids=IDS).logits
    for site in editable(model):
        with torch.no_grad(), attached(model.edit_hooks(site, lambda value: value * 0.5 + 0.1)):
            ours = model.model(input_ids=IDS[:1], use_cache=False).logits[0].double()
        plain = ref.logits(model.model, IDS[0].tolist(), [(site.layer, site.kind, lambda v: v * 0.5 + 0.1)])
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)
    assert torch.equal(model.model(input_ids=IDS).logits, before)


def test_an_edit_that_fails_leaves_no_hook(shape):
    model = shape("llama")

    def failing(value):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), attached(model.edit_hooks(Site(1, "resid_mid"), failing)):
        model.model(input_ids=IDS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


@pytest.mark.parametrize("name", ["Lfm2ForCausalLM", "LlamaForCausalLM"])
def test_attention_patterns_are_hugging_faces_own(name):
    """Layer by layer; and the model attends as before afterwards."""
    model = tiny_model(manager.adapters()[name])
    before = model.model.config._attn_implementation
    assert before != "eager"
    patterns = model.capture(IDS, model.sites("attention_pattern"))
    assert model.model.config._attn_implementation == before
    model.model.set_attn_implementation("eager")
    with torch.inference_mode():
        theirs = [each for each in model.model(IDS, output_attentions=True).attentions if each is not None]
    assert len(theirs) == len(patterns) == model.operator_types.count("attention")
    for own, other in zip(patterns.values(), theirs, strict=True):
        torch.testing.assert_close(own, other)
        torch.testing.assert_close(own.sum(-1), torch.ones(own.shape[:-1]))


def test_a_model_attends_as_before_when_reading_patterns_fails(monkeypatch):
    model = HookedModel(build("llama"), None)
    before = model.model.config._attn_implementation
    monkeypatch.setattr(model, "run", lambda ids: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.capture(IDS, [Site(0, "attention_pattern")])
    assert model.model.config._attn_implementation == before


def test_outside_of_a_capture_patterns_need_eager_attention(shape):
    with pytest.raises(XatlasError, match=r"layers\.0\.self_attn returns no attention weights.*--attention eager"):
        shape("llama").record(IDS, [Site(0, "attention_pattern")])


def test_sites_that_are_not_there_are_named(shape):
    model = shape("lfm2")
    with pytest.raises(XatlasError, match="layer 3 is out of range: the model has layers 0 to 2"):
        model.point(Site(3, "mlp_out"))
    with pytest.raises(XatlasError, match=r"unknown site kind in layer 0 \(conv\) 'heads'.*Valid: conv_carrier"):
        model.point(Site(0, "heads"))
    with pytest.raises(XatlasError, match="did you mean 'mlp_out'"):
        model.point(Site(0, "mlp_ot"))
    assert not model.has(Site(-1, "mlp_out"))
    assert [site.layer for site in model.sites("conv_gate")] == [0, 2]


@pytest.mark.parametrize(
    ("architecture", "config", "told"),
    [
        ("Qwen9ForCausalLM", {}, r"no adapter names the hook points of Qwen9ForCausalLM\. The nearest is Qwen\d"),
        ("ElectraForCausalLM", {}, r"no adapter .* of ElectraForCausalLM\. 'xatlas architectures' lists"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "is an encoder-decoder"),
        ("LLaDAModelLM", {}, "is a diffusion model"),
    ],
)
def test_a_model_without_an_adapter_is_told_by_what_it_is(architecture, config, told):
    class Loaded:
        pass

    Loaded.__name__ = architecture
    Loaded.config = SimpleNamespace(to_dict=lambda: config)
    with pytest.raises(XatlasError, match=told) as error:
        adapter_for(Loaded())
    assert len(str(error.value)) < 220


def test_a_model_without_a_tokenizer_can_not_read_a_suite(shape):
    with pytest.raises(XatlasError, match="without a tokenizer"):
        shape("llama").read([])


def test_the_checksum_notices_one_changed_number():
    model = HookedModel(build("llama"), None)
    before = model.checksum()
    assert before == HookedModel(build("llama"), None).checksum()
    with torch.no_grad():
        model.model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    assert model.checksum() != before


def test_an_argument_that_differs_between_rows_is_refused():
    """One row's arguments stand for all rows, which is wrong as soon as rows are padded differently."""
    same, odd = torch.ones(3, 4), torch.tensor([[1, 1], [0, 1], [1, 1]])
    assert one_row({"a": (same, 2)}, 3)["a"][0].shape == (1, 4)
    with pytest.raises(XatlasError, match="differs between prompts"):
        one_row({"mask": odd}, 3)


def test_an_argument_of_each_prompt_stands_beside_that_prompt_in_every_block():
    call = LayerCall((), {}, {"mask": torch.tensor([[[0], [1]], [[2], [3]]])})  # two rows for each of two prompts
    assert call.for_rows(4, 2)["mask"].flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert call.for_rows(3, 1)["mask"].flatten().tolist() == [0, 1] * 3


def test_a_text_is_run_as_the_prompt_of_that_text():
    model, text, site = load("lfm2-mini", device="cpu"), "The capital of France is", Site(1, "mlp_out")
    prompt = model.read([Prompt("a", "f", text)]).prompts
    ids = model.tokens(prompt)
    assert ids[0, 0] == model.reader.first_token
    assert torch.equal(model.tokens(text), ids)
    assert torch.equal(model.capture(text, sites=[site])[site], model.capture(ids, [site])[site])
    with torch.no_grad():
        assert torch.equal(model.run(text).last_hidden_state, model.run(ids).last_hidden_state)
        changed = model.run(text, interventions=[Intervention(site, Zero())]).last_hidden_state
        with model.intervene([Intervention(site, Zero())]):
            wanted = model.model(input_ids=ids).logits.float()
        torch.testing.assert_close(model.adapter.module("lm_head")(changed).float(), wanted, atol=1e-5, rtol=1e-5)
        assert not torch.equal(changed, model.run(ids).last_hidden_state)
    with pytest.raises(XatlasError, match="without a tokenizer"):
        HookedModel(build("llama"), None).capture("a text", [site])


def test_a_text_without_tokens_is_refused():
    with pytest.raises(XatlasError, match="not empty"):
        load("lfm2-mini", device="cpu").run("")


def test_a_model_says_what_it_is_in_one_line(shape):
    assert repr(shape("lfm2")) == (
        "<HookedModel lfm2: Lfm2ForCausalLM, 3 layers (2 conv, 1 attention) of width 32, float32 on cpu>"
    )
