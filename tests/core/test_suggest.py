"""Suggested adapters: the file as it is written passes the check, or says what it does not know."""

import pytest

from xatlas.errors import XatlasError
from xatlas.suggest import suggest


@pytest.mark.parametrize(
    ("architecture", "in_file", "config"),
    [
        ("GPT2LMHeadModel", "transformer.h", {}),  # positions embedded, projections fused, Conv1D
        ("CohereForCausalLM", "return plain * ", {}),  # side by side, logits multiplied
        ("Gemma2ForCausalLM", "post_attention_layernorm", {}),  # norms behind, logits capped
        ("Lfm2ForCausalLM", "'conv'", {"layer_types": ["conv", "conv", "full_attention"]}),  # two kinds of layers
        ("MambaForCausalLM", "'ssm'", {}),  # no heads, no MLP
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
        suggest("BloomForCausalLM")


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
