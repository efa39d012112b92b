"""Whether early layers matter more than late ones, and whether models share the profile over depth."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import early_late as early_late_figure
from xatlas.comparisons.measures import readings, settings, summary
from xatlas.comparisons.measures.readings import ABLATIONS, SCOPE, Estimate, Reading
from xatlas.stats import EPSILON, Floats, correlate_ranks, quantile

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

JOINT = "joint"
#: Random orders of a model's layers that profiles are compared against.
ORDERS = 2000


class EarlyLate(Comparison):
    """Mean ``joint`` effect of the first half of the layers over the second; an odd middle layer is left out.

    ``early_over_late (model)`` with its control: the same ratio of the control's effects. ``profile (model,
    point)``: each layer's effect over the model's mean layer, interpolated on 20 depths, and its rank
    correlation between models, whose control is the 95 % quantile over random orders of one model's layers.
    p-values: two-sided sign flips per template of the log ratio, against 1 and against the control, the
    larger of both; for the correlation the share of random orders that reach it. ``sensitivity (model, setting)``
    holds the ratio under other settings: ``early_late.sensitivity.csv`` lists them, with commands for what was
    not run.
    """

    name = "early_late"
    version = 2
    summary = "Do early layers matter more than late ones, and do models share the profile over depth?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation with its defaults."""
        return (Requirement("layer_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "layer_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        variables: dict[str, Any] = {}
        for name, variable in (("early_over_late", "kl"), ("control", "kl_control")):
            rows = np.array([_ratio(main, variable) for main in mains]).T
            words = ("1", f"mean effect of the first half of the layers over the second, {variable}")
            variables |= summary.with_interval(name, ("model",), rows[0], (rows[1], rows[2]), *words)
        p = np.array([_p_value(main) for main in mains])
        variables["p"] = (("model",), p, "1", "sign-flip p-value against 1 and the control, the larger")
        variables |= _profiles(mains) | _correlations(mains)
        sensitivity, coords = settings.sensitivity(found, _estimate, "1", "early over late")
        coords |= {"point": summary.DEPTHS, "model_other": [main.model for main in mains]}
        coords["kind"] = list(ABLATIONS)
        absent = {"early_over_late": "a model of one layer has no halves"}
        absent["profile_correlation"] = "an ablation kind that was not measured, or a constant profile"
        return summary.assemble(self, found, variables | sensitivity, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the profiles over depth and the ratios with their controls."""
        return early_late_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State each model's ratio, then each pair's correlation of profiles."""
        count = dataset.sizes["model"]
        pairs = (_pair_finding(dataset, i, j) for i, j in itertools.combinations(range(count), 2))
        return [_ratio_finding(dataset, i) for i in range(count)] + [pair for pair in pairs if pair]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model."""
        rows: list[dict[str, str | float]] = []
        for i, finding in enumerate(self.findings(dataset)[: dataset.sizes["model"]]):
            one = dataset.isel(model=i)
            main = rule.side(finding.low, finding.high, 1)
            ends = zip(dataset["sensitivity_low"].values[i], dataset["sensitivity_high"].values[i], strict=True)
            same = [rule.side(low, high, 1) == main for low, high in ends]
            rows.append(
                {
                    "model": finding.model,
                    "early / late": summary.interval(*summary.triple(one, "early_over_late")),
                    "control": summary.interval(*summary.triple(one, "control")),
                    "p": summary.number(finding.p),
                    "verdict": finding.verdict,
                    "sensitivity": summary.sensitivity_note(dataset, i, same),
                }
            )
        return rows


def _joint(main: Reading) -> int:
    return int(main.dataset["component"].values.tolist().index(JOINT))


def _ratio(
    main: Reading, variable: str, ablation: str = "mean", scope: str = SCOPE, start: int = 0
) -> tuple[float, float, float]:
    point, draws = (each[..., _joint(main)] for each in main.macro(variable, ablation, scope))

    def divide(values: Floats) -> Floats:
        early, late = summary.halves(values, start)
        return np.asarray(np.divide(early, late, out=np.full(np.shape(early), np.nan), where=late > 0))

    low, high = main.clusters.interval(divide(draws))
    return float(divide(point)), float(low), float(high)


def _p_value(main: Reading) -> float:
    logs = []
    for variable in ("kl", "kl_control"):
        early, late = summary.halves(main.values(variable)[..., _joint(main)])
        logs.append(np.log((early + EPSILON) / (late + EPSILON)))
    both = (main.clusters.max_t(each, alternative="two-sided") for each in (logs[0], logs[0] - logs[1]))
    return float(np.max(list(both)))


def _estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    return Estimate(*_ratio(reading, "kl", ablation, scope, 0 if layer0 else 1))


def _profile(main: Reading, values: Floats) -> Floats:
    """Return effects ``(…, layer)`` over their mean, interpolated on 20 depths ``(…, point)``."""
    n_layers = values.shape[-1]
    mean = values.mean(-1, keepdims=True)
    relative = np.divide(values, mean, out=np.full(values.shape, np.nan), where=mean > 0)
    place = summary.DEPTHS * (n_layers - 1)
    below = np.minimum(place.astype(int), max(n_layers - 2, 0))
    above = np.minimum(below + 1, n_layers - 1)
    return np.asarray(relative[..., below] + (relative[..., above] - relative[..., below]) * (place - below))


def _profiles(mains: list[Reading]) -> dict[str, Any]:
    points, lows, highs = [], [], []
    for main in mains:
        point, draws = (each[..., _joint(main)] for each in main.macro("kl"))
        points.append(_profile(main, point))
        low, high = main.clusters.interval(_profile(main, draws))
        lows.append(low)
        highs.append(high)
    words = ("1", "joint effect over the model's mean layer, interpolated on 20 depths")
    ends = (np.array(lows), np.array(highs))
    return summary.with_interval("profile", ("model", "point"), np.array(points), ends, *words)


def _correlations(mains: list[Reading]) -> dict[str, Any]:
    """Compare the profiles of every two models, under every ablation kind that both hold."""
    dims, shape = ("model", "model_other", "kind"), (len(mains), len(mains), len(ABLATIONS))
    numbers = np.full((5, *shape), np.nan)
    for k, kind in enumerate(ABLATIONS):
        for i, j in itertools.combinations(range(len(mains)), 2):
            if mains[i].holds(kind, SCOPE) and mains[j].holds(kind, SCOPE):
                numbers[:, i, j, k] = numbers[:, j, i, k] = _correlate(mains[i], mains[j], kind)
    words = ("1", "rank correlation of two profiles over 20 depths")
    found = summary.with_interval("profile_correlation", dims, numbers[0], (numbers[1], numbers[2]), *words)
    found["profile_correlation_control"] = (dims, numbers[3], "1", "95 % quantile over random layer orders")
    found["profile_correlation_p"] = (dims, numbers[4], "1", "share of random layer orders that reach it")
    return found


def _correlate(a: Reading, b: Reading, kind: str) -> tuple[float, float, float, float, float]:
    """Return correlation, its interval, the control and the p-value."""
    (point_a, draws_a), (point_b, draws_b) = (
        tuple(each[..., _joint(main)] for each in main.macro("kl", kind)) for main in (a, b)
    )
    value = float(correlate_ranks(_profile(a, point_a), _profile(b, point_b)))
    if math.isnan(value):
        return (math.nan,) * 5
    clusters = a.clusters if b.clusters.resamples else b.clusters  # no interval unless both can be resampled
    low, high = clusters.interval(correlate_ranks(_profile(a, draws_a), _profile(b, draws_b)))
    rng = np.random.default_rng(a.clusters.seed)
    orders = rng.permuted(np.tile(point_b, (ORDERS, 1)), axis=1)
    chance = correlate_ranks(np.broadcast_to(_profile(a, point_a), (ORDERS, 20)), _profile(b, orders))
    p = (1 + float((chance >= value - 1e-12).sum())) / (1 + ORDERS)
    return value, float(low), float(high), float(quantile(chance, 0.95)), p


def _ratio_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one, "early_over_late")
    control, p, model = float(one["control"]), float(one["p"]), str(one["model"].item())
    if math.isnan(value):
        return Finding(f"{model} has no two halves to compare.", value, low, high, control, p, "undecided", model)
    main = rule.side(low, high, 1, control)
    agree = all(rule.side(low, high, 1) == main for _, low, high in rule.kinds(dataset, index))
    # what the control does as much or more, in the same direction, is no finding about early and late
    against = 1 < low <= high < control or control < low <= high < 1
    verdict = rule.verdict(main != 0 and p <= rule.ALPHA, agree, against=against)
    what = {1: "matters more than", -1: "matters less than", 0: "does no more, beside its control, than"}[main]
    sentence = (
        f"In {model} the first half of the layers {what} the second: ratio {summary.interval(value, low, high)}, "
        f"control {summary.number(control)}."
    )
    return Finding(sentence, value, low, high, control, p, verdict, model)


def _pair_finding(dataset: xr.Dataset, i: int, j: int) -> Finding | None:
    one = dataset.isel(model=i, model_other=j)
    value, low, high = summary.triple(one.isel(kind=0), "profile_correlation")
    if math.isnan(value):  # one layer has no profile
        return None
    control, p = (float(one[f"profile_correlation_{what}"][0]) for what in ("control", "p"))
    others = one["profile_correlation"].values[1:], one["profile_correlation_control"].values[1:]
    agree = all(other > chance for other, chance in zip(*others, strict=True) if not math.isnan(other))
    verdict = rule.verdict(low > control and p <= rule.ALPHA, agree, against=high < control)
    names = [str(dataset["model"].values[k]) for k in (i, j)]
    sentence = (
        f"The profiles of {names[0]} and {names[1]} over depth correlate by ranks: "
        f"{summary.interval(value, low, high)}, random layer orders reach {summary.number(control)}."
    )
    return Finding(sentence, value, low, high, control, p, verdict)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [EarlyLate]
