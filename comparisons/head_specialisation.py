"""How much of the effect a few heads carry, which leads per family, and whether one index wins everywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import head as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence
from xatlas.findings.estimates import side
from xatlas.findings.sentences import DASHES
from xatlas.findings.verdict import ALPHA, Bounds
from xatlas.stats import PERMUTATIONS, Floats, agree, divide, probability_first, quantile

if TYPE_CHECKING:
    import xarray as xr

#: How many heads count as "a few".
TOP = 5
#: Permutations and simulations of either test.
DRAWS = PERMUTATIONS // 5
#: What decides where one kind of ablation was measured.
ANOTHER = " To decide, add another kind: --set head_ablation.ablations=mean,zero"
#: Heads a model's table names.
NAMED = 3


class HeadSpecialisation(ClaimComparison):
    """Share of the five strongest heads, best head per family, and wins of one head index across layers.

    The share of the five strongest heads in the summed effect is chosen on half of the templates and measured on the
    others. It is tested against heads that share their layer's total at random (uniformly from the simplex: its
    mean and middle 95 % are the control shown), and against equal heads (labels permuted within layer and template);
    the larger p-value counts. That one head *index* is the strongest head of more layers than it would be by chance
    has an exact chance (layers whose two best heads agree have no winner); where layers can't be told apart by
    permuting them, they are one witness, not many.

    ``effect (model, layer, head, bound)`` in nats; ``first``, ``first_or_second (model, layer, head)``: in how many
    families a head is; ``best_layer``, ``best_head``, ``best_p_rank1 (model, family)``.
    """

    name = "head_specialisation"
    version = 3
    summary = "Do a few heads carry the effect, and does one head index win across layers more than by chance?"
    requires = (Requirement("head_ablation"),)
    claims = (
        Claim(
            "top_share",
            "Do the five strongest heads hold more of the effect than heads that share it at random?",
            "The five strongest of {heads} heads of {model} hold {number} of the summed effect; heads that share their "
            "layer's total at random: {control}",
            label="top 5 share",
            short="five heads hold more of the effect than by chance",
            advice=ANOTHER,
        ),
        Claim(
            "index_wins",
            "Is one head index the strongest head of more layers than by chance?",
            "In {model} head index {index} is the strongest head in {number} of the {layers}; the luckiest index is in "
            "{control} by chance",
            label="wins of one index",
            short="head index {index} is the strongest head of more layers than by chance",
            advice=ANOTHER,
            units="layer",
        ),
    )
    narrow = True
    variables: ClassVar = {
        "effect": Variable(("layer", "head", "bound"), "nats", "family-macro KL(clean || ablated) of the head"),
        "first": Variable(("layer", "head"), "1", "families in which the head is the strongest"),
        "first_or_second": Variable(("layer", "head"), "1", "families in which the head is first or second"),
        "best_layer": Variable(("family",), "layer", "layer of the family's strongest head"),
        "best_head": Variable(("family",), "1", "index of the family's strongest head"),
        "best_p_rank1": Variable(("family",), "1", "its P(rank 1); a tie below 0.95"),
    }
    absent: ClassVar = {
        "effect": "a layer without heads, or padding",
        "best_head": "no prompt of that family, or no heads",
        "best_p_rank1": "a family of one template",
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the share of the five strongest heads, and the wins of one index."""
        (one,) = effects
        values = with_heads(one["kl"])
        if not values.sizes["layer"]:
            return {}
        return {"top_share": _share(one, values), "index_wins": _wins(one, values)}

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return effects per head, and which heads lead in which families."""
        import xarray as xr

        (one,) = effects
        values = one["kl"].transpose("prompt", "layer", "head")
        clusters = one.sample.clusters
        shape = values.shape[1:]
        means = clusters.family_means(values.values).reshape(len(clusters.families), -1)
        first, second = np.zeros(means.shape[1]), np.zeros(means.shape[1])
        best = np.full((3, len(clusters.families)), np.nan)  # layer, head, P(rank 1)
        for i, (family, mean) in enumerate(zip(clusters.families, means, strict=True)):
            order = np.argsort(np.where(np.isfinite(mean), -mean, np.inf), kind="stable")[: np.isfinite(mean).sum()]
            if not order.size:
                continue
            first[order[0]] += 1
            second[order[:2]] += 1
            layer, head = divmod(int(order[0]), shape[1])
            held = order[:48]  # only the strongest dozens can come first
            draws = clusters.family_draws(values.values.reshape(len(values), -1)[:, held], family)
            sure = float(probability_first(draws)[0]) if family in clusters.varying else math.nan
            best[:, i] = layer + one.first_layer, head, sure
        absent = np.isnan(means).all(0)
        found: dict[str, Any] = {"effect": one.sample.effects(one["kl"])}
        for name, counts in (("first", first), ("first_or_second", second)):
            found[name] = ("layer", "head"), np.where(absent, np.nan, counts).reshape(shape)
        for name, row in zip(("best_layer", "best_head", "best_p_rank1"), best, strict=True):
            found[name] = xr.DataArray(row, dims="family", coords={"family": list(clusters.families)})
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per finding about a model, and one for each head that is the strongest in most families."""
        rows: list[dict[str, str | float]] = []
        shown = super().table(dataset)
        for model in map(str, dataset["model"].values):
            one, own = dataset.sel(model=model), [row for row in shown if row["model"] == model]
            rows += own or [{"model": model, "number": "heads", "value": "none", **DASHES}]
            families = int(one["best_head"].notnull().sum())
            first, either = (one[name].transpose("layer", "head").values for name in ("first", "first_or_second"))
            order = np.argsort(-np.nan_to_num(first + either / 1000), axis=None, kind="stable")
            for place in order[:NAMED] if own else ():
                layer, head = np.unravel_index(int(place), first.shape)
                wins = first[layer, head]
                if wins > 0:
                    value = f"1st in {wins:.0f}, 2nd in {either[layer, head] - wins:.0f} of {families}"
                    label = f"head {layer}.{head} by family"
                    rows.append({"model": model, "number": label, "value": value, **DASHES})
        return rows


def with_heads(values: xr.DataArray) -> xr.DataArray:
    """Return effects ``(prompt, layer, head)`` of the layers that have heads."""
    values = values.transpose("prompt", "layer", "head")
    values = values.isel(layer=np.flatnonzero(values.notnull().any(("prompt", "head")).values))
    return values.isel(head=np.flatnonzero(values.notnull().any(("prompt", "layer")).values))


def top_share(effects: Floats) -> Floats:
    """Return the share of the five strongest ``(…)`` in effects ``(…, head)``."""
    known = np.nan_to_num(effects)
    few = np.partition(known, -min(TOP, known.shape[-1]), axis=-1)[..., -TOP:]
    return divide(few.sum(-1), known.sum(-1))


def _flat(effects: Floats) -> Floats:
    return effects.reshape(*effects.shape[:-2], -1)


def _share(one: Effects, values: xr.DataArray) -> Evidence:
    effects = one.sample.clusters.macro(values.values)  # (layer, head)
    heads = int(np.isfinite(effects).sum())
    observed = float(top_share(_flat(effects)))
    if math.isnan(observed):
        return Evidence(words={"heads": str(heads)})
    random = _random_shares(effects)
    low, high = (float(quantile(random, q)) for q in (0.025, 0.975))
    control = (float(random.mean()), low, high)
    reached = (1 + int((random >= observed * (1 - 1e-9)).sum())) / (1 + len(random))
    equal = one.sample.permuted(values, "head", lambda means: top_share(_flat(means)), DRAWS, ["layer"])
    number = _crossed(one, values)
    blocked = "no more than five heads" if heads <= TOP else ""
    return Evidence(
        number=number,
        p=max(reached, equal),
        against="shares at random and equal heads",
        side=1 if observed > control[0] else -1 if number[2] < control[0] else 0,
        answer=observed > control[0],
        control=control,
        blocked=blocked or ("" if math.isfinite(number[1]) else "too few templates"),
        descriptive=True,
        words={"heads": str(heads)},
    )


def _crossed(one: Effects, values: xr.DataArray) -> Bounds:
    """Return the share of the five strongest heads, chosen on half of the templates and measured on the others."""
    flat = _flat(values.values)
    flat = flat[:, np.isfinite(flat).any(0)]

    def pick(means: Floats) -> Floats:
        weights = np.ones((2, len(means)))
        weights[0, np.argsort(-np.nan_to_num(means), kind="stable")[TOP:]] = 0
        return weights

    (value, low, high), _ = one.sample.cross_fit(flat, pick, log=False)
    if not one.sample.clusters.resamples:
        return value, math.nan, math.nan
    return value, max(low, 0.0), min(high, 1.0)


def _random_shares(effects: Floats) -> Floats:
    """Return the share ``(draw)`` of five heads when shares of each layer's total are uniform on the simplex."""
    rng = np.random.default_rng(0)
    there = np.isfinite(effects)
    shares = rng.exponential(size=(DRAWS, *effects.shape)) * there
    shares *= np.nansum(effects, -1, keepdims=True) / shares.sum(-1, keepdims=True)
    return top_share(_flat(shares))


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


def _wins(one: Effects, values: xr.DataArray) -> Evidence:
    wins = wins_per_index(one.sample.clusters.macro(values.values))
    index, layers, heads = int(wins.argmax()), int(wins.sum()), len(wins)
    number = int(values["head"].values[index]) if "head" in values.coords else index
    tied = values.sizes["layer"] - layers
    words: dict[str, Any] = {
        "index": str(number),
        "layers": f"{layers} layers with attention" + (f" (in {tied} more none is the strongest)" if tied else ""),
    }
    if not layers:
        return Evidence((0.0, math.nan, math.nan), answer=number, blocked="no layer has a winner", words=words)
    drawn = wins_per_index(one.sample.clusters.macro_draws(values.values))[:, index]
    low, high = (float(np.quantile(drawn, q)) for q in (0.025, 0.975))
    value, chance = float(wins[index]), expected_wins(layers, heads)
    apart = one.sample.permuted(
        values.transpose("prompt", "head", "layer"), "layer", lambda means: means.var(-1).sum(-1), DRAWS
    )
    blocked = "" if apart <= ALPHA else "layers can't be told apart"
    if not one.sample.clusters.resamples:
        low, high, blocked = math.nan, math.nan, "too few templates"
    low, high = min(low, value), max(high, value)
    return Evidence(
        number=(value, low, high),
        p=max(apart, chance_of_wins(layers, heads, int(value))),
        against="the strongest head's index by chance, and layers permuted",
        side=side(low, high, chance),
        answer=number,
        control=(chance, math.nan, math.nan),
        least_p=chance_of_wins(layers, heads, layers),
        sample="layers",
        blocked=blocked,
        descriptive=True,
        words=words,
    )


def chance_of_wins(n_layers: int, n_heads: int, wins: int) -> float:
    """Return P(one index wins in at least ``wins`` of ``n_layers``) when each layer's winner is random.

    Exact: of all sequences of winners, those are counted in which every index wins fewer than ``wins`` times.
    """
    ways = [1] + [0] * n_layers  # such sequences of length n over the indices taken so far
    for _ in range(n_heads):
        ways = [sum(math.comb(n, k) * ways[n - k] for k in range(min(wins - 1, n) + 1)) for n in range(n_layers + 1)]
    total: int = n_heads**n_layers
    return (total - ways[n_layers]) / total


def expected_wins(n_layers: int, n_heads: int) -> float:
    """Return how many of ``n_layers`` the luckiest of ``n_heads`` indices wins on average, by chance."""
    return sum(chance_of_wins(n_layers, n_heads, wins) for wins in range(1, n_layers + 1))


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [HeadSpecialisation]
