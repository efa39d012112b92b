"""Suggested adapters: the file as it is written passes the check, or says what it does not know."""

import re

import pytest

from xatlas.architectures.suggest.suggestion import suggest
from xatlas.architectures.suggest.writer import Writer
from xatlas.errors import XatlasError


@pytest.mark.parametrize(
    ("architecture", "in_file", "config"),
    [
        ("GPT2LMHeadModel", "transformer.h", {}),  # positions embedded, projections fused, Conv1D
        ("CohereForCausalLM", "return plain * ", {}),  # side by side, logits multiplied
        ("Gemma2ForCausalLM", "heads, config.num_key_value_heads, ", {}),  # norms behind, logits capped, groups
        ("Lfm2ForCausalLM", "'conv'", {"layer_types": ["conv", "conv", "full_attention"]}),  # two kinds of layers
        ("MambaForCausalLM", "'ssm'", {}),  # no heads, no MLP
        ("BloomForCausalLM", "row_arguments = ('alibi',)", {}),  # modules that add inside, arguments for each row
        ("Qwen3_5ForCausalLM", "The role attention.q is left out", {}),  # a gate in the queries' projection
        ("NanoChatForCausalLM", "final_norm_path = 'model.norm'", {}),  # which runs twice
    ],
)
def test_a_suggested_adapter_passes_the_check(architecture, in_file, config):
    found = suggest(architecture, config)
    assert found.verdict == ""
    assert in_file in found.source


def test_a_switch_of_the_config_decides_which_block_is_looked_at():
    assert "resid_mid" not in suggest("GPTNeoXForCausalLM", {"use_parallel_residual": True}).source
    assert "resid_mid" in suggest("GPTNeoXForCausalLM", {"use_parallel_residual": False}).source


def test_a_stream_that_layers_norm_themselves_is_refused_with_the_reason():
    with pytest.raises(XatlasError, match=r"no modules of .* sum to what it adds to the stream"):
        suggest("MiniMaxForCausalLM")


def test_an_error_while_places_are_looked_for_is_one_line(monkeypatch):
    monkeypatch.setattr(Writer, "_roles", lambda *_: [][0])
    with pytest.raises(
        XatlasError, match=r"can't be read off .*IndexError: list index out of range\): write the adapter"
    ):
        suggest("LlamaForCausalLM")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            ("return projected", "return projected.nothing"),
            r"what written gives was not found \(AttributeError: .*by hand",
        ),
        (("head_dim", "no_such_dim"), r"what head_layout gives was not found \(AttributeError: .*by hand"),
        (("cache_argument = 'past", "cache_argument = 'attention_mask' #"), r"can't be run \(.*row_arguments"),
    ],
)
def test_an_error_of_a_suggested_adapter_says_what_to_write_by_hand(wrong, told, monkeypatch):
    write = Writer.file
    monkeypatch.setattr(Writer, "file", lambda self: write(self).replace(*wrong))
    assert re.match(rf".*{told}", suggest("LlamaForCausalLM").verdict)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoSuchModel", "no model class NoSuchModel"),
        ("Trainer", "no model class Trainer"),
        ("LlamaModel", "gives no logits"),
        ("T5ForConditionalGeneration", "can't be made small and run on a text"),
    ],
)
def test_what_is_no_decoder_is_one_line(name, told):
    with pytest.raises(XatlasError, match=told) as error:
        suggest(name)
    assert "\n" not in str(error.value)
