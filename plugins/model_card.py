"""What a model consists of: parameters by layer and role, kernels, heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xatlas import Adapter, Inputs, Probe, Suite, Variable, hookimpl
from xatlas.contracts.adapter import Part

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel

#: Where parameters stand that belong to no layer.
PARTS = ("embedding", "unembedding", "other")


class ModelCard(Probe):
    """Parameters of every layer by role, kernels of convolutions, heads and their groups, and bytes by number format.

    Definition: counted on the modules of the model, never read from its config. Roles are those that the adapter names
    (``attention.q``, ``mlp.down``, …), a module's bias with its weight; besides them ``conv.kernel`` is the depthwise
    convolution, ``norm`` what stands in norms, and ``rest`` all else in the layer. A parameter that several places
    share is counted once, where it stands first; so the unembedding of a model whose embedding is ``tied`` to it is
    absent. ``parameters`` and ``outside`` sum to ``total``. ``bytes`` is what all of them take in a number format.

    Unit: parameters, heads, taps; bytes.

    Control: none, for nothing is estimated.

    Source: the modules of the loaded model.
    """

    name = "model_card"
    version = 1
    measures_on = "model"
    replicate = None
    needs_weights = False
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "parameters": Variable(("layer", "role"), "1", "parameters of a layer"),
        "outside": Variable(("part",), "1", "parameters outside the layers"),
        "total": Variable((), "1", "parameters of the model, each counted once"),
        "tied": Variable((), "1", "whether embedding and unembedding are one (1) or two (0)"),
        "kernel": Variable(("layer",), "1", "taps of the layer's depthwise convolution"),
        "n_heads": Variable(("layer",), "1", "query heads"),
        "n_kv_heads": Variable(("layer",), "1", "heads of keys and values"),
        "d_model": Variable((), "1", "width of the stream"),
        "vocabulary": Variable((), "1", "rows of the embedding"),
        "bytes": Variable(("dtype",), "byte", "memory of all parameters in a number format"),
    }

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``parameters (layer, role)`` and the other counts."""
        import numpy as np

        from xatlas.schema import label, layer_coords
        from xatlas.vocabulary import DTYPE_BYTES

        layers = range(model.n_layers)
        by_layer, outside = counted(model.adapter)
        roles = list(dict.fromkeys(role for own in by_layer for role in own))
        total = sum(outside.values()) + sum(sum(own.values()) for own in by_layer)
        weights = [model.adapter.module(path).weight for path in _embeddings(model.adapter)]
        layouts = model.head_layouts
        arrays: dict[str, Any] = {
            "parameters": [[own.get(role, np.nan) for role in roles] for own in by_layer],
            "outside": [outside.get(part, np.nan) for part in PARTS],
            "total": float(total),
            "tied": float(weights[0] is weights[1]),
            "kernel": [np.nan if (size := _kernel(model.adapter, layer)) is None else size for layer in layers],
            "n_heads": [np.nan if each is None else each.n_heads for each in layouts],
            "n_kv_heads": [np.nan if each is None else each.n_kv_heads for each in layouts],
            "d_model": float(model.d_model),
            "vocabulary": float(model.adapter.vocabulary),
            "bytes": [float(total * size) for size in DTYPE_BYTES.values()],
        }
        absent = {
            "parameters": "the layer has no module of this role",
            "outside": "there are none: a tied unembedding is the embedding",
            "kernel": "the layer has no convolution",
            "n_heads": "the layer has no heads",
            "n_kv_heads": "the layer has no heads",
        }
        coords = {"role": roles, "part": list(PARTS), "dtype": list(DTYPE_BYTES)}
        return label(
            self.variables,
            {name: np.array(each, dtype=float) for name, each in arrays.items()},
            {**layer_coords(model.operator_types), **coords},
            absent={name: why for name, why in absent.items() if np.isnan(arrays[name]).any()},
        )


def counted(adapter: Adapter) -> tuple[list[dict[str, int]], dict[str, int]]:
    """Return role → parameters for each layer, and part → parameters of what stands outside; a shared one once."""
    by_layer: list[dict[str, int]] = [{} for _ in range(adapter.n_layers)]
    outside: dict[str, int] = {}
    paths = {f"{adapter.layer_path(layer)}.": layer for layer in range(adapter.n_layers)}
    parts = dict(zip(_embeddings(adapter), PARTS, strict=False))
    for name, parameter in adapter.model.named_parameters():
        layer = next((number for path, number in paths.items() if name.startswith(path)), None)
        owner = name.rpartition(".")[0]
        group = outside if layer is None else by_layer[layer]
        shares = {parts.get(owner, "other"): 1.0} if layer is None else _shares(adapter, layer, owner)
        for role, share in shares.items():
            group[role] = group.get(role, 0) + round(parameter.numel() * share)
    return by_layer, outside


def _embeddings(adapter: Adapter) -> tuple[str, str]:
    return adapter.embedding_path, adapter.unembedding_path


def _shares(adapter: Adapter, layer: int, owner: str) -> dict[str, float]:
    """Return what a module of a layer is there for, and in what shares: the roles of the innermost one around it."""
    named: dict[str, list[tuple[str, str | Part]]] = {}
    for role, place in adapter.roles(layer).items():
        named.setdefault(place.module if isinstance(place, Part) else place, []).append((role, place))
    conv = adapter.conv_path(layer)
    if conv is not None:
        named[conv] = [("conv.kernel", conv)]
    inside = [path for path in named if f"{owner}.".startswith(f"{path}.")]
    if not inside:
        return {"norm" if "norm" in type(adapter.module(owner)).__name__.lower() else "rest": 1.0}
    held = named[max(inside, key=len)]
    parts = {role: len(place.outputs(adapter.outputs(place))) for role, place in held if isinstance(place, Part)}
    return {role: size / sum(parts.values()) for role, size in parts.items()} or {held[0][0]: 1.0}


def _kernel(adapter: Adapter, layer: int) -> int | None:
    path = adapter.conv_path(layer)
    return None if path is None else int(adapter.module(path).weight.shape[-1])


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ModelCard]
