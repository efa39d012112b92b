"""Cards are counted on the modules: every parameter once, whatever the config says, with and without weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import SHAPES, build
from reading import assert_card_counts_every_parameter

from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.model_card import ModelCard
from xatlas.schema import notes, validate
from xatlas.testing import tiny_suite


def measure(model):
    dataset = ModelCard().measure(model, tiny_suite(), Inputs())
    validate(dataset, ModelCard, model)
    return dataset


def hooked(hf):
    return HookedModel(hf, None, prove=False)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_layers_and_of_what_stands_outside_sum_to_the_models(name):
    assert_card_counts_every_parameter(hooked(build(SHAPES[name][0], **SHAPES[name][1])), tiny_suite())


def test_a_hybrid_model_layer_by_layer():
    """Facts are the modules': this config says a width of MLPs that LFM2 does not build."""
    hf = build("lfm2", hidden_size=32, intermediate_size=64, conv_L_cache=4, block_auto_adjust_ff_dim=True)
    card = measure(hooked(hf))
    width = hf.model.layers[0].feed_forward.w1.out_features
    assert width != 64
    conv, attention = (card["parameters"].sel(layer=layer) for layer in (0, 1))
    assert conv.sel(role="mlp.down") == 32 * width
    assert conv.sel(role="conv.kernel") == 32 * 4
    assert conv.sel(role="conv.in") == 3 * 32 * 32
    assert conv.sel(role="norm") == 2 * 32
    assert np.isnan(conv.sel(role="attention.q"))
    assert np.isnan(attention.sel(role="conv.in"))
    assert attention.sel(role="norm") == 2 * 32 + 2 * 8  # of queries and keys, too
    np.testing.assert_array_equal(card["kernel"], [4, np.nan, 4])
    assert set(notes(card, "absent")) == {"parameters", "outside", "kernel", "n_heads", "n_kv_heads"}


def test_a_tied_unembedding_is_absent_and_another_is_counted():
    tied, untied = (measure(hooked(build("llama", tie_word_embeddings=each))) for each in (True, False))
    assert tied["tied"] == 1
    assert np.isnan(tied["outside"].sel(part="unembedding"))
    assert untied["tied"] == 0
    assert untied["outside"].sel(part="unembedding") == untied["outside"].sel(part="embedding") == 97 * 32
    assert untied["total"] - tied["total"] == 97 * 32


def test_a_parameter_that_layers_share_is_counted_once():
    hf = build("llama")
    hf.model.layers[2].mlp = hf.model.layers[0].mlp
    card = measure(hooked(hf))
    assert card["total"] == sum(each.numel() for each in hf.parameters())
    assert np.isnan(card["parameters"].sel(layer=2, role="mlp.up"))
    assert card["parameters"].sel(layer=0, role="mlp.up") > 0


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_a_model_without_weights_has_the_same_card(kind):
    hf = build(kind)
    with torch.device("meta"):
        bare = type(hf)(hf.config)
    assert measure(hooked(bare)).identical(measure(hooked(hf)))
