"""Synthetic results in the shapes of real ones, with effects planted where a test wants them."""

import json

import numpy as np
import pytest
import xarray as xr

FAMILIES, TEMPLATES, EACH = 6, 4, 2
N_PROMPTS = FAMILIES * TEMPLATES * EACH


def noise(rng, shape, scale=0.05):
    """Return positive values that hang together within templates, prompts along the first axis."""
    shared = rng.gamma(4, 0.25, size=(FAMILIES * TEMPLATES, *shape))
    return scale * np.repeat(shared, EACH, axis=0) * rng.gamma(8, 1 / 8, size=(N_PROMPTS, *shape))


def labels(dataset, types):
    n_layers = len(types)
    family = np.repeat([f"family{i}" for i in range(FAMILIES)], TEMPLATES * EACH)
    template = np.tile(np.repeat([f"t{i}" for i in range(TEMPLATES)], EACH), FAMILIES)
    return dataset.assign_coords(
        prompt=[f"p{i}" for i in range(N_PROMPTS)],
        family=("prompt", family),
        template=("prompt", template),
        layer=np.arange(n_layers),
        depth=("layer", np.arange(n_layers) / max(n_layers - 1, 1)),
        operator_type=("layer", list(types)),
    )


def about(suite="quick", bos="always"):
    return {"xatlas": json.dumps({"suite": {"name": suite, "hash": "0"}, "job": {"bos": bos}})}


def layer_result(types, plant=None, *, seed=0, ablations=("zero", "mean", "resample"), scopes=("last",), **where):
    """Return a ``layer_ablation`` dataset; ``plant(kl)`` edits ``(prompt, layer, component, ablation, scope)``."""
    rng = np.random.default_rng(seed)
    dims = ("prompt", "layer", "component", "ablation", "scope")
    shape = (len(types), 3, 1, 1)
    kl = np.broadcast_to(noise(rng, shape), (N_PROMPTS, len(types), 3, len(ablations), len(scopes))).copy()
    kl *= rng.gamma(200, 1 / 200, size=kl.shape)
    control = noise(rng, kl.shape[1:], 0.004)
    if plant is not None:
        kl = plant(kl)
    dataset = xr.Dataset({"kl": (dims, kl), "kl_control": (dims, control)}, attrs=about(**where))
    names = {"component": ["operator", "mlp", "joint"], "ablation": list(ablations), "scope": list(scopes)}
    return labels(dataset.assign_coords(names), types)


def head_result(types, n_heads=4, plant=None, *, seed=0, ablations=("mean",), scopes=("last",), **where):
    """Return a ``head_ablation`` dataset; heads of layers other than attention are NaN."""
    rng = np.random.default_rng(seed)
    dims = ("prompt", "layer", "head", "ablation", "scope")
    shape = (len(types), n_heads, len(ablations), len(scopes))
    kl, control, subspace = noise(rng, shape, 0.02), noise(rng, shape, 0.004), noise(rng, shape, 0.006)
    if plant is not None:
        kl = plant(kl)
    for array in (kl, control, subspace):
        array[:, [kind != "attention" for kind in types]] = np.nan
    data = {"kl": (dims, kl), "kl_control": (dims, control), "kl_control_subspace": (dims, subspace)}
    dataset = xr.Dataset(data, attrs=about(**where))
    names = {"head": np.arange(n_heads), "ablation": list(ablations), "scope": list(scopes)}
    dataset = dataset.assign_coords(names | {"kv_group": ("head", np.arange(n_heads) // 2)})
    return labels(dataset, types)


def tree_of(**models):
    """Return a tree: ``tree_of(model={"layer_ablation": dataset})``; ``_`` in a model's name means ``-``."""
    return xr.DataTree.from_dict(
        {f"/{model.replace('_', '-')}/{probe}": ds for model, nodes in models.items() for probe, ds in nodes.items()}
    )


def shuffle_layers(dataset, seed=0):
    """Return the dataset with its layer labels shuffled independently in each prompt."""
    rng = np.random.default_rng(seed)
    shuffled = dataset.copy(deep=True)
    there = np.flatnonzero(~np.isnan(dataset["kl"].values).all(axis=(0, 2, 3, 4)))
    for i in range(dataset.sizes["prompt"]):
        order = rng.permutation(there)
        for name in dataset.data_vars:
            shuffled[name].values[i, there] = dataset[name].values[i, order]
    return shuffled


class Synthetic:
    N_PROMPTS = N_PROMPTS
    noise = staticmethod(noise)
    labels = staticmethod(labels)
    layer_result = staticmethod(layer_result)
    head_result = staticmethod(head_result)
    tree_of = staticmethod(tree_of)
    shuffle_layers = staticmethod(shuffle_layers)


@pytest.fixture(scope="session")
def synthetic():
    return Synthetic
