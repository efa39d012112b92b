"""Which layers hold the same, within and between models; and whether a block of them is locked in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import cka as figure
from xatlas.findings import SHARE_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Statistic
from xatlas.findings.estimates import bounds_of, side
from xatlas.similarity import Grams, biased_cka, mirrored
from xatlas.stats import Floats
from xatlas.text import number

if TYPE_CHECKING:
    import xarray as xr

#: What is counted as holding the same, and how many tokens published numbers often rest on.
LOCKED, FEW = 0.9, 27
#: Permutations of whole prompts for two models; those within one are stored.
DRAWS = 100
#: Fewest samples that two models need to share, as one needs.
LEAST = 200
_ONE = "one layer"
_BARE = "no layer is left after trimming: the stream is too narrow"


class CKAMap(ClaimComparison):
    """Debiased linear CKA of layers with each other, and with those of other models at the same word ends.

    ``cka``, ``cka_null_q95 (model, variant, layer, layer_other)``: within each model, and what 95 % of permutations of
    whole prompts stay below; ``biased (model, layer, layer_other)``: the usual form on 27 tokens, untrimmed;
    ``block (model, layer)``: 1 in the block that is tested; of two models, trimmed, ``between`` and
    ``between_null_q95 (pair, layer, layer_other)``. Claims rest on the trimmed variant; intervals are from the
    jackknife over prompts, those of one template taken together. At equal depth each layer of the model with fewer
    stands beside the nearest of the other. A block is locked in where any two of its layers, at least three and a
    quarter of them, have a CKA of 0.9 or more: the longest is chosen on half of the templates and measured on the
    others. Where there is none, the one that the biased form shows is measured: a claim of it would be an artefact.
    """

    name = "cka_map"
    version = 1
    summary = "Which layers hold the same, within and between models, and is a block of them locked in?"
    default = False
    requires = (Requirement("cka"),)
    claims = (
        Claim(
            "within",
            "Do the layers of one model hold the same?",
            "In {model} two layers share {number} of what they hold (mean CKA; permuted prompts {control}; untrimmed "
            "{whole}; biased, {few} tokens: {biased})",
            label="CKA of two layers",
            short="layers hold the same more than chance has it",
            margin=SHARE_MARGIN,
            pair="the similarity of two layers",
            kinds=False,
        ),
        Claim(
            "locked",
            "Is a block of layers locked in?",
            "In {model} layers {block} are locked in: any two of them have a CKA of {number} or more (needed: "
            "{control}; biased, {few} tokens: {published})",
            label="least CKA in a block",
            short="a block of layers is locked in",
            kinds=False,
        ),
        Claim(
            "between",
            "Do two models hold the same at equal depth?",
            "At equal depth {first} and {second} share {number} of what they hold (mean CKA at {samples} word ends; "
            "permuted prompts {control}; biased, {few} tokens: {biased})",
            label="CKA between",
            short="models hold the same at equal depth more than chance has it",
            kinds=False,
        ),
    )
    _map = ("layer", "layer_other")
    variables: ClassVar = {
        "cka": Variable(("variant", *_map), "1", "debiased linear CKA of two layers"),
        "cka_null_q95": Variable(("variant", *_map), "1", "95 % quantile with whole prompts permuted"),
        "biased": Variable(_map, "1", "biased CKA of 27 tokens, as often published"),
        "block": Variable(("layer",), "1", "1 in the block that is tested"),
    }
    absent: ClassVar = {
        "cka": "padding of models with fewer layers, or a stream too narrow to be trimmed",
        "between": "layers that one of the two lacks, or too few samples that both read",
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the mean similarity of two layers, and the least in a block."""
        (one,) = effects
        if not one.setting.layer0:  # leaves numbers of all other layers as they are
            return {}
        if one.dataset.sizes["layer"] < 2:
            return {name: Evidence(blocked=_ONE, words=_NONE) for name in ("within", "locked")}
        return {"within": _within(one), "locked": _locked(one)[0]}

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return the mean similarity of two models at equal depth."""
        one, two = first[0], second[0]
        if not one.setting.layer0:
            return {}
        evidence, found = _between(one, two)
        if not one.sample.brief and found is not None:
            self._maps[f"{one.model}|{two.model}"] = found
        return {"between": evidence}

    def describe(self, *effects: Effects) -> dict[str, xr.DataArray]:
        """Return the maps of one model."""
        import xarray as xr

        (one,) = effects
        cka = one["cka"]
        place = {"layer": cka["layer"].values}
        few = biased_cka(_values(one, "all", _spread(_there(one, "all"))))
        start, stop = _locked(one)[1] if len(few) > 1 else (0, 0)
        inside = np.isin(np.arange(len(few)), np.arange(start, stop)).astype(float)
        return {
            "cka": cka,
            "cka_null_q95": one["cka_null_q95"],
            "biased": xr.DataArray(few, {**place, "layer_other": place["layer"]}, ("layer", "layer_other")),
            "block": xr.DataArray(inside, place, ("layer",)),
        }

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return what the class describes: numbers of models, and of every two."""
        import xarray as xr

        self._maps: dict[str, xr.Dataset] = {}
        dataset = super().compare(tree)
        if self._maps:
            pairs = xr.concat(self._maps.values(), xr.Variable("pair", list(self._maps)), join="outer")
            dataset = dataset.assign(pairs.reindex(layer=dataset["layer"], layer_other=dataset["layer_other"]))
            for name, called in (("between", "debiased linear CKA of two models"), ("between_null_q95", _NULL)):
                dataset[name].attrs = {"units": "1", "long_name": called}
        return dataset


_NULL = "95 % quantile with whole prompts permuted"
_NONE = dict.fromkeys(("whole", "biased", "block", "published", "samples"), "–") | {"few": str(FEW)}


def _there(one: Effects, variant: str) -> Any:
    """Return the places of the samples that a variant holds."""
    gram = one.dataset["gram"].sel(variant=variant)
    return np.flatnonzero(np.isfinite(gram.values[0].diagonal()))


def _spread(samples: Any) -> Any:
    """Return a few of some samples, evenly spaced."""
    return samples[np.unique(np.linspace(0, len(samples) - 1, FEW).astype(int))]


def _values(one: Effects, variant: str, samples: Any, layers: Any = slice(None)) -> Floats:
    """Return Gram matrices ``(layer, sample, sample_other)`` at some samples."""
    stored = one.dataset["gram"].sel(variant=variant).values[layers]
    return mirrored(stored[:, samples][:, :, samples])


def _grams(one: Effects, samples: Any, layers: Any = slice(None)) -> Grams:
    return Grams(_values(one, "trimmed", samples, layers), one.dataset["sample_prompt"].values[samples])


def _off(maps: Floats) -> Floats:
    """Return what maps ``(…, layer, layer)`` hold of two different layers ``(…, pair)``."""
    return np.asarray(maps[..., *np.triu_indices(maps.shape[-1], 1)])


def _statistic(one: Effects, samples: Any, value: float, without: Floats) -> Statistic:
    """Return a number with the jackknife's deviations: those of prompts ``(group,)``, summed over each template."""
    import xarray as xr

    data = one.dataset
    names = data["sample_prompt"].values[samples]
    prompts = names[np.flatnonzero(np.append(True, names[1:] != names[:-1]))]
    about = dict(
        zip(data["prompt"].values, zip(data["family"].values, data["template"].values, strict=True), strict=True)
    )
    moved: dict[str, float] = {}
    for prompt, change in zip(prompts, (len(without) - 1) * (without.mean() - without), strict=True):
        key = "all|{}:{}".format(*about[prompt])  # no mean over families: all prompts together give one number
        moved[key] = moved.get(key, 0.0) + change
    scaled = np.array(list(moved.values())) * len(moved) / len(without)
    coords: dict[str, Any] = {"cluster": list(moved), "family": ("cluster", ["all"] * len(moved))}
    return Statistic(xr.DataArray(value), xr.DataArray(scaled, coords, ("cluster",)), False)


def _above(statistic: Statistic, mark: float, control: float, **more: Any) -> Evidence:
    """Return what speaks for a CKA's lying above a mark."""
    value, low, high = bounds_of(statistic)
    few = "too few templates" if math.isfinite(value) and not math.isfinite(low) else ""
    return Evidence(
        number=(value, low, min(high, 1.0)),
        p=float(statistic.p(mark)),
        against=f"{number(mark)}, " + ("what is needed" if mark == LOCKED else "permuted prompts"),
        side=side(low, high, mark),
        answer=int(np.sign(value - mark)) if math.isfinite(value) else None,
        control=(control, math.nan, math.nan),
        blocked=few,
        statistic=statistic,
        **more,
    )


def _equal(statistic: Statistic, chance: float) -> dict[str, Any]:
    """Return what evidence says of a number's being what chance gives, within the margin."""
    return replace(statistic, point=statistic.point - chance).within(SHARE_MARGIN)


def _published(evidence: Evidence, *claims: tuple[str, float]) -> str:
    """Return which usual forms say that layers hold the same, where as defined here they do not."""
    if not (evidence.side < 0 or evidence.equal):
        return ""
    return " and ".join(f"{what} is {number(value)}" for what, value in claims if value >= 0.5)


def _within(one: Effects) -> Evidence:
    cka, null = (one[name].sel(variant="trimmed").values for name in ("cka", "cka_null_q95"))
    biased = float(_off(biased_cka(_values(one, "all", _spread(_there(one, "all"))))).mean())
    whole = float(_off(one["cka"].sel(variant="all").values).mean())
    words = {**_NONE, "whole": number(whole), "biased": number(biased)}
    if not np.isfinite(cka).all():
        return Evidence(blocked=_BARE, words=words)
    samples = _there(one, "trimmed")
    grams = _grams(one, samples)
    without = _off(grams.without(grams)).mean(-1)
    statistic, chance = _statistic(one, samples, float(_off(cka).mean()), without), float(_off(null).mean())
    found = _above(statistic, chance, chance, words=words, **_equal(statistic, chance))
    usual = (("untrimmed CKA", whole), (f"biased CKA of {FEW} tokens", biased))
    return replace(found, artefact=_published(found, *usual))


def longest(cka: Floats, mark: float) -> tuple[int, int]:
    """Return the longest run of layers of which any two reach a mark: its first layer, and the one behind its last."""
    best = (0, 0)
    for start in range(len(cka)):
        stop = start + 1
        while stop < len(cka) and (cka[start:stop, stop] >= mark).all():
            stop += 1
        best = max(best, (start, stop), key=lambda run: run[1] - run[0])
    return best


def _runs(maps: Floats, length: int) -> Floats:
    """Return the least CKA of any two layers in every run of a length ``(…, run)``."""
    starts = range(maps.shape[-1] - length + 1)
    runs = [maps[..., at : at + length, at : at + length].min((-2, -1)) for at in starts]
    return np.stack(runs, axis=-1)


def _locked(one: Effects) -> tuple[Evidence, tuple[int, int]]:
    """Return what speaks for a block's being locked in, and the block: chosen on half of the templates."""
    cka = one["cka"].sel(variant="trimmed").values
    layers = one.dataset["layer"].values
    least = max(3, -(-len(layers) // 4))
    words = dict(_NONE)
    if len(layers) < 3 or not np.isfinite(cka).all():
        return Evidence(blocked="too few layers" if len(layers) < 3 else _BARE, words=words), (0, 0)
    first, second = one.sample.halves[:2]
    samples, names = _there(one, "trimmed"), one.dataset["sample_prompt"].values
    chosen_on, measured_on = (
        samples[np.isin(names[samples], one.dataset["prompt"].values[half])] for half in (first, second)
    )
    if min(len(chosen_on), len(measured_on)) < LEAST / 4:
        return Evidence(blocked="too few templates", words=words), (0, 0)
    shown = _grams(one, chosen_on)
    seen = shown.cka(shown)
    few = biased_cka(_values(one, "all", _spread(chosen_on)))
    own, usual = longest(seen, LOCKED), longest(few, LOCKED)
    shows = usual[1] - usual[0] >= least
    words["published"] = f"layers {layers[usual[0]]} to {layers[usual[1] - 1]}" if shows else "no layers"
    tested = own if own[1] - own[0] >= least else usual
    if tested[1] - tested[0] < least:
        at = int(_runs(seen, least).argmax())
        tested = (at, at + least)
    words["block"] = f"{layers[tested[0]]} to {layers[tested[1] - 1]}"
    grams = _grams(one, measured_on)
    length = tested[1] - tested[0]
    runs, without = _runs(grams.cka(grams), length), _runs(grams.without(grams), length)
    least_of = _statistic(one, measured_on, float(runs[tested[0]]), without[:, tested[0]])
    lead = without[:, tested[0]] - without.mean(1)  # over the mean run of this length: what twins are compared by
    ahead = _statistic(one, measured_on, float(runs[tested[0]] - runs.mean()), lead)
    found = _above(least_of, LOCKED, LOCKED, words=words, scale_free=bounds_of(ahead))
    if found.side < 0 and shows:
        found = replace(found, artefact=f"biased CKA of {FEW} tokens shows {words['published']} so")
    return found, tested


def _between(one: Effects, two: Effects) -> tuple[Evidence, xr.Dataset | None]:
    """Return the similarity of two models at equal depth, and the maps of all their layers."""
    import xarray as xr

    held = [each.dataset["sample"].values[_there(each, "trimmed")] for each in (one, two)]
    both = np.isin(held[0], held[1])
    shared = held[0][both]
    if len(shared) < LEAST:
        return Evidence(blocked="too few word ends that both read", words=_NONE), None
    places = [each.dataset["sample"].to_index().get_indexer(shared) for each in (one, two)]
    a, b = (_grams(each, at) for each, at in zip((one, two), places, strict=True))
    cka = a.cka(b)
    few = np.concatenate([_values(each, "all", _spread(at)) for each, at in zip((one, two), places, strict=True)])
    left, right = _equal_depths(one.dataset["depth"].values, two.dataset["depth"].values)
    biased = float(biased_cka(few)[left, len(cka) + right].mean())
    words = {**_NONE, "samples": str(len(shared)), "biased": number(biased)}
    if not np.isfinite(cka).all():
        return Evidence(blocked=_BARE, words=words), None
    statistic = _statistic(one, places[0], float(cka[left, right].mean()), a.without(b)[:, left, right].mean(1))
    if one.sample.brief:
        return _above(statistic, 0.0, math.nan, words=words), None
    null = a.null(b, DRAWS)
    chance = float(np.quantile(null[:, left, right].mean(1), 0.95))
    found = _above(statistic, chance, chance, words=words, **_equal(statistic, chance))
    found = replace(found, artefact=_published(found, (f"biased CKA of {FEW} tokens", biased)))
    coords = {"layer": one.dataset["layer"].values, "layer_other": two.dataset["layer"].values}
    dims = ("layer", "layer_other")
    maps = {"between": (dims, cka), "between_null_q95": (dims, np.quantile(null, 0.95, axis=0))}
    return found, xr.Dataset(maps, coords)


def _equal_depths(first: Floats, second: Floats) -> tuple[Any, Any]:
    """Return places of layers at equal depth: each of the model with fewer, and the nearest of the other."""
    if len(first) > len(second):
        right, left = _equal_depths(second, first)
        return left, right
    return np.arange(len(first)), np.abs(first[:, None] - second).argmin(1)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [CKAMap]
