"""What is computed about hubs: effects per layer and component, who leads, and how far hubs lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import chances, leader
from xatlas.comparisons.measures.readings import Estimate, Reading
from xatlas.stats import DRAWS, Floats, Winner, log_ratio, quantile
from xatlas.vocabulary import COMPONENT_SITES

COMPONENTS = (*COMPONENT_SITES, "joint")
JOINT = COMPONENTS.index("joint")


def prefix(component: str) -> str:
    """Return the name of the variable that holds a component's hub under other settings."""
    return "sensitivity" if component == "joint" else f"sensitivity_{component}"


LAYER_WORDS = {
    "effect": ("nats", "family-macro KL(clean || ablated)"),
    "effect_low": ("nats", "lower end of the effect's 95 % interval"),
    "effect_high": ("nats", "upper end of the effect's 95 % interval"),
    "control": ("nats", "family-macro KL of a random direction of the same norm"),
    "control_low": ("nats", "lower end of the control's 95 % interval"),
    "control_high": ("nats", "upper end of the control's 95 % interval"),
    "over_control": ("1", "exp(mean over prompts of log((effect + 1e-4) / (control + 1e-4)))"),
    "over_control_low": ("1", "lower end of its 95 % interval"),
    "over_control_high": ("1", "upper end of its 95 % interval"),
    "p_rank1": ("1", "P(rank 1) over bootstrap draws; ties share"),
    "p_effect": ("1", "max-T sign-flip p-value of effect over control, all layers at once"),
}


def layers(main: Reading) -> dict[str, Floats]:
    """Return the variables of ``LAYER_WORDS``, each ``(component, layer)``, for one model."""
    clusters = main.clusters
    found: dict[str, Floats] = {}
    for name, variable in (("effect", "kl"), ("control", "kl_control")):
        point, draws = main.macro(variable)
        low, high = clusters.interval(draws)
        found |= {name: point.T, f"{name}_low": low.T, f"{name}_high": high.T}
    ratio = log_ratio(main.values("kl"), main.values("kl_control"))
    low, high = clusters.interval(clusters.macro_draws(ratio))
    found["over_control"] = np.exp(clusters.macro(ratio)).T
    found["over_control_low"], found["over_control_high"] = np.exp(low).T, np.exp(high).T
    draws = main.macro("kl")[1]
    each = range(len(COMPONENTS))
    found["p_rank1"] = np.array([chances(clusters, draws[:, :, c]) for c in each])
    found["p_effect"] = np.array([clusters.max_t(ratio[:, :, c]) for c in each])
    return found


def _winner(main: Reading, component: int) -> Winner | None:
    point, draws = main.macro("kl")
    return leader(main.clusters, point[:, component], draws[:, :, component])


def hubs(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the variables ``(model, component)`` that describe the hubs."""
    dims, shape = ("model", "component"), (len(mains), len(COMPONENTS))
    names = ("hub", "hub_depth", "hub_depth_low", "hub_depth_high", "runner_up", "tie")
    numbers = {name: np.full(shape, np.nan) for name in (*names, "margin", "margin_low", "margin_high")}
    tied = np.full(shape, "", dtype=object)
    for i, j in np.ndindex(*shape):
        found = _winner(mains[i], j)
        if found is None:
            continue
        last = max(mains[i].dataset.sizes["layer"] - 1, 1)
        rival = found.runner_up if found.runner_up >= 0 else math.nan
        depths = (found.index / last, *(end / last for end in found.spread))
        row = (found.index, *depths, rival, found.tie, found.margin, found.margin_low, found.margin_high)
        for name, value in zip(numbers, row, strict=True):
            numbers[name][i, j] = value
        tied[i, j] = ", ".join(map(str, found.tied))
    variables = {name: (dims, array, *_HUB_WORDS[name]) for name, array in numbers.items()}
    return variables | {"tied": (dims, tied, "1", "layers that tie with the hub")}


_HUB_WORDS = {
    "hub": ("layer", "layer with the largest effect"),
    "hub_depth": ("1", "depth of the hub"),
    "hub_depth_low": ("1", "lower end of the 95 % interval of the hub's depth"),
    "hub_depth_high": ("1", "upper end of the 95 % interval of the hub's depth"),
    "runner_up": ("layer", "layer with the second largest effect"),
    "tie": ("1", "1 where the margin's interval contains 0 or two effects agree numerically"),
    "margin": ("nats", "hub's effect minus the best of all others"),
    "margin_low": ("nats", "lower end of the margin's 95 % interval"),
    "margin_high": ("nats", "upper end of the margin's 95 % interval"),
}


def differences(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the difference in depth between the ``joint`` hubs of every two models, over paired draws.

    NaN for a model without joint effect; no interval and no p-value where one of the two can't be resampled.
    """
    dims = ("model", "model_other")
    depths, drawn = zip(*(_joint_depths(main) for main in mains), strict=True)
    each = np.array(drawn)[:, None] - np.array(drawn)[None]  # (model, model_other, draw)
    known = np.isfinite(each).any(-1)
    over, under = (each >= 0).sum(-1), (each <= 0).sum(-1)
    p = np.where(known, np.minimum(1.0, 2 * (1 + np.minimum(over, under)) / (1 + DRAWS)), np.nan)
    ends = [quantile(np.moveaxis(each, -1, 0), q) for q in (0.025, 0.975)]
    words = ("1", "depth of the model's hub minus the other's")
    point = np.subtract.outer(np.array(depths), np.array(depths))
    found = summary.with_interval("depth_difference", dims, point, (ends[0], ends[1]), *words)
    return found | {"depth_difference_p": (dims, p, "1", "two-sided bootstrap p-value")}


def _joint_depths(main: Reading) -> tuple[float, Floats]:
    """Return the depth of the ``joint`` hub, and of each draw's first layer; NaN where there is none."""
    found, depth = _winner(main, JOINT), np.asarray(main.dataset["depth"].values, dtype=float)
    draws = main.macro("kl")[1][:, :, JOINT]
    if found is None or not main.clusters.resamples:
        return float(depth[found.index]) if found else math.nan, np.full(len(draws), np.nan)
    return float(depth[found.index]), depth[np.argmax(np.where(np.isfinite(draws), draws, -np.inf), axis=1)]


def layer_of(component: str) -> Callable[[Reading, str, str, bool], Estimate]:
    """Return the function that finds a component's hub under one setting, with the interval over draws."""
    place = COMPONENTS.index(component)

    def estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
        point, draws = reading.macro("kl", ablation, scope)
        start = 0 if layer0 else 1
        found = leader(reading.clusters, point[start:, place], draws[:, start:, place])
        if found is None:
            return Estimate()
        return Estimate(*(float(layer + start) for layer in (found.index, *found.spread)))

    return estimate
