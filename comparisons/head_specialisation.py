"""Do a few heads carry the effect, which one leads per family, and does one head index win everywhere?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import head_figure, readings, summary
from xatlas.comparisons.readings import ABLATION, SCOPE, Estimate, Reading
from xatlas.ranks import chance_of_wins, expected_wins, winner
from xatlas.stats import Floats, agree, log_ratio

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: How many heads count as "a few".
TOP = 5
#: Shuffles of layer labels for the chance level of the share.
SHUFFLES = 1000


class HeadSpecialisation(Comparison):
    """Share of the five strongest heads, best head per family, and wins of one head index across layers.

    ``top_share (model)``: what the five heads with the largest family-macro KL hold of all heads' sum. Its
    control is the same share of the control's effects; its chance level shuffles layer labels independently
    in each template. ``best_layer``, ``best_head``, ``best_p_rank1``, ``best_tie (model, family)``.
    ``index_wins (model)``: in how many layers the most successful head *index* is the strongest head (layers
    whose two best heads agree numerically have no winner), with the exact chance level; ``index_wins_over_control``
    ranks heads by effect over control instead. That one index wins is called an artefact when it holds for raw
    effects only, and undecided when layers can't be told apart by shuffling their labels: layers that are
    all the same are one witness, not many.
    """

    name = "head_specialisation"
    version = 1
    summary = "Do a few heads carry the effect, and does one head index win across layers more than by chance?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Head ablation with its defaults."""
        return (Requirement("head_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "head_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        families = sorted({family for main in mains for family in main.clusters.families})
        variables = _head_variables(mains) | _family_variables(mains, families)
        shares = [_shares(main) for main in mains]
        for name, (units, words) in _WORDS.items():
            array = np.array([one[name] for one in shares])
            variables[name] = (("model",), array, units, words)
        rows, coords = readings.sensitivity(found, _estimate, "1")
        more, _ = readings.sensitivity(found, _wins_estimate, "layer", "sensitivity_wins")
        coords |= {"family": families, "head": np.arange(max(main.dataset.sizes["head"] for main in mains))}
        absent = {"effect": "a layer without heads, or padding", "best_head": "no prompt of that family"}
        absent["top_share"] = "a model without heads"
        return summary.assemble(self, found, variables | rows | more, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw a map of heads per model with the top five ringed, and the shares."""
        return head_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State, for each model with heads, the share of the top five and the wins of one index."""
        held = [i for i in range(dataset.sizes["model"]) if dataset["n_heads"].values[i] > 0]
        return [judge(dataset, i) for i in held for judge in (_share_finding, _wins_finding)]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            one = dataset.isel(model=i)
            if one["n_heads"] == 0:
                rows.append({"model": model, "top 5 share": "no heads"})
                continue
            share, wins = _share_finding(dataset, i), _wins_finding(dataset, i)
            layer, head = _strongest(one)
            row: dict[str, str | float] = {"model": model, "strongest head": f"{layer}.{head}"}
            row["P(rank 1)"] = summary.number(float(one["first_p_rank1"]))
            row["tie"] = "tie" if float(one["first_tie"]) else "none"
            row["top 5 share"] = summary.interval(share.value, share.low, share.high)
            row["control"] = summary.number(float(one["top_share_control"]))
            row["chance"] = summary.number(float(one["top_share_chance"]))
            row["verdict"] = share.verdict
            row["one index wins"] = (
                f"{int(wins.value)} of {int(one['n_layers_won'])} layers (head {int(one['index'])}, "
                f"chance {wins.control:.1f}): {wins.verdict}"
            )
            row["best per family"] = _families_text(one)
            ends = zip(dataset["sensitivity_low"].values[i], dataset["sensitivity_high"].values[i], strict=True)
            same = [low <= share.high and high >= share.low for low, high in ends]
            row["sensitivity"] = summary.sensitivity_note(dataset, i, same)
            rows.append(row)
        return rows


_WORDS = {
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
    "index_wins_over_control": ("layer", "wins of one index when heads rank by effect over control"),
    "index_wins_over_control_low": ("layer", "lower end of its 95 % interval"),
    "index_wins_over_control_high": ("layer", "upper end of its 95 % interval"),
    "index_wins_over_control_p": ("1", "exact chance of that many wins over control"),
}


def _head_variables(mains: Sequence[Reading]) -> dict[str, Any]:
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


def _family_variables(mains: Sequence[Reading], families: Sequence[str]) -> dict[str, Any]:
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
            best = winner(point[held], draws, resamples=main.clusters.resamples)
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
    five = known[..., chosen] if chosen is not None else np.sort(known, axis=-1)[..., -TOP:]
    return np.divide(five.sum(-1), total, out=np.full(np.shape(total), np.nan), where=total > 0)


def _share(main: Reading, ablation: str = ABLATION, scope: str = SCOPE, start: int = 0) -> Estimate:
    """Return the share with its interval; the five heads are those of the point estimate in every draw."""
    point, draws = main.macro("kl", ablation, scope)
    point, draws = point[start:].reshape(-1), draws[:, start:].reshape(len(draws), -1)
    five = np.argsort(np.where(np.isfinite(point), -point, np.inf))[:TOP]
    low, high = main.clusters.interval(top_share(draws, five))
    return Estimate(float(top_share(point)), float(low), float(high))


def _shares(main: Reading) -> dict[str, float]:
    """Return the values named in ``_WORDS`` for one model."""
    point = main.macro("kl")[0]
    found = dict.fromkeys(_WORDS, math.nan)
    found["n_heads"] = int(np.isfinite(point).sum())
    if not found["n_heads"]:
        return found
    share = _share(main)
    found |= {"top_share": share.value, "top_share_low": share.low, "top_share_high": share.high}
    found["top_share_control"] = float(top_share(main.macro("kl_control")[0].reshape(-1)))
    found["top_share_chance"], found["top_share_p"], found["layers_p"] = _chance(main)
    draws = main.macro("kl")[1]
    held = np.sort(np.argsort(np.where(np.isfinite(point), -point, np.inf), axis=None)[:48])
    first = winner(point.ravel()[held], draws.reshape(len(draws), -1)[:, held], resamples=main.clusters.resamples)
    if first is not None:
        found["first_p_rank1"], found["first_tie"] = first.probability, float(first.tie)
    return found | _index(main)


def _chance(main: Reading) -> tuple[float, float, float]:
    """Shuffle layer labels in each template: 95 % quantile of the share, its p-value, and that of layers."""
    parts = main.clusters.parts(main.values("kl"))
    parts = parts[:, np.isfinite(parts).any((0, 2))]  # (cluster, layer with heads, head)
    rng = np.random.default_rng(main.clusters.seed)
    rows = np.arange(len(parts))[:, None]

    def measure(order: Any) -> tuple[float, float]:
        effects = np.nan_to_num(parts[rows, order].sum(0))
        return float(top_share(effects.reshape(-1))), float(effects.var(0).sum())

    labels = np.tile(np.arange(parts.shape[1]), (len(parts), 1))
    observed = np.array(measure(labels))
    shuffled = np.array([measure(rng.permuted(labels, axis=1)) for _ in range(SHUFFLES)])
    p = (1 + (shuffled >= observed * (1 - 1e-9)).sum(0)) / (1 + SHUFFLES)
    return float(np.quantile(shuffled[:, 0], 0.95)), float(p[0]), float(p[1])


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


def _wins(main: Reading, point: Floats, draws: Floats) -> tuple[int, float, float, float, float, int]:
    """Return index, wins, their interval, the exact p-value and the number of layers with a winner."""
    wins = wins_per_index(point)
    index, layers = int(wins.argmax()), int(wins.sum())
    low, high = main.clusters.interval(wins_per_index(draws)[:, index])
    p = chance_of_wins(layers, len(wins), int(wins[index]))
    return index, float(wins[index]), float(low), float(high), p, layers


def _index(main: Reading) -> dict[str, float]:
    index, wins, low, high, p, layers = _wins(main, *main.macro("kl"))
    found = {"index": index, "n_layers_won": layers, "index_wins": wins, "index_wins_p": p}
    found |= {"index_wins_low": low, "index_wins_high": high}
    found["index_wins_chance"] = expected_wins(layers, main.dataset.sizes["head"])
    ratio = log_ratio(main.values("kl"), main.values("kl_control"))
    _, wins, low, high, p, _ = _wins(main, main.clusters.macro(ratio), main.clusters.macro_draws(ratio))
    name = "index_wins_over_control"
    return found | {name: wins, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}


def _estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    return _share(reading, ablation, scope, 0 if layer0 else 1)


def _wins_estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    start = 0 if layer0 else 1
    point, draws = reading.macro("kl", ablation, scope)
    return Estimate(*_wins(reading, point[start:], draws[:, start:])[1:4])


def _strongest(one: xr.Dataset) -> tuple[int, int]:
    effect = one["effect"].values
    layer, head = np.unravel_index(int(np.nanargmax(effect)), effect.shape)
    return int(layer), int(head)


def _families_text(one: xr.Dataset) -> str:
    """Return "family layer.head" for each family, with ~ before a head that ties with another."""
    cells = []
    for name in map(str, one["family"].values):
        best = one.sel(family=name)
        if not math.isnan(float(best["best_head"])):
            tie = "~" if float(best["best_tie"]) else ""
            cells.append(f"{name} {tie}{int(best['best_layer'])}.{int(best['best_head'])}")
    return ", ".join(cells)


def _share_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one, "top_share")
    control = max(float(one["top_share_control"]), float(one["top_share_chance"]))
    p, model = float(one["top_share_p"]), str(one["model"].item())
    clears = low > control and p <= summary.ALPHA
    agree_kinds = all(other[1] > control for other in summary.kinds(dataset, index))
    sentence = (
        f"The five strongest of {int(one['n_heads'])} heads of {model} hold {summary.interval(value, low, high)} "
        f"of the summed effect; control {summary.number(float(one['top_share_control']))}, shuffled layers "
        f"{summary.number(float(one['top_share_chance']))}."
    )
    verdict = summary.verdict(clears, agree_kinds, against=high < control)
    return Finding(sentence, value, low, high, control, p, verdict, model)


def _wins_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one, "index_wins")
    chance, p, model = float(one["index_wins_chance"]), float(one["index_wins_p"]), str(one["model"].item())
    name = "index_wins_over_control"
    over = float(one[f"{name}_low"]) > chance and float(one[f"{name}_p"]) <= summary.ALPHA
    apart = float(one["layers_p"]) <= summary.ALPHA
    raw = low > chance and p <= summary.ALPHA
    verdict = summary.verdict(
        raw and over and apart,
        all(other[1] > chance for other in summary.kinds(dataset, index, "sensitivity_wins")),
        against=p > summary.ALPHA and apart,
        published=raw and apart,
    )
    sentence = (
        f"In {model} head index {int(one['index'])} is the strongest head in {value:.0f} [{low:.0f}, {high:.0f}] "
        f"of {int(one['n_layers_won'])} layers; the luckiest index wins {chance:.1f} by chance, and "
        f"{float(one[name]):.0f} are won by one index over its control."
    )
    return Finding(sentence, value, low, high, chance, max(p, float(one[f"{name}_p"])), verdict, model)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [HeadSpecialisation]
