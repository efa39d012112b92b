"""What the shipped adapters say of models in odd shapes: operators, heads, roles, places."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from models import SHAPES, build

from xatlas import check_adapter
from xatlas.contracts.adapter import HeadLayout, Site

IDS = torch.tensor([[5, 17, 60, 3, 44, 9]])

OPERATORS = {
    "lfm2": ["conv", "attention", "conv"],
    "lfm2-all-conv": ["conv"] * 3,
    "lfm2-all-attention": ["attention"] * 3,
    "lfm2-1-layer": ["conv"],
    "qwen2": ["attention"] * 3,
    "llama-1-layer": ["attention"],
}
LAYOUTS = {
    "llama": HeadLayout(4, 2, 8),
    "llama-odd-heads": HeadLayout(2, 1, 12),  # 24 wide, where the stream is 32
    "llama-untied-biased": HeadLayout(4, 4, 8),
    "qwen2-untied": HeadLayout(4, 1, 8),
    "lfm2": HeadLayout(4, 2, 8),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_keeps_the_contract(name):
    """Proof, roles, heads and the engine against Hugging Face, on a registered model."""
    kind, overrides = SHAPES[name]
    check_adapter(build(kind, **overrides))


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_types_are_read_from_the_layers(shape, name):
    assert shape(name).operator_types == OPERATORS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_heads_are_read_from_the_projections(shape, name):
    assert shape(name).head_layouts[1] == LAYOUTS[name]


def test_a_head_reads_its_key_value_group():
    assert [HeadLayout(6, 2, 8).kv_group(head) for head in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [HeadLayout(3, 3, 8).kv_group(head) for head in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["llama", "llama-odd-heads", "qwen2-untied", "lfm2-all-attention"])
def test_a_kv_group_is_who_reads_one_key(shape, name):
    """Changing a group's keys and values changes what its query heads write, and no other head's."""
    model = shape(name)
    layout, layer = model.head_layouts[1], 1
    value = model.adapter.module(model.adapter.roles(layer)["attention.v"])
    clean = model.capture(IDS, [Site(layer, "heads")])[Site(layer, "heads")]
    for group in range(layout.n_kv_heads):
        kept = slice(group * layout.d_head, (group + 1) * layout.d_head)

        def without(_, __, output, kept=kept):
            output = output.clone()
            output[..., kept] = 0
            return output

        handle = value.register_forward_hook(without)
        try:
            changed = model.capture(IDS, [Site(layer, "heads")])[Site(layer, "heads")]
        finally:
            handle.remove()
        moved = (changed != clean).flatten(0, 1).any(0).any(-1).tolist()
        assert moved == [layout.kv_group(head) == group for head in range(layout.n_heads)]


def test_roles_mean_the_same_in_every_architecture(shape):
    """'All MLPs' is gate, up and down everywhere: down(silu(gate) * up) gives what the MLP wrote."""
    for name in ("llama", "qwen2", "lfm2", "lfm2-kernel-4-biased"):
        model = shape(name)
        for layer in range(model.n_layers):
            roles = {role: model.adapter.module(path) for role, path in model.adapter.roles(layer).items()}
            heard = []
            handle = roles["mlp.gate"].register_forward_pre_hook(lambda _, args, heard=heard: heard.append(args[0]))
            written = model.capture(IDS, [Site(layer, "mlp_out")])[Site(layer, "mlp_out")]
            handle.remove()
            with torch.no_grad():
                hidden = torch.nn.functional.silu(roles["mlp.gate"](heard[0])) * roles["mlp.up"](heard[0])
                torch.testing.assert_close(roles["mlp.down"](hidden), written)
            parts = {role.split(".")[0] for role in roles}
            assert parts == {"mlp", model.operator_types[layer]}


def test_conv_sites_are_the_gate_the_carrier_and_the_signal(shape):
    """B and x are multiplied before the convolution, C after it: C alone leaves the conv's input as it is."""
    model = shape("lfm2")
    layer, ids = 0, IDS[0].tolist()
    got = {
        kind: model.capture(IDS, [Site(layer, kind)])[Site(layer, kind)]
        for kind in ("conv_gate", "conv_carrier", "conv_signal")
    }
    conv = model.adapter.module(model.adapter.conv_path(layer))
    out = model.adapter.module(model.adapter.roles(layer)["conv.out"])
    with torch.no_grad():
        product = (got["conv_gate"] * got["conv_signal"]).transpose(1, 2)
        mixed = conv(product)[..., : len(ids)].transpose(1, 2)
        written = out(got["conv_carrier"] * mixed)
    torch.testing.assert_close(written, ref.values(model.model, ids, layer, "operator_out"), atol=1e-5, rtol=1e-5)


def test_the_mlps_width_is_read_from_its_modules(shape):
    """LFM2 builds wider or narrower MLPs than its config's intermediate_size says."""
    model = shape("lfm2-kernel-4-biased")
    down = model.adapter.module(model.adapter.roles(0)["mlp.down"])
    assert down.in_features != model.model.config.intermediate_size
    assert model.adapter.module(model.adapter.conv_path(0)).weight.shape == (32, 1, 4)
    assert shape("llama").adapter.conv_path(0) is None
