"""Interventions held over ``generate`` in models whose cache goes by another name and does not count its tokens."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from models import VOCABULARY, build

from xatlas.contracts.adapter import Adapter, HookPoint, Site
from xatlas.errors import XatlasError
from xatlas.interventions import Add, Intervention, Mean, Zero
from xatlas.model import HookedModel
from xatlas.testing import tiny_hf_model

PROMPT, SHORT = torch.tensor([[5, 17, 60, 3, 44]]), torch.tensor([[71, 30, 8]])
VECTOR = torch.linspace(-2, 2, 32)
SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SITE = Site(1, "operator_out")


class MambaAdapter(Adapter):
    architectures = ("Mamba2ForCausalLM", "MambaForCausalLM")
    layers_path = "backbone.layers"
    embedding_path = "backbone.embeddings"
    final_norm_path = "backbone.norm_f"

    def operator_type(self, layer):
        return "ssm"

    def roles(self, layer):
        return {"ssm.out": f"{self.layer_path(layer)}.mixer.out_proj"}

    def hook_points(self, layer):
        block = self.layer_path(layer)
        return {
            "resid_pre": HookPoint(block, "input"),
            "operator_out": HookPoint(f"{block}.mixer", "output"),
            "resid_post": HookPoint(block, "output"),
        }


class RwkvAdapter(Adapter):
    """The first block norms the embedding before its stream begins."""

    architectures = ("RwkvForCausalLM",)
    layers_path = "rwkv.blocks"
    embedding_path = "rwkv.embeddings"
    final_norm_path = "rwkv.ln_out"
    unembedding_path = "head"

    def operator_type(self, layer):
        return "linear_attention"

    def roles(self, layer):
        return {"mlp.down": f"{self.layer_path(layer)}.feed_forward.value"}

    def hook_points(self, layer):
        block = self.layer_path(layer)
        return {
            "resid_pre": HookPoint(block, "input") if layer else HookPoint(f"{block}.pre_ln", "output"),
            "operator_out": HookPoint(f"{block}.attention", "output"),
            "resid_mid": HookPoint(f"{block}.ln2", "input", edit_as="operator_out"),
            "mlp_out": HookPoint(f"{block}.feed_forward", "output"),
            "resid_post": HookPoint(block, "output"),
        }


def mamba2():
    more = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 4}
    return tiny_hf_model("Mamba2ForCausalLM", **SIZES, **more), MambaAdapter


def mamba():
    return tiny_hf_model("MambaForCausalLM", **SIZES, state_size=8), MambaAdapter


def rwkv():
    return tiny_hf_model("RwkvForCausalLM", **SIZES, context_length=128, rescale_every=0), RwkvAdapter


@pytest.fixture(scope="module", params=[mamba2, mamba, rwkv])
def model(request):
    made, adapter = request.param()
    return HookedModel(made, None, adapter=adapter(made))


def generate(model, ids, mask=None, **more):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, **more)


def grow(model, ids, change):
    """Generate greedily, a whole forward per token, the operator of layer 1 changed by a plain hook."""
    point, tokens = model.point(SITE), ids[0].tolist()

    def edit(_, __, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = model.model.get_submodule(point.module).register_forward_hook(edit)
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    handle.remove()
    return tokens


def first(value):
    value = value.clone()
    value[:, 0] += VECTOR
    return value


def since_the_prompts_end(value):
    value = value.clone()
    value[:, 4:] += VECTOR
    return value


def mean(value):
    return torch.cat([VECTOR.expand_as(value[:, :1]), -VECTOR.expand_as(value[:, 1:])], 1)


MEANS = {SITE: torch.stack([VECTOR, -VECTOR])}


@pytest.mark.parametrize(
    ("change", "positions", "plain"),
    [
        (Zero(), "all", torch.zeros_like),
        (Add(VECTOR), "first", first),
        (Add(VECTOR), "last", since_the_prompts_end),
        (Mean(), "all", mean),
    ],
)
def test_cached_generation_gives_the_tokens_of_whole_forwards_under_plain_hooks(model, change, positions, plain):
    wanted = grow(model, PROMPT, plain)
    with model.intervene([Intervention(SITE, change, positions=positions)], MEANS):
        assert generate(model.model, PROMPT)[0].tolist() == wanted
        assert generate(model.model, PROMPT)[0].tolist() == wanted  # another text in the same hold begins anew
        if positions != "last":  # uncached, each step runs the whole text, whose newest token is one
            assert generate(model.model, PROMPT, use_cache=False)[0].tolist() == wanted
    assert generate(model.model, PROMPT)[0].tolist() == grow(model, PROMPT, lambda value: value)


def test_a_left_padded_batch_gives_what_its_prompts_give_alone(model):
    if not isinstance(model.adapter, MambaAdapter):
        pytest.skip("RWKV takes no mask: to it, padding is text")
    ids = torch.cat([PROMPT, torch.cat([torch.zeros(1, 2, dtype=torch.long), SHORT], 1)])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    clean = [generate(model.model, each)[0, -6:].tolist() for each in (PROMPT, SHORT)]
    if generate(model.model, ids, mask)[:, -6:].tolist() != clean:
        pytest.skip("this release's own padded batch is another")
    held = [Intervention(SITE, Mean()), Intervention(Site(0, "operator_out"), Add(VECTOR), positions="first")]
    with model.intervene(held, MEANS):
        alone = [generate(model.model, each)[0, -6:].tolist() for each in (PROMPT, SHORT)]
        assert generate(model.model, ids, mask)[:, -6:].tolist() == alone
    assert alone != clean


def test_a_text_that_began_elsewhere_is_refused_where_its_beginning_matters(model):
    name = "state" if isinstance(model.adapter, RwkvAdapter) else "cache_params"
    with torch.no_grad():
        begun = model.model.base_model(PROMPT, use_cache=True)
        with model.intervene([Intervention(SITE, Zero())]):
            model.model.base_model(SHORT, use_cache=True, **{name: begun[name]})
        with (
            pytest.raises(XatlasError, match=r"cache does not count its tokens.*under the same intervene"),
            model.intervene([Intervention(SITE, Zero(), positions="first")]),
        ):
            model.model.base_model(SHORT, use_cache=True, **{name: begun[name]})


@pytest.mark.parametrize("how", ["positional", "embeddings", "mask", "cache_position"])
def test_positions_are_counted_however_the_decoder_is_called(how):
    """A text in two forwards, cut after two tokens, is the text in one, whatever tells where its second part stands."""
    llama = HookedModel(build("llama"), None)
    decoder = llama.model.model
    held = [Intervention(Site(1, "mlp_out"), Add(VECTOR), positions="first")]
    with torch.no_grad(), llama.intervene(held):
        whole = decoder(input_ids=PROMPT).last_hidden_state[:, 2:]
        cache = hf.DynamicCache(config=llama.model.config)
        parts = (PROMPT[:, :2], PROMPT[:, 2:])
        for part, seen in zip(parts, (0, 2), strict=True):
            place = torch.arange(seen, seen + part.shape[1])[None]
            if how == "positional":
                found = decoder(part, None, place, cache)
            elif how == "embeddings":
                found = decoder(inputs_embeds=decoder.embed_tokens(part), past_key_values=cache)
            elif how == "cache_position":
                found = decoder(input_ids=part, past_key_values=cache, cache_position=place[0])
            else:
                mask = torch.ones(1, seen + part.shape[1])
                found = decoder(part, attention_mask=mask, past_key_values=cache)
    torch.testing.assert_close(found.last_hidden_state, whole, atol=1e-5, rtol=1e-5)


PROMPT, SHORT = torch.tensor([[5, 17, 60, 3, 44]]), torch.tensor([[71, 30, 8]])
VECTOR = torch.linspace(-2, 2, 32)


def test_a_cache_that_was_cut_back_is_counted_anew():
    llama = HookedModel(build("llama"), None)
    decoder, cache = llama.model.model, hf.DynamicCache(config=llama.model.config)
    with torch.no_grad(), llama.intervene([Intervention(Site(1, "mlp_out"), Add(VECTOR), positions="first")]):
        whole = decoder(input_ids=SHORT).last_hidden_state
        decoder(input_ids=PROMPT, past_key_values=cache)
        cache.crop(-5)  # to nothing
        found = decoder(input_ids=SHORT, past_key_values=cache).last_hidden_state
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
