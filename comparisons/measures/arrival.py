"""At which depth information is at the readout, or gone from the subject, and how models differ in that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.patching import LAST, STREAM, SUBJECT, drawn, values
from xatlas.comparisons.measures.readings import Reading
from xatlas.stats import DRAWS, Clusters, Floats, quantile
from xatlas.vocabulary import PATCH_MODES

#: Recovery from which on information counts as being there.
HALF = 0.5


def stays_from(there: Any) -> Floats:
    """Return the first layer from which on ``there (…, layer)`` is true to the end; NaN where it never is."""
    kept = np.logical_and.accumulate(np.asarray(there)[..., ::-1], axis=-1)[..., ::-1]
    return np.where(kept.any(-1), kept.argmax(-1), np.nan)


def arrivals(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return at which depth information is at the readout, and gone from the subject ``(model, mode)``."""
    dims = ("model", "mode")
    found: dict[str, Any] = {}
    for name, position, words in (
        ("arrival", LAST, "depth from which on the stream at the readout recovers half of the answer or more"),
        ("departure", SUBJECT, "depth from which on the stream at the subject recovers less than half"),
    ):
        numbers = np.array([_depths(main, position) for main in mains])  # (model, mode, 3)
        found |= summary.with_interval(name, dims, numbers[..., 0], (numbers[..., 1], numbers[..., 2]), "1", words)
    p = [_arrival_p(main, float(depth)) for main, depth in zip(mains, found["arrival"][1][:, 0], strict=True)]
    found["arrival_p"] = (("model",), np.array(p), "1", "max-T sign flips of the step, or of recovery over a half")
    gaps = [np.nanmean(np.abs(values(main.dataset)[:, -1, STREAM, LAST, 0] - 1)) for main in mains]
    found["last_layer_gap"] = (("model",), np.array(gaps), "1", "how far the last layer is from what it must be, 1")
    return found


def _there(recovery: Floats, position: int) -> Any:
    return recovery >= HALF if position == LAST else recovery < HALF


def _depths(main: Reading, position: int) -> list[tuple[float, float, float]]:
    point, draws = drawn(main, "recovery")
    last = max(len(point) - 1, 1)
    rows = []
    for m in range(len(PATCH_MODES)):
        depth = float(stays_from(_there(point[:, STREAM, position, m], position))) / last
        low, high = main.clusters.interval(stays_from(_there(draws[:, :, STREAM, position, m], position)) / last)
        # the interval of a whole number of layers may end beside the estimate itself
        ends = (min(float(low), depth), max(float(high), depth)) if np.isfinite(low) else (math.nan, math.nan)
        rows.append((depth, *ends))
    return rows


def _arrival_p(main: Reading, depth: float) -> float:
    """Return the p-value of the step at the arrival, all places of a step tested at once.

    Before layer 0 there is nothing to step from: there, recovery is tested against a half.
    """
    stream = values(main.dataset)[:, :, STREAM, LAST, 0]  # (prompt, layer)
    n_layers = stream.shape[1]
    if math.isnan(depth):
        return math.nan
    if depth == 0:
        return float(main.clusters.max_t(stream - HALF)[0])
    steps = [stream[:, at:].mean(1) - stream[:, :at].mean(1) for at in range(1, n_layers)]
    return float(main.clusters.max_t(np.stack(steps, axis=1))[round(depth * (n_layers - 1)) - 1])


def differences(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the difference in depth of arrival of every two models, over the prompts that both answer."""
    dims, shape = ("model", "model_other"), (len(mains), len(mains))
    numbers = np.full((5, *shape), np.nan)
    for i, j in np.ndindex(*shape):
        if i < j:
            value, low, high, p, count = _difference(mains[i], mains[j])
            numbers[:, i, j] = value, low, high, p, count
            numbers[:, j, i] = -value, -high, -low, p, count
    words = ("1", "depth of arrival minus the other model's, on prompts that both answer")
    found = summary.with_interval("arrival_difference", dims, numbers[0], (numbers[1], numbers[2]), *words)
    found["arrival_difference_p"] = (dims, numbers[3], "1", "two-sided bootstrap p-value")
    found["arrival_difference_prompts"] = (dims, numbers[4], "1", "prompts that both models answer")
    return found


def _difference(a: Reading, b: Reading) -> tuple[float, float, float, float, float]:
    common = [name for name in a.dataset["prompt"].values if name in set(b.dataset["prompt"].values)]
    if not common:
        return math.nan, math.nan, math.nan, math.nan, 0.0
    depths, drawn_depths, resamples = [], [], True
    for main in (a, b):
        some = main.dataset.sel(prompt=common)
        clusters = Clusters(some["family"].values.tolist(), some["template"].values.tolist())
        resamples &= clusters.resamples
        stream = values(some)[:, :, STREAM, LAST, 0]
        last = max(stream.shape[1] - 1, 1)
        depths.append(float(stays_from(clusters.macro(stream) >= HALF)) / last)
        drawn_depths.append(stays_from(clusters.macro_draws(stream) >= HALF) / last)
    value, each = depths[0] - depths[1], drawn_depths[0] - drawn_depths[1]
    if not resamples or not np.isfinite(each).any() or math.isnan(value):
        return value, math.nan, math.nan, math.nan, float(len(common))
    low, high = (float(quantile(each, q)) for q in (0.025, 0.975))
    beyond = min(int((each >= 0).sum()), int((each <= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + DRAWS))
    return value, min(low, value), max(high, value), p, float(len(common))
