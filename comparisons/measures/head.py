"""What is computed about heads: effects, shares of the strongest, wins of one index, chance levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import leader
from xatlas.comparisons.measures.readings import ABLATION, SCOPE, Estimate, Reading
from xatlas.stats import Floats, agree, chance_of_wins, expected_wins, log_ratio

#: How many heads count as "a few".
TOP = 5
#: Shuffles of layer labels for the chance level of the share.
SHUFFLES = 1000

WORDS = {
    "n_heads": ("1", "heads that were measured"),
    "top_share": ("1", "share of the five strongest heads in the summed effect"),
    "top_share_low": ("1", "lower end of its 95 % interval"),
    "top_share_high": ("1", "upper end of its 95 % interval"),
    "top_share_control": ("1", "the same share of the control's effects"),
    "top_share_chance": ("1", "95 % quantile of the share over shuffled layer labels"),
    "top_share_p": ("1", "share of shuffles that reach the share"),
    "layers_p": ("1", "share of shuffles in which layers differ as much as they do"),
    "first_p_rank1": ("1", "P(rank 1) of the strongest head"),
    "first_tie": ("1", "1 where another head can't be told from the strongest"),
    "index": ("1", "head index that is the strongest in most layers"),
    "n_layers_won": ("layer", "layers in which one head is the strongest"),
    "index_wins": ("layer", "layers in which that index is the strongest head"),
    "index_wins_low": ("layer", "lower end of its 95 % interval"),
    "index_wins_high": ("layer", "upper end of its 95 % interval"),
    "index_wins_chance": ("layer", "layers that the luckiest index wins by chance, on average"),
    "index_wins_p": ("1", "exact chance of that many wins of one index"),
    "index_wins_over_control": ("layer", "wins of that index when heads rank by effect over control"),
    "index_wins_over_control_low": ("layer", "lower end of its 95 % interval"),
    "index_wins_over_control_high": ("layer", "upper end of its 95 % interval"),
    "index_wins_over_control_p": ("1", "exact chance of that many wins of one index over control"),
}


def head_variables(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return effects and controls ``(model, layer, head)``, and p-values over all heads at once."""
    dims = ("model", "layer", "head")
    variables: dict[str, Any] = {}
    for name, variable in (("effect", "kl"), ("control", "kl_control")):
        points = [main.macro(variable)[0] for main in mains]
        ends = [main.clusters.interval(main.macro(variable)[1]) for main in mains]
        low, high = (summary.stack([each[end] for each in ends]) for end in (0, 1))
        words = ("nats", f"family-macro {variable} of the head")
        variables |= summary.with_interval(name, dims, summary.stack(points), (low, high), *words)
    ratios = [log_ratio(main.values("kl"), main.values("kl_control")) for main in mains]
    p = [main.clusters.max_t(ratio) for main, ratio in zip(mains, ratios, strict=True)]
    variables["p_effect"] = (dims, summary.stack(p), "1", "max-T p-value of effect over control, all heads at once")
    return variables


def family_variables(mains: Sequence[Reading], families: Sequence[str]) -> dict[str, Any]:
    """Return the best head of every family ``(model, family)``, its P(rank 1) and whether it ties."""
    dims, shape = ("model", "family"), (len(mains), len(families))
    numbers = np.full((4, *shape), np.nan)
    for i, main in enumerate(mains):
        values = main.values("kl")
        flat, heads = values.reshape(len(values), -1), values.shape[2]
        points = main.clusters.family_means(flat)
        for name, point in zip(main.clusters.families, points, strict=True):
            # only the strongest dozens can come first: the rest would cost time alone
            held = np.sort(np.argsort(np.where(np.isfinite(point), -point, np.inf))[:48])
            draws = main.clusters.family_draws(flat[:, held], name)
            best = leader(main.clusters, point[held], draws, name)
            if best is not None:
                layer, head = divmod(int(held[best.index]), heads)
                numbers[:, i, families.index(name)] = layer, head, best.probability, best.tie
    names = ("best_layer", "best_head", "best_p_rank1", "best_tie")
    words = ("layer of the family's best head", "index of the family's best head", "its P(rank 1)", "1 for a tie")
    units = ("layer", "1", "1", "1")
    return {n: (dims, array, u, w) for n, array, u, w in zip(names, numbers, units, words, strict=True)}


def top_share(effects: Floats, chosen: Any = None) -> Floats:
    """Return the share of five heads ``(…)`` in effects ``(…, head)``: of ``chosen``, else of the strongest."""
    known = np.nan_to_num(effects)
    total = known.sum(-1)
    five = (
        known[..., chosen]
        if chosen is not None
        else np.partition(known, -min(TOP, known.shape[-1]), axis=-1)[..., -TOP:]
    )
    return np.asarray(np.divide(five.sum(-1), total, out=np.full(np.shape(total), np.nan), where=total > 0))


def share_of(main: Reading, ablation: str = ABLATION, scope: str = SCOPE, start: int = 0) -> Estimate:
    """Return the share with its interval; the five heads are those of the point estimate in every draw."""
    point, draws = main.macro("kl", ablation, scope)
    point, draws = point[start:].reshape(-1), draws[:, start:].reshape(len(draws), -1)
    five = np.argsort(np.where(np.isfinite(point), -point, np.inf))[:TOP]
    low, high = main.clusters.interval(top_share(draws, five))
    return Estimate(float(top_share(point)), float(low), float(high))


def model_shares(main: Reading) -> dict[str, float]:
    """Return the values named in ``WORDS`` for one model."""
    point = main.macro("kl")[0]
    found = dict.fromkeys(WORDS, math.nan)
    found["n_heads"] = int(np.isfinite(point).sum())
    if not found["n_heads"]:
        return found
    share = share_of(main)
    found |= {"top_share": share.value, "top_share_low": share.low, "top_share_high": share.high}
    found["top_share_control"] = float(top_share(main.macro("kl_control")[0].reshape(-1)))
    found["top_share_chance"], found["top_share_p"], found["layers_p"] = _chance(main)
    draws = main.macro("kl")[1]
    held = np.sort(np.argsort(np.where(np.isfinite(point), -point, np.inf), axis=None)[:48])
    first = leader(main.clusters, point.ravel()[held], draws.reshape(len(draws), -1)[:, held])
    if first is not None:
        found["first_p_rank1"], found["first_tie"] = first.probability, float(first.tie)
    return found | _index(main)


def _chance(main: Reading) -> tuple[float, float, float]:
    """Shuffle layer labels in each template: 95 % quantile of the share, its p-value, and that of layers."""
    parts = main.clusters.parts(main.values("kl"))
    parts = parts[:, np.isfinite(parts).any((0, 2))]  # (cluster, layer with heads, head)
    rng = np.random.default_rng(main.clusters.seed)
    rows = np.arange(len(parts))[:, None]

    def measure(effects: Floats) -> Floats:
        """Return share and variance over layers ``(2, …)`` of effects ``(…, layer, head)``."""
        effects = np.nan_to_num(effects)
        flat = effects.reshape(*effects.shape[:-2], -1)
        return np.array([top_share(flat), effects.var(-2).sum(-1)])

    observed = measure(parts.sum(0))
    shuffled = []
    for start in range(0, SHUFFLES, 50):
        labels = np.tile(np.arange(parts.shape[1]), (min(50, SHUFFLES - start), len(parts), 1))
        shuffled.append(measure(parts[rows, rng.permuted(labels, axis=2)].sum(1)))
    null = np.concatenate(shuffled, axis=1)
    p = (1 + (null >= observed[:, None] * (1 - 1e-9)).sum(1)) / (1 + SHUFFLES)
    return float(np.quantile(null[0], 0.95)), float(p[0]), float(p[1])


def wins_per_index(effects: Floats) -> Floats:
    """Return in how many layers each head index is the strongest ``(…, head)``; effects ``(…, layer, head)``.

    A layer without heads, with one head, or whose two best agree numerically has no winner.
    """
    known = np.where(np.isfinite(effects), effects, -np.inf)
    if known.shape[-1] < 2:
        return np.zeros((*known.shape[:-2], known.shape[-1]))
    ordered = np.partition(known, -2, axis=-1)
    clear = np.isfinite(ordered[..., -2]) & ~agree(ordered[..., -1], ordered[..., -2])
    first = known.argmax(-1)[..., None] == np.arange(known.shape[-1])
    return np.asarray((first & clear[..., None]).sum(-2), dtype=float)


def index_wins(main: Reading, point: Floats, draws: Floats, index: int) -> tuple[float, float, float, float, int]:
    """Return wins of one head index, their interval, the exact p-value and the number of layers with a winner.

    The p-value is that of any index winning as often: the index was chosen by looking.
    """
    wins = wins_per_index(point)
    layers = int(wins.sum())
    low, high = main.clusters.interval(wins_per_index(draws)[:, index])
    p = chance_of_wins(layers, len(wins), int(wins[index]))
    return float(wins[index]), float(low), float(high), p, layers


def leading_index(main: Reading) -> int:
    """Return the head index that is the strongest head in most layers."""
    return int(wins_per_index(main.macro("kl")[0]).argmax())


def wins_of(indices: Mapping[str, int]) -> Callable[[Reading, str, str, bool], Estimate]:
    """Return the function that counts the wins of each model's leading index under one setting."""

    def estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
        start = 0 if layer0 else 1
        point, draws = reading.macro("kl", ablation, scope)
        if not np.isfinite(point[start:]).any():  # nothing was measured, which is not the same as no wins
            return Estimate()
        return Estimate(*index_wins(reading, point[start:], draws[:, start:], indices[reading.model])[:3])

    return estimate


def _index(main: Reading) -> dict[str, float]:
    index = leading_index(main)
    wins, low, high, p, layers = index_wins(main, *main.macro("kl"), index)
    found = {"index": index, "n_layers_won": layers, "index_wins": wins, "index_wins_p": p}
    found |= {"index_wins_low": low, "index_wins_high": high}
    found["index_wins_chance"] = expected_wins(layers, main.dataset.sizes["head"])
    name = "index_wins_over_control"
    if "kl_control" not in main.dataset:
        return found
    ratio = log_ratio(main.values("kl"), main.values("kl_control"))
    wins, low, high, p, _ = index_wins(main, main.clusters.macro(ratio), main.clusters.macro_draws(ratio), index)
    return found | {name: wins, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}
