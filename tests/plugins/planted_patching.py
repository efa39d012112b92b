"""A model in which one MLP and one head alone carry the answer: what patching and ablation must find.

Layer 0's MLP writes at the subject's token which one it is. The head of layer 1 (or of several layers, which
then stand in for each other) looks from the last token at the subject and writes what it finds. Nothing else
writes anything, and the unembedding reads nothing else.
"""

from __future__ import annotations

from xatlas.model import HookedModel
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_hf_model

# Coordinates of the stream.
SUBJECT_A, SUBJECT_B, LAST, REST, FOUND_A, FOUND_B, OUT_A, OUT_B = range(8)
D_MODEL, D_HEAD = 32, 16
#: The head dimension that rotates least.
STILL = D_HEAD // 2 - 1


def planted(mover_layers=(1,), n_layers=3, strength=6.0):
    """Return the model; ``mover_layers`` hold a head each that moves the subject's token to the readout."""
    tokenizer = byte_tokenizer()
    model = tiny_hf_model(
        "LlamaForCausalLM",
        hidden_size=D_MODEL,
        intermediate_size=4,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=D_HEAD,
        rope_parameters={"rope_type": "default", "rope_theta": 1e14},
        tie_word_embeddings=False,
    )
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)

    def token(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"][0]

    embedding = model.model.embed_tokens.weight
    embedding[:, REST] = 1.0
    for text, at in (("A", SUBJECT_A), ("B", SUBJECT_B), ("=", LAST)):
        embedding[token(text)] = 0.0
        embedding[token(text), at] = 1.0
    _find(model.model.layers[0].mlp)
    for layer in mover_layers:
        _move(model.model.layers[layer].self_attn)
    for text, at in (("p", OUT_A), ("q", OUT_B)):
        model.lm_head.weight[token(text), at] = strength
    return HookedModel(model, tokenizer, slug="planted")


def _find(mlp):
    for neuron, (read, write) in enumerate(((SUBJECT_A, FOUND_A), (SUBJECT_B, FOUND_B))):
        mlp.gate_proj.weight[neuron, read] = 1.0
        mlp.up_proj.weight[neuron, read] = 1.0
        mlp.down_proj.weight[write, neuron] = 1.0 / 16


def _move(attention):
    attention.q_proj.weight[STILL, LAST] = 30.0
    for subject in (SUBJECT_A, SUBJECT_B):
        attention.k_proj.weight[STILL, subject] = 30.0
    for dimension, (read, write) in enumerate(((FOUND_A, OUT_A), (FOUND_B, OUT_B))):
        attention.v_proj.weight[dimension, read] = 1.0
        attention.o_proj.weight[write, dimension] = 1.0


def suite(**overrides):
    """Return prompts of three lengths, in two templates of two families."""
    prompts = []
    for i, (before, between) in enumerate((("", " is "), ("go ", " is "), ("", " then gives "), ("so ", "")) * 2):
        text, start = f"{before}A{between}=", len(before)
        fields = {
            "target": "p",
            "foil": "q",
            "corrupt_text": f"{before}B{between}=",
            "subject": (start, start + 1),
            "template": f"t{i % 4}",
        }
        prompts.append(Prompt(id=f"p{i}", family=f"f{i % 2}", text=text, **fields | overrides))
    return Suite("planted", tuple(prompts))
