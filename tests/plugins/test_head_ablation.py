"""Head ablation: a planted head wins, groups and slices are where they should be."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from models import build

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.interventions import FromRun, InSubspace, Intervention, Mean, RandomDirection, Zero
from xatlas.model import HookedModel
from xatlas.plugins.head_ablation import HeadAblation
from xatlas.probing.ablation import Grid
from xatlas.probing.means import sources
from xatlas.schema import notes, validate
from xatlas.suites import Suite
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::3])


def measure(hf, draws=1, **parameters):
    probe = HeadAblation(**parameters)
    model = HookedModel(hf, byte_tokenizer())
    dataset = probe.measure(model, SUITE, Inputs(reference=tiny_reference(), draws=draws))
    validate(dataset, probe)
    return dataset


def copying_model(layer, head):
    """A model in which one head alone moves something between positions.

    All other heads read values of zero; the MLPs write nothing. The head's keys and queries are zero too, so
    it attends evenly and copies what it finds into the stream.
    """
    hf = build("llama", vocab_size=260, num_key_value_heads=4)
    width = 8
    with torch.no_grad():
        for index, block in enumerate(hf.model.layers):
            block.mlp.down_proj.weight.zero_()
            kept = slice(head * width, (head + 1) * width)
            value = block.self_attn.v_proj.weight.clone()
            block.self_attn.v_proj.weight.zero_()
            if index == layer:
                block.self_attn.v_proj.weight[kept] = value[kept]
    return hf


@pytest.mark.parametrize(("layer", "head"), [(0, 2), (2, 1)])
def test_a_head_that_alone_copies_comes_out_first(layer, head):
    dataset = measure(copying_model(layer, head), ablations="zero,mean,resample")
    for kind in ("zero", "mean", "resample"):
        effect = dataset.kl.sel(ablation=kind, scope="last").mean("prompt")
        best = np.unravel_index(int(effect.values.argmax()), effect.shape)
        assert best == (layer, head)
        others = np.delete(effect.values.ravel(), layer * 4 + head)
        assert others.max() == 0
        assert effect.max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_heads_and_groups_give_the_numbers_of_the_reference_loop(kind):
    hf = build(kind, vocab_size=260)
    dataset = measure(hf, ablations="zero", kv_groups=True).sel(ablation="zero", scope="last")
    tokens = HookedModel(hf, byte_tokenizer()).read(SUITE)
    layer = 1

    def without(*heads):
        def change(value):
            value = value.clone()
            value[:, :, list(heads)] = 0
            return value

        return change

    for row, prompt in enumerate(tokens.prompts[:2]):
        clean = ref.logits(hf, prompt.ids)[prompt.readout]
        for head in range(4):
            expected = ref.kl(clean, ref.logits(hf, prompt.ids, [(layer, "heads", without(head))])[prompt.readout])
            assert ref.agree(dataset.kl.isel(prompt=row).sel(layer=layer, head=head), expected)
        # 4 query heads read 2 groups: 0 and 1 the first, 2 and 3 the second.
        for group, heads in enumerate(((0, 1), (2, 3))):
            expected = ref.kl(clean, ref.logits(hf, prompt.ids, [(layer, "heads", without(*heads))])[prompt.readout])
            assert ref.agree(dataset.kl_kv_group.isel(prompt=row).sel(layer=layer)[group], expected)
    assert list(dataset.kv_group.values) == [0, 0, 1, 1]


def test_layers_without_heads_are_nan_with_a_reason():
    dataset = measure(build("lfm2", vocab_size=260))
    assert np.isnan(dataset.kl.sel(layer=[0, 2])).all()
    assert not np.isnan(dataset.kl.sel(layer=1)).any()
    assert notes(dataset, "absent")["layer=0,2"] == "layers without heads, or with fewer"


def test_a_model_without_any_head_is_all_nan():
    dataset = measure(build("lfm2", vocab_size=260, layer_types=["conv"] * 3))
    assert np.isnan(dataset.kl).all()


def test_controls_and_groups_are_there_when_they_are_asked_for():
    hf = build("lfm2", vocab_size=260)
    assert list(measure(hf).data_vars) == ["kl"]
    dataset = measure(hf, draws=2, ablations="mean,zero", controls=True, subspace=True)
    assert list(dataset.data_vars) == ["kl", "kl_control", "kl_control_subspace"]
    for name in ("kl_control", "kl_control_subspace"):
        assert dataset[name].dims == ("prompt", "draw", "layer", "head", "scope")
        assert not ref.agree(dataset[name].sel(draw=0, layer=1), dataset[name].sel(draw=1, layer=1))
        assert dataset[name].sel(layer=1).min() > 0
        assert dataset[name].sel(layer=[0, 2]).isnull().all()
    with pytest.raises(XatlasError, match="head_ablation's controls are those of 'mean': name it in ablations, too"):
        HeadAblation(ablations="zero", controls=True)


def test_a_heads_control_has_the_covariance_of_its_values():
    """Values of the head that lie in a plane: its controls do, which random directions in 8 dimensions don't."""
    hf = build("llama", vocab_size=260, num_key_value_heads=4)
    with torch.no_grad():
        hf.model.layers[1].self_attn.v_proj.weight[10:16] = 0  # of head 1
    model = HookedModel(hf, byte_tokenizer())
    prompts, probe = model.read(SUITE).prompts, HeadAblation(controls=True)
    grid = Grid({"kl_control": ["layer", "head"]}, {"layer": [0, 1, 2], "head": list(range(4))})
    for cell, _, controls in probe.cells(model, 0):
        grid.add("kl_control", cell, controls["kl_control"])
    _, _, matched = sources(model, prompts, grid.conditions, Inputs(reference=tiny_reference()))
    scene = zero_scene(torch.randn(2, 3, 4, 8))
    scene.mean = lambda site: torch.ones(2, 4, 8)
    for layer, head in ((1, 1), (1, 2)):
        (part,) = matched[int(grid.index("kl_control")[layer, head])]
        change = moved(part, scene.clean(None), scene)[:, :, head]  # (prompt, pos, d_head)
        assert (change[..., 2:].abs().max() < 1e-6) == (head == 1)
        unit = change / change.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(unit, unit[:, :1].expand_as(unit))
        assert abs(float(unit[0, 0] @ unit[1, 0])) < 0.999  # each prompt has its own


def test_controls_differ_by_head_and_layer():
    """A control drawn once for all heads would hide that heads lie in different directions."""
    model = HookedModel(build("llama"), None)
    seen = []
    for layer in range(2):
        for cell, _, controls in HeadAblation().cells(model, 0):
            if cell["layer"] == layer:
                value, part = torch.ones(1, 3, 4, 8), controls["kl_control"]
                change = moved(part, value, zero_scene(value))
                seen.append(change[0, 0, part.heads[0]] / change[0, 0, part.heads[0]].norm())
                assert isinstance(controls["kl_control_subspace"].change, InSubspace)
                assert controls["kl_control_subspace"].heads is None
    similar = torch.stack(seen) @ torch.stack(seen).T
    assert (similar - torch.eye(8)).abs().max() < 0.95
    assert model.n_layers == 3


class zero_scene:
    seed = 0

    def __init__(self, clean):
        self._clean = clean
        self.names = [f"p{row}" for row in range(len(clean))]

    def mask(self, positions):
        return None

    def first(self):
        return torch.tensor([[True, False, False]])

    def mean(self, site):
        return torch.zeros(2, 4, 8)

    def source(self, site, name):
        return torch.zeros_like(self._clean)

    def clean(self, site):
        return self._clean


def moved(part, value, scene):
    from xatlas.interventions import edit

    return edit(part, value, scene) - value


@pytest.mark.parametrize("change", [Zero(), Mean(), FromRun("donor")])
def test_a_heads_control_lives_in_its_slice_and_has_the_ablations_norm(change):
    value = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    scene, site = zero_scene(value), Site(0, "heads")
    own = Intervention(site, change, heads=(2,))
    control = moved(Intervention(site, RandomDirection((own,)), heads=(2,)), value, scene)
    assert control[:, :, [0, 1, 3]].abs().max() == 0
    torch.testing.assert_close(control[:, :, 2].norm(dim=-1), moved(own, value, scene)[:, :, 2].norm(dim=-1))
