"""Where LoRA weights go: roles and layers become the paths of modules, by what the architecture's adapter names."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from xatlas.contracts.adapter import Part
from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from xatlas.contracts.probe import Inputs
    from xatlas.model import HookedModel

#: Ways to choose modules that are compared with each other.
Strategy = Literal[
    "all_linear", "attention_only", "mlp_only", "conv_only", "atlas_guided", "atlas_full", "random_layers"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: Roles of the strategies that take them in every layer.
_EVERYWHERE = {"all_linear": "all", "attention_only": "attention", "mlp_only": "mlp", "conv_only": "conv"}
#: What ``atlas_guided`` adapts in its layers: what operators and MLPs write with.
GUIDED = ("out", "mlp")
#: Share of the layers that the atlas picks: a third, rounded up.
PICKED = 3
#: Draws of random layers that are tried for one of equal size.
_TRIES = 1000


@dataclass(frozen=True)
class Targets:
    """Modules that get LoRA weights."""

    modules: tuple[str, ...]  # paths, in the model's order
    layers: tuple[int, ...]
    roles: tuple[str, ...]


def target_modules(model: HookedModel, roles: Iterable[str], layers: Iterable[int] | None = None) -> Targets:
    """Return the modules that have some roles in some layers (None: in all).

    ``mlp`` stands for all roles that begin with it, ``out`` for those that end so, ``all`` for every one. A fused
    projection is adapted as a whole or not at all: peft knows modules, and no part of one. Refused are parts of one,
    roles that match nothing in these layers, and layers that don't exist.
    """
    wanted = list(dict.fromkeys(roles))
    chosen = sorted(set(range(model.n_layers) if layers is None else layers))
    for layer in chosen:
        if not 0 <= layer < model.n_layers:
            raise XatlasError(f"layer {layer} is out of range: the model has layers 0 to {model.n_layers - 1}.")
    held = {layer: model.adapter.roles(layer) for layer in chosen}
    found: dict[str, None] = {}
    for role in wanted:
        if not any(_fits(name, role) for own in held.values() for name in own):
            there = list(dict.fromkeys(name for own in held.values() for name in own))
            raise XatlasError(f"no module has the role '{role}' in the layers chosen; there are: {', '.join(there)}.")
    for layer, own in held.items():
        paths = {name: place.module if isinstance(place, Part) else place for name, place in own.items()}
        meant = [name for name in paths if any(_fits(name, role) for role in wanted)]
        for name in meant:
            left = [other for other, path in paths.items() if path == paths[name] and other not in meant]
            if left:
                whole = ", ".join(other for other, path in paths.items() if path == paths[name])
                raise XatlasError(f"{name} of layer {layer} is fused with {', '.join(left)}: ask for {whole}.")
            found[paths[name]] = None
    return Targets(tuple(found), tuple(chosen), tuple(wanted))


def _fits(name: str, role: str) -> bool:
    return role in ("all", name) or name.startswith(f"{role}.") or name.endswith(f".{role}")


def picked(effects: Sequence[float]) -> tuple[int, ...]:
    """Return the third of the layers, rounded up, that have the largest effects."""
    order = np.argsort(-np.asarray(effects, dtype=float), kind="stable")
    return tuple(sorted(map(int, order[: -(-len(effects) // PICKED)])))


def by_strategy(model: HookedModel, strategy: str, effects: Callable[[], Sequence[float]], seed: int) -> Targets:
    """Return the modules of a strategy; ``effects`` gives those of the layers, ``seed`` draws random ones.

    Refused where the architecture has no such modules, or no other layers of the same types with as many parameters.
    """
    if strategy in _EVERYWHERE:
        return target_modules(model, [_EVERYWHERE[strategy]])
    layers = picked(effects())
    guided = target_modules(model, GUIDED, layers)
    if strategy == "atlas_guided":
        return guided
    if strategy == "atlas_full":
        return target_modules(model, ["all"], layers)
    # random layers: the same roles in as many other layers of each operator type, with the same number of parameters
    types = model.operator_types
    counts, size = Counter(types[layer] for layer in guided.layers), lora_size(model, guided)
    generator = random.Random(f"layers|{seed}")
    for _ in range(_TRIES):
        some: list[int] = []
        for kind, count in sorted(counts.items()):
            some += generator.sample([layer for layer, own in enumerate(types) if own == kind], count)
        drawn = target_modules(model, guided.roles, some)
        if drawn.layers != guided.layers and lora_size(model, drawn) == size:
            return drawn
    raise XatlasError("no other layers of the same operator types have as many parameters as those of atlas_guided.")


def lora_size(model: HookedModel, targets: Targets, rank: int = 1) -> int:
    """Return how many parameters LoRA weights of a rank have."""
    modules = [model.adapter.module(path) for path in targets.modules]
    return rank * sum(sum(module.weight.shape) for module in modules)


def layer_effects(model: HookedModel, inputs: Inputs) -> list[float]:
    """Return what leaving out each layer changes on the *train* split: KL of joint mean ablation at the readout, nats.

    Of the reference suite's first two templates of each family the family-macro mean is taken.
    """
    from xatlas.contracts.adapter import Site
    from xatlas.interventions import Intervention, ablation
    from xatlas.metrics import KL
    from xatlas.probing.means import sources
    from xatlas.sweep import named_sweep
    from xatlas.vocabulary import COMPONENT_SITES, CONTROLLED

    if inputs.reference is None:
        raise XatlasError("the layers that matter are found on a reference suite: pass --reference FILE.")
    some = inputs.reference.first_templates(min(2, inputs.reference.most_templates))
    tokens = model.read(some)
    layers = ([Site(layer, kind) for kind in COMPONENT_SITES.values()] for layer in range(model.n_layers))
    change = ablation(CONTROLLED)
    conditions = [tuple(Intervention(site, change) for site in sites if model.has(site)) for sites in layers]
    _, means, conditions = sources(model, tokens.prompts, conditions, inputs)
    progress, label = inputs.progress, "layers that matter"
    kl = named_sweep(model, tokens.prompts, conditions, {"kl": KL()}, means=means, progress=progress, label=label)
    families = [prompt.prompt.family for prompt in tokens.prompts]
    by_family = kl.isel(metric=0).assign_coords(family=("prompt", families)).groupby("family")
    macro = by_family.mean("prompt").mean("family")
    return [float(value) for value in macro.values]


def described(model: HookedModel, targets: Targets, rank: int) -> str:
    """Say how many modules of how many layers are adapted, with how many parameters."""
    size, whole = lora_size(model, targets, rank), sum(each.numel() for each in model.model.parameters())
    layers = "every layer" if len(targets.layers) == model.n_layers else f"layers {', '.join(map(str, targets.layers))}"
    count = f"{len(targets.modules)} module{'s' * (len(targets.modules) != 1)}"
    return f"{count} in {layers}: {size:,} parameters, {100 * size / whole:.2g} % of the model's"
