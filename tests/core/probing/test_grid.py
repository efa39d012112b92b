"""Cells of ablations: each holds one condition, and heads are named by the group that they read in every layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xatlas.contracts.adapter import HeadLayout, Site
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Zero
from xatlas.probing.ablation import Grid, model_heads


def test_a_cell_holds_one_condition():
    grid = Grid({"kl": ["layer"]}, {"layer": [0, 1]})
    zeroed = [Intervention(Site(layer, "mlp_out"), Zero()) for layer in (0, 1)]
    grid.add("kl", {"layer": 0}, zeroed[0])
    grid.add("kl", {"layer": 0}, zeroed[0])
    with pytest.raises(XatlasError, match="two conditions go to one cell of 'kl': layer 0"):
        grid.add("kl", {"layer": 0}, zeroed[1])


def test_a_head_that_reads_another_group_in_another_layer_has_none():
    model = SimpleNamespace(head_layouts=[HeadLayout(4, 2, 8), None, HeadLayout(6, 2, 8)])
    assert model_heads(model, range(6))["kv_group"] == ("head", [0, 0, -1, 1, 1, 1])
