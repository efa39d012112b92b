"""Models are told from their untrained twins by the names in a tree alone."""

from __future__ import annotations

import xarray as xr

from xatlas.twins import training_seed, twins


def tree(*models: str) -> xr.DataTree:
    return xr.DataTree.from_dict({f"/{model}/probe": xr.Dataset() for model in models})


def test_twins_belong_to_their_model_and_to_all_its_training_seeds():
    names = [
        "net~untrained-10",
        "net",
        "net~untrained-2",
        "other",
        "net~3",
        "net-2",
        "other~untrained-0",
        "net+lora-ab",
    ]
    assert twins(tree(*names)) == {
        "net": ["net~untrained-2", "net~untrained-10"],
        "other": ["other~untrained-0"],
        "net~3": ["net~untrained-2", "net~untrained-10"],
        "net-2": [],
        "net+lora-ab": [],
    }


def test_a_twin_without_its_model_is_a_model():
    assert twins(tree("net~untrained-0", "nets", "other")) == {"net~untrained-0": [], "nets": [], "other": []}
    assert twins(tree()) == {}


def test_training_seeds_of_one_network():
    assert [training_seed(slug) for slug in ("net", "net~3", "net~untrained-1", "net-3")] == [
        ("net", 0),
        ("net", 3),
        ("net~untrained-1", 0),
        ("net-3", 0),
    ]
