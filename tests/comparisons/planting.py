"""Synthetic results in the shapes of real ones, with effects planted where a test wants them."""

import json

import numpy as np
import xarray as xr

from xatlas.similarity import Grams, gram

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
    control = noise(rng, (2, len(types), 3, len(scopes)), 0.004)
    if plant is not None:
        kl = plant(kl)
    drawn = ("prompt", "draw", "layer", "component", "scope")
    dataset = xr.Dataset({"kl": (dims, kl), "kl_control": (drawn, control)}, attrs=about(**where))
    names = {"component": ["operator", "mlp", "joint"], "ablation": list(ablations), "scope": list(scopes)}
    return labels(dataset.assign_coords(names), types)


def head_result(types, n_heads=4, plant=None, *, seed=0, ablations=("mean",), scopes=("last",), **where):
    """Return a ``head_ablation`` dataset with controls; heads of layers other than attention are NaN."""
    rng = np.random.default_rng(seed)
    dims = ("prompt", "layer", "head", "ablation", "scope")
    shape = (len(types), n_heads, len(ablations), len(scopes))
    kl, control = noise(rng, shape, 0.02), noise(rng, (*shape[:2], len(scopes)), 0.004)
    if plant is not None:
        kl = plant(kl)
    for array in (kl, control):
        array[:, [kind != "attention" for kind in types]] = np.nan
    data = {"kl": (dims, kl), "kl_control": (("prompt", "draw", "layer", "head", "scope"), control[:, None])}
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
            own = shuffled[name].isel(prompt=i).transpose("layer", ...)
            own.values[there] = dataset[name].isel(prompt=i).transpose("layer", ...).values[order]
    return shuffled


CONV_TYPES = ["conv", "conv", "attention", "conv", "attention", "conv"]
FACTORS, KINDS = ["gate", "carrier", "signal"], ["mean", "one", "resample"]


def conv_results(factor=None, tap=None, seed=0, types=CONV_TYPES, kernel=3):
    """Return results of both probes; ``factor`` and ``tap`` multiply effects ``(layer, label)``."""
    rng = np.random.default_rng(seed)
    absent = [kind != "conv" for kind in types]

    def dataset(shape, dims, more, coords):
        kl = noise(rng, shape, 0.1)
        kl = kl if more is None else kl * more.reshape(*more.shape, *[1] * (kl.ndim - 3))
        control = noise(rng, (*shape[:2], shape[-1]), 0.01)
        for array in (kl, control):
            array[:, absent] = np.nan
        drawn = ("prompt", "draw", *dims[1:3], "scope")
        data = xr.Dataset({"kl": (dims, kl), "kl_control": (drawn, control[:, None])}, coords=coords, attrs=about())
        return labels(data, types)

    factors = dataset(
        (len(types), 3, 3, 1),
        ("prompt", "layer", "factor", "ablation", "scope"),
        factor,
        {"factor": FACTORS, "ablation": KINDS, "scope": ["last"]},
    )
    taps = dataset(
        (len(types), kernel, 1),
        ("prompt", "layer", "tap", "scope"),
        tap,
        {"tap": list(range(1 - kernel, 1)), "scope": ["last"]},
    )
    return {"conv_factors": factors, "conv_taps": taps}


def conv_plant(label, layer=3, everywhere=3.0, there=30.0):
    more = np.ones((len(CONV_TYPES), 3))
    more[:, label] = everywhere
    more[layer, label] = there
    return more


STRENGTHS, RANDOM = (-0.25, 0.1, 0.25, 1.0), 6


def steering_result(growth=1.0, early=1.0, family=None, seed=0, strengths=STRENGTHS, layers=8, matched=RANDOM):
    """Return a steering result: KL is quadratic in what is added over the norm, which grows ``growth`` a layer.

    ``early`` multiplies effects layer by layer towards the first; ``family (layer)`` those of own families.
    """
    rng = np.random.default_rng(seed)
    norm = 10 * growth ** np.arange(layers)
    strength = np.array(strengths)
    length = np.stack([np.median(norm) + 0 * norm, norm], -1)[:, None, :] * strength[:, None]
    share = (length / norm[:, None, None]) ** 2 * (early ** -np.arange(layers))[:, None, None]
    families = [f"family{i}" for i in range(6)]
    kinds = ["random"] * RANDOM + ["matched"] * matched + ["family"] * 6 + ["shuffled"] * 6
    owners = [""] * (RANDOM + matched) + families * 2
    scale = noise(rng, (layers, len(kinds), 1, 1), 1.0)
    kl = scale * share[None, :, None]  # (prompt, layer, direction, strength, scale)
    own = np.repeat(families, len(kl) // 6)[:, None] == np.array(owners)
    own &= np.array(kinds) == "family"
    more = np.ones(layers) if family is None else family
    kl = kl * np.where(own[:, None, :], more[:, None], 1.0)[..., None, None]
    dims = ("prompt", "layer", "direction", "strength", "scale")
    data = xr.Dataset(
        {
            "kl": (dims, kl),
            "delta_logit_diff": (dims, kl * np.sign(strength)[:, None]),
            "length": (dims[1:2] + dims[3:], length),
            "median_norm": ("layer", norm),
        },
        coords={
            "direction": [f"d{i}" for i in range(len(kinds))],
            "direction_kind": ("direction", kinds),
            "direction_family": ("direction", owners),
            "strength": strength,
            "scale": ["absolute", "relative"],
        },
        attrs=about(),
    )
    return labels(data, ["attention"] * layers)


SITES, POSITIONS = ("resid_post", "operator_out", "mlp_out"), ("first", "subject", "last", "other")


def patching_result(types, arrives, *, seed=0, share=0.6, rows=N_PROMPTS):
    """Return an ``activation_patching`` dataset: layer ``arrives``'s operator moves ``share`` to the readout."""
    rng = np.random.default_rng(seed)
    n = len(types)
    recovery = np.zeros((N_PROMPTS, n, len(SITES), len(POSITIONS), 2))
    per_prompt = rng.normal(0, 0.04, size=(N_PROMPTS, n, 2))
    rises = np.where(np.arange(n) < arrives, 0.1, 0.9)[None, :, None] + per_prompt
    recovery[:, :, 0, 2] = rises
    recovery[:, -1, 0, 2] = 1.0
    recovery[:, :, 0, 1] = 1 - rises
    recovery[:, :, 1, 2] = 0.05 + rng.normal(0, 0.04, size=(N_PROMPTS, n, 2))
    recovery[:, arrives, 1, 2] += share
    recovery[:, :, 2, 1] = 0.02
    control = rng.normal(0, 0.03, size=recovery.shape)
    dims = ("prompt", "layer", "site", "position", "mode")
    data = {"recovery": (dims, recovery), "recovery_control": (dims, control)}
    dataset = xr.Dataset(data, attrs={**about(), "dropped": json.dumps({"gone": "no foil or no corrupt twin"})})
    names = {"site": list(SITES), "position": list(POSITIONS), "mode": ["denoise", "noise"]}
    return labels(dataset.assign_coords(names), types).isel(prompt=slice(rows))


def norm_result(growth, first=None, *, seed=0, jitter=0.05, n_tokens=10):
    """Return a ``residual_norms`` dataset: ``growth (layer)`` or ``(prompt, layer)`` of the norm at all but position 0.

    ``first (layer)`` is that at position 0, by default the same.
    """
    rng = np.random.default_rng(seed)
    growth = np.broadcast_to(growth, (N_PROMPTS, np.shape(growth)[-1]))
    n = growth.shape[1]

    def stream(each):
        """Return norms entering and leaving every layer ``(prompt, layer, site)``."""
        noisy = each * np.exp(jitter * rng.normal(size=(N_PROMPTS, n)))
        after = np.exp(0.1 * rng.normal(size=(N_PROMPTS, 1))) * np.cumprod(noisy, axis=1)
        return np.stack([after / noisy, after, after], -1)

    readout, other = stream(growth), stream(growth)
    own = np.broadcast_to(growth.mean(0) if first is None else first, (n,))
    at_first = np.cumprod(own)
    position0 = np.broadcast_to(np.stack([at_first / own, at_first, at_first], -1), readout.shape)
    squares = np.stack([position0, readout, other * np.sqrt(n_tokens - 2)], -1) ** 2
    single = np.stack([position0, readout, other], -1) ** 2
    norm = np.stack([position0, other, readout, other], -1)  # first, subject, last, other
    dims = ("prompt", "layer", "site", "position")
    data = {
        "norm": (dims, norm),
        "frobenius": (dims[:3], np.sqrt(squares.sum(-1))),
        "token_share": (dims[:3], single.max(-1) / squares.sum(-1)),
    }
    coords = {"site": ["resid_pre", "resid_mid", "resid_post"], "position": ["first", "subject", "last", "other"]}
    return labels(xr.Dataset(data, coords=coords, attrs=about()), ["attention"] * n)


def loss_result(bits, guess=4.0, *, seed=0, spread=0.1):
    """Return a ``token_loss`` dataset: ``bits (family)`` per byte, times what differs between templates and prompts."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(np.exp(spread * rng.normal(size=FAMILIES * TEMPLATES)), EACH)
    each = np.repeat(np.broadcast_to(bits, FAMILIES), TEMPLATES * EACH) * shared
    each = each * np.exp(spread / 4 * rng.normal(size=N_PROMPTS))
    data = {"nll": each, "bits_per_byte": each, "bits_per_byte_uniform": np.full(N_PROMPTS, guess)}
    dataset = xr.Dataset({name: ("prompt", values) for name, values in data.items()}, attrs=about())
    return labels(dataset, ["attention"]).drop_vars(["layer", "depth", "operator_type"])


def cka_result(features, trimmed=None, *, draws=20):
    """Return a ``cka`` dataset of ``features (layer, sample, feature)``: five samples a prompt, in their order."""
    prompts = np.repeat([f"p{i}" for i in range(N_PROMPTS)], 5)
    variants, grams, values = ["all", "trimmed"], [], []
    for each in (features, features if trimmed is None else trimmed):
        grams.append(np.array([gram(layer) for layer in each]))
        values.append(Grams(grams[-1], prompts))
    lower = np.where(np.tri(len(prompts), dtype=bool), np.array(grams, dtype=np.float32), np.nan)
    maps = ("variant", "layer", "layer_other")
    data = {
        "gram": (("variant", "layer", "sample", "sample_other"), lower),
        "cka": (maps, np.array([each.cka(each) for each in values])),
        "cka_null_q95": (maps, np.array([np.quantile(each.null(each, draws), 0.95, axis=0) for each in values])),
    }
    names = [f"{prompt}:{5 + at % 5}" for at, prompt in enumerate(prompts)]
    coords = {"variant": variants, "sample": names, "sample_other": names, "sample_prompt": ("sample", prompts)}
    coords["layer_other"] = np.arange(len(features))
    return labels(xr.Dataset(data, coords, about()), ["attention"] * len(features))


def attention_result(types, n_heads=4, *, first=0.3, previous=(), induction=(), seed=0, tokens=10, **where):
    """Return an ``attention_patterns`` dataset; ``previous`` and ``induction`` are ``(layer, head, score)`` each."""
    rng = np.random.default_rng(seed)
    shape = (len(types), n_heads)
    data = {
        "first_weight": first * noise(rng, shape, 1.0).clip(0.5, 1.5),
        "previous_score": noise(rng, shape, 0.15),
        "induction_score": noise(rng, shape, 0.03),
        "entropy": noise(rng, shape, 1.0),
        "distance": noise(rng, shape, 4.0),
    }
    for name, planted in (("previous_score", previous), ("induction_score", induction)):
        for layer, head, score in planted:
            data[name][:, layer, head] = score * rng.beta(80, 20, size=N_PROMPTS) / 0.8
    for values in data.values():
        values[:, [kind != "attention" for kind in types]] = np.nan
    dims = ("prompt", "layer", "head")
    dataset = xr.Dataset({name: (dims, values) for name, values in data.items()}, attrs=about(**where) | {"period": 24})
    names = {"head": np.arange(n_heads), "kv_group": ("head", np.arange(n_heads) // 2)}
    return labels(dataset.assign_coords(names), types).assign_coords(n_tokens=("prompt", [tokens] * N_PROMPTS))


def kernel_results(types=CONV_TYPES, weight=None, effective=None, causal=None, *, ahead=0.0, seed=0, kernel=3):
    """Return results of ``conv_taps`` and ``conv_kernel``; sizes are ``(tap)`` or ``(layer, tap)``, 5 % of noise."""
    rng = np.random.default_rng(seed)
    shape, absent = (len(types), kernel), [kind != "conv" for kind in types]
    plain = np.ones(kernel)
    sizes = {
        f"{name}_size": np.broadcast_to(plain if given is None else given, shape) * rng.gamma(400, 1 / 400, size=shape)
        for name, given in (("weight", weight), ("effective", effective))
    }
    data = {name: (("layer", "tap"), values) for name, values in sizes.items()}
    data["dominant_share"] = ("layer", "tap"), sizes["weight_size"] / sizes["weight_size"].sum(1, keepdims=True)
    data["ahead"] = "layer", ahead * rng.gamma(100, 1 / 100, size=len(types))
    for _, values in data.values():
        values[absent] = np.nan
    coords = {
        "tap": list(range(1 - kernel, 1)),
        "layer": np.arange(len(types)),
        "operator_type": ("layer", list(types)),
    }
    coords["depth"] = "layer", np.arange(len(types)) / max(len(types) - 1, 1)
    more = np.broadcast_to(plain if causal is None else causal, shape)
    taps = conv_results(tap=more, seed=seed, types=types, kernel=kernel)["conv_taps"]
    return {"conv_taps": taps, "conv_kernel": xr.Dataset(data, coords, about())}


def lens_result(appears, *, layers=8, wrong=0, flicker=0.0, types=None, seed=0):
    """Return a ``logit_lens`` dataset in which answers are on top from layer ``appears`` on, give or take one."""
    layers = len(types) if types else layers
    rng, n = np.random.default_rng(seed), N_PROMPTS
    from_layer = np.clip(appears + rng.integers(-1, 2, n), 0, layers - 1)
    rank = np.where(np.arange(layers) >= from_layer[:, None], 1.0, rng.integers(2, 200, (n, layers)))
    rank[:, :-1] = np.where(rng.random((n, layers - 1)) < flicker, 1.0, rank[:, :-1])
    rank[:wrong] = np.maximum(rank[:wrong], 2)
    final = np.where(rank == 1, 1.0, 0.0)
    final[:, -1] = 1.0
    data = {
        name: (("prompt", "layer", "site"), np.repeat(each[..., None], 3, 2))
        for name, each in (("target_rank", rank), ("top_is_final", final))
    }
    dataset = xr.Dataset(
        data, coords={"site": ["resid_pre", "resid_mid", "resid_post"]}, attrs={**about(), "vocabulary": 1000}
    )
    return labels(dataset, types or ["attention"] * layers)


def card_result(types, mlp=4000.0, tied=True):
    """Return a ``model_card`` dataset: conv layers have kernels, others heads, and other operators."""
    n = len(types)
    conv = np.array([kind == "conv" for kind in types])
    roles = ["attention.q", "attention.out", "conv.in", "mlp.up", "norm"]
    own = [np.where(conv, np.nan, 900.0), np.where(conv, np.nan, 300.0), np.where(conv, 2000.0, np.nan)]
    parameters = np.stack([*own, np.full(n, mlp), np.full(n, 20.0)], -1)
    outside = np.array([5000.0, np.nan if tied else 5000.0, 10.0])
    total = float(np.nansum(parameters) + np.nansum(outside))
    data = {
        "parameters": (("layer", "role"), parameters),
        "outside": ("part", outside),
        "total": total,
        "tied": float(tied),
        "kernel": ("layer", np.where(conv, 3.0, np.nan)),
        "n_heads": ("layer", np.where(conv, np.nan, 8.0)),
        "n_kv_heads": ("layer", np.where(conv, np.nan, 2.0)),
        "d_model": 32.0,
        "vocabulary": 260.0,
        "bytes": ("dtype", np.array([4, 2]) * total),
    }
    coords = {
        "role": roles,
        "part": ["embedding", "unembedding", "other"],
        "dtype": ["float32", "bfloat16"],
        "layer": np.arange(n),
        "depth": ("layer", np.arange(n) / max(n - 1, 1)),
        "operator_type": ("layer", list(types)),
    }
    return xr.Dataset(data, coords=coords, attrs=about())
