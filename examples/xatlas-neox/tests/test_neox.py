"""Tests of the example plugin on tiny models made from a config."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
import torch
import xatlas_neox

import xatlas
from xatlas import Site
from xatlas.manager import adapters, probes
from xatlas.testing import tiny_hf_model


@pytest.fixture(params=["parallel", "sequential"])
def model(request):
    return tiny_hf_model("GPTNeoXForCausalLM", use_parallel_residual=request.param == "parallel")


def test_the_entry_point_registers_adapter_and_probe():
    assert entry_points(group="xatlas")["neox"].load() is xatlas_neox
    assert adapters()["GPTNeoXForCausalLM"] is xatlas_neox.GptNeoxAdapter
    assert probes()["write_agreement"] is xatlas_neox.WriteAgreement


def test_adapter_keeps_the_contract(model):
    xatlas.check_adapter(model)


def test_a_parallel_block_has_no_stream_between_attention_and_mlp(model):
    hooked = xatlas.HookedModel(model, None)
    assert hooked.has(Site(0, "resid_mid")) is not model.config.use_parallel_residual


def test_every_head_is_the_slice_that_the_projection_reads(model):
    """The fused projection interleaves heads as (q, k, v) per head; the projection's input does not."""
    hooked = xatlas.HookedModel(model, None)
    ids = torch.arange(9)[None]
    seen = []
    handle = model.gpt_neox.layers[1].attention.dense.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    heads = hooked.capture(ids, [Site(1, "heads")])[Site(1, "heads")]
    handle.remove()
    assert heads.shape == (1, 9, 4, 8)
    torch.testing.assert_close(heads[..., 2, :], seen[0][..., 16:24])


def test_probe_keeps_the_contract():
    xatlas.check_probe(xatlas_neox.WriteAgreement)
