"""Tests of the example plugin on tiny models made from a config."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
import torch
import xatlas_codegen

import xatlas
from xatlas import Site
from xatlas.manager import adapters, probes
from xatlas.testing import tiny_hf_model


@pytest.fixture(scope="module")
def model():
    return tiny_hf_model("CodeGenForCausalLM", rotary_dim=4)


def test_the_entry_point_registers_adapter_and_probe():
    assert entry_points(group="xatlas")["codegen"].load() is xatlas_codegen
    assert adapters()["CodeGenForCausalLM"] is xatlas_codegen.CodeGenAdapter
    assert probes()["write_agreement"] is xatlas_codegen.WriteAgreement


def test_adapter_keeps_the_contract(model):
    xatlas.check_adapter(model)


def test_a_parallel_block_has_no_stream_between_attention_and_mlp(model):
    hooked = xatlas.HookedModel(model, None)
    assert not hooked.has(Site(0, "resid_mid"))


def test_every_head_is_the_slice_that_the_projection_reads(model):
    """The fused projection lies in quarters; the input of the output projection does not."""
    hooked = xatlas.HookedModel(model, None)
    ids = torch.arange(9)[None]
    seen = []
    handle = model.transformer.h[1].attn.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    heads = hooked.capture(ids, [Site(1, "heads")])[Site(1, "heads")]
    handle.remove()
    assert heads.shape == (1, 9, 4, 8)
    torch.testing.assert_close(heads[..., 2, :], seen[0][..., 16:24])


def test_probe_keeps_the_contract():
    xatlas.check_probe(xatlas_codegen.WriteAgreement)
