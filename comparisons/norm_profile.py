"""Whether the stream's norm jumps, whose jump it is, and whether where it jumps depends on the text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, XatlasError, hookimpl
from xatlas.comparisons.figures import norm as figure
from xatlas.findings import RATIO_MARGIN, SHARE_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Statistic
from xatlas.findings.estimates import bounds_of
from xatlas.findings.places import largest_ratio
from xatlas.findings.verdict import ALPHA, UNKNOWN
from xatlas.stats import PERMUTATIONS, Floats, dealt, divide
from xatlas.text import number

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

#: How often templates are dealt out to families at random.
DEALT = PERMUTATIONS // 5
#: Curves that are shown: a token's norm at the readout, at other tokens, at position 0; and that of a whole prompt.
CURVES = ("last", "other", "first", "prompt")
_WHOLE = "so it is with the norm over a whole prompt, of which one token holds {share:.0%} there"


class NormProfile(ClaimComparison):
    """Norms of the stream over depth: at single tokens, position 0 apart, and over whole prompts as often published.

    A jump is a layer that multiplies the norm by at least the parameter ``jump``; phases are the layers between jumps.
    Claims about a network: that it has a quiet phase and a high one, with a jump between them in one layer behind layer
    0, at the readout token; that where the norm over a prompt jumps most, one token holds most of it; that the layer
    with the largest ratio at the readout token depends on the family: pairs of templates of one family share that layer
    more often than pairs of different families, against templates dealt out to families at random; and that the stream
    at position 0 is longer than at the readout. The first and third are artefacts where they hold for the norm over a
    prompt, one token holds most of that, and they are refuted at the readout.

    ``norm (model, curve, layer, bound)``: the stream leaving a layer over the stream entering layer 0; ``growth``: that
    leaving a layer over that entering it; ``phase (model, curve, layer)`` counts the jumps up to a layer; ``token_share
    (model, layer, bound)``; ``jump_share (model, family, layer)``: share of a family's prompts whose readout token
    has its largest ratio in the layer.
    """

    name = "norm_profile"
    version = 1
    summary = "Does the stream's norm jump, is it one token's jump, and does the layer depend on the text?"
    default = False
    requires = (Requirement("residual_norms"),)

    @dataclass(frozen=True)
    class Parameters:
        """What counts as a jump.

        Parameters
        ----------
        jump : float
            How many times as long the stream has to leave a layer as it enters it.
        """

        jump: float = 2.0

        def __post_init__(self) -> None:
            if not (self.jump > 1 and math.isfinite(self.jump)):
                raise XatlasError(f"norm_profile.jump = {self.jump:g} does not fit: it takes a number above 1.")

    claims = (
        Claim(
            "phases",
            "Is the stream quiet in the first layers and high later, with a jump in one layer between?",
            "In {model} layer {layer} makes the stream {number} times as long at the readout token, which would be a "
            "jump from {jump} on (the other layers: {control}; over a whole prompt {whole} in layer {whole_layer})",
            label="jump, layer {layer}",
            short="the stream is quiet up to a jump in layer {layer}, and high after it",
            kinds=False,
        ),
        Claim(
            "one_token",
            "Where the norm over a whole prompt jumps most, does one token hold most of it?",
            "In {model}, where the norm over a prompt jumps most, one token ({token}) holds {number} of its square "
            "(entering that layer: {control})",
            label="one token's share",
            short="the jump of the norm over a prompt is one token's",
            pair="one token's share of the norm where it jumps",
            margin=SHARE_MARGIN,
            kinds=False,
        ),
        Claim(
            "family",
            "Does the layer in which the stream grows most depend on the family of the text?",
            "In {model} two templates of one family share the layer in which the readout token grows most more often "
            "than two of different families, by {number} ({within} against {apart}; dealt out at random: {control})",
            label="family and layer",
            short="the layer of the largest growth depends on the text",
            pair="how much the layer of the largest growth depends on the family",
            margin=SHARE_MARGIN,
            kinds=False,
        ),
        Claim(
            "first",
            "Is the stream longer at position 0 than at the readout?",
            "In {model} the stream is {number} times as long at position 0 as at the readout, over all layers",
            label="position 0 / readout",
            short="the stream is longer at position 0",
            pair="the norm at position 0 over that at the readout",
            margin=RATIO_MARGIN,
            kinds=False,
        ),
    )
    narrow = True
    curves = ("norm",)
    variables: ClassVar = {
        "norm": Variable(("curve", "layer", "bound"), "1", "norm leaving a layer over that entering layer 0"),
        "growth": Variable(("curve", "layer", "bound"), "1", "norm leaving a layer over that entering it"),
        "phase": Variable(("curve", "layer"), "1", "jumps up to the layer, itself included"),
        "token_share": Variable(("layer", "bound"), "1", "share of the longest token in the prompt's squared norm"),
        "jump_share": Variable(
            ("family", "layer"), "1", "share of prompts that grow most in the layer, at the readout"
        ),
        "jump": Variable((), "1", "growth from which on a layer is called a jump"),
    }
    absent: ClassVar = dict.fromkeys(
        ("norm", "growth", "phase", "token_share", "jump_share"), "padding, or no prompt has tokens of the class"
    )
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the jump, whose it is, whether its layer depends on the family, and the norm at position 0."""
        (one,) = effects
        left = _at(one["norm"].sel(position="first"), "resid_post"), _at(one["norm"].sel(position="last"), "resid_post")
        longer = one.sample.ratio(*(each.mean("layer") for each in left)).evidence(two_sided=False, margin=RATIO_MARGIN)
        found: dict[str, Evidence] = {"family": _family(one), "first": longer}
        if one.setting.layer0:  # of the others, layer 0 is left out in any case, or belongs to what is asked
            found |= {"phases": _phases(one, self.parameters.jump), "one_token": _one_token(one, self.parameters.jump)}
        return found

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return norms over depth, phases, and where prompts grow most."""
        import xarray as xr

        (one,) = effects
        names = xr.Variable("curve", list(CURVES))
        each = [curve(one, name) for name in CURVES]
        norm = [one.sample.ratio(after, before.isel(layer=0, drop=True)).bounds() for before, after in each]
        growth = xr.concat([one.sample.ratio(after, before).bounds() for before, after in each], names)
        value = growth.sel(bound="value", drop=True)
        phase = (value >= self.parameters.jump).cumsum("layer").where(value.notnull())
        layer = one["norm"]["layer"]
        hot = _jumps(*each[0]) == layer
        return {
            "norm": xr.concat(norm, names),
            "growth": growth,
            "phase": phase.assign_coords(layer=layer),
            "token_share": one.sample.mean(_at(one["token_share"], "resid_post")).bounds(),
            "jump_share": hot.astype(float).groupby(one["norm"]["family"].drop_vars("prompt", errors="ignore")).mean(),
            "jump": self.parameters.jump,
        }

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return the label of a number, the jump by its layer."""
        growth = one["growth"].sel(curve="last", bound="value")[1:]
        layer = "–" if growth.isnull().all() else int(growth.idxmax("layer"))
        return super().called(name, one).format(layer=layer)


def _at(values: xr.DataArray, site: str) -> xr.DataArray:
    return values.sel(site=site, drop=True)


def curve(one: Effects, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the norm entering and leaving each layer ``(prompt, layer)``: of a class of tokens, or of the prompt."""
    norm = one["frobenius"] if name == "prompt" else one["norm"].sel(position=name, drop=True)
    return _at(norm, "resid_pre"), _at(norm, "resid_post")


def _phases(one: Effects, jump: float) -> Evidence:
    """Return what speaks for a jump in one layer behind layer 0, at the readout token."""
    found, (whole, at) = _jump(one, "last", jump), _largest(one, "prompt")
    words = {**found.words, "whole": number(whole), "whole_layer": at, "jump": f"{jump:g}"}
    published = _jump(one, "prompt", jump) if found.side < 0 else found
    artefact = published.side > 0 and published.p <= ALPHA and not published.blocked
    return replace(found, words=words, artefact=_artefact(one) if artefact else "")


def _artefact(one: Effects) -> str:
    """Say why the norm over a prompt shows what the readout token does not; empty where no token holds most of it."""
    before, after = curve(one, "prompt")
    held = _at(one["token_share"], "resid_post").where(before["layer"] == _jumps(before, after)).max("layer")
    share = float(one.sample.mean(held).point)
    return _WHOLE.format(share=share) if share > 0.5 else ""


def _largest(one: Effects, name: str) -> tuple[float, str]:
    """Return the largest growth behind layer 0, and its layer."""
    before, after = (each.isel(layer=slice(1, None)) for each in curve(one, name))
    point = one.sample.ratio(after, before).point
    if not point.notnull().any():
        return math.nan, "–"
    best = point.isel(layer=int(point.argmax("layer")))
    return math.exp(float(best)), str(int(best["layer"]))


def _jump(one: Effects, name: str, jump: float) -> Evidence:
    """Test whether some layer behind layer 0 multiplies a norm by ``jump`` or more, and grows more than the others.

    Each layer's ratio is tested against ``jump`` (Bonferroni over layers), and the largest mean log ratio against
    ratios permuted over layers within templates; both have to hold.
    """
    before, after = (each.isel(layer=slice(1, None)) for each in curve(one, name))
    ratio = one.sample.ratio(after, before)
    point = ratio.point.values
    if np.isfinite(point).sum() < 2:
        return Evidence(blocked="too few layers", words={"layer": "–"})
    best = int(np.nanargmax(point))
    above = point > math.log(jump)
    tails = np.where(above, ratio.p(math.log(jump)).values / 2, 1.0)
    growing = one.sample.permuted(
        after.copy(data=np.log((after / before).values)), "layer", lambda means: means.max(-1), PERMUTATIONS // 5
    )
    low, high = (ratio.bounds().sel(bound=end).values for end in ("low", "high"))
    others = replace(ratio, point=_without(ratio.point, best), moved=_without(ratio.moved, best))
    largest, descriptive = largest_ratio(one.sample, after, before)
    return Evidence(
        number=largest,
        p=float(np.max([min(1.0, float(np.nanmin(tails)) * np.isfinite(point).sum()), growing])),
        against=f"a growth of {jump:g} and layers permuted",
        side=1 if low[best] > jump else -1 if (high[np.isfinite(point)] < jump).all() else 0,
        answer=int(ratio.point["layer"][best]) if above[best] else -1,
        control=bounds_of(others),
        blocked="" if np.isfinite(low[best]) else "too few templates",
        descriptive=descriptive,
        words={"layer": str(int(ratio.point["layer"][best]))},
    )


def _without(values: xr.DataArray, layer: int) -> xr.DataArray:
    """Return the mean over the other layers."""
    return values.drop_isel(layer=layer).mean("layer")


def _jumps(before: xr.DataArray, after: xr.DataArray) -> xr.DataArray:
    """Return the layer of the largest growth ``(prompt)``; NaN where there is none."""
    growth = after / before
    known = growth.notnull().any("layer")
    return growth["layer"][growth.fillna(-1.0).argmax("layer")].drop_vars("layer").astype(float).where(known)


def _one_token(one: Effects, jump: float) -> Evidence:
    """Return what speaks for one token's holding most of the norm where that of the prompt jumps, prompt by prompt."""
    before, after = curve(one, "prompt")
    growth = after / before
    layer = growth.fillna(-1.0).argmax("layer")
    held, entering = (
        _at(one["token_share"], site).isel(layer=layer, drop=True) for site in ("resid_post", "resid_pre")
    )
    own = (_at(one["norm"].sel(position="first"), "resid_post") / after).isel(layer=layer, drop=True) ** 2
    first = float((own > held * (1 - 1e-6)).mean())
    most, entered = (one.sample.mean(each - 0.5) for each in (held, entering))
    found = most.against(entered).evidence(two_sided=False)
    value, low, high = found.number
    grown = float(growth.max("layer").median())
    return replace(
        found,
        number=(value + 0.5, low + 0.5, high + 0.5),
        against="half, and what enters the layer",
        statistic=most,
        control=bounds_of(one.sample.mean(entering)),
        blocked=found.blocked or ("" if grown >= jump else "no jump: the norm over a prompt has none"),
        words={"token": "position 0" if first == 1 else f"position 0 in {first:.0%} of the prompts"},
    )


def _family(one: Effects) -> Evidence:
    """Return what families say about the layer of the largest growth, at the readout token."""
    found = _dependence(one, *curve(one, "last"))
    if found.blocked or not (found.equal or found.side < 0):
        return found
    published = _dependence(one, *curve(one, "prompt"))
    artefact = published.side > 0 and published.p <= ALPHA and not published.blocked
    return replace(found, artefact=_artefact(one) if artefact else "")


def _dependence(one: Effects, before: xr.DataArray, after: xr.DataArray) -> Evidence:
    """Test whether templates of one family share the layer of the largest growth more often than others.

    The number is the difference of two probabilities, that two templates of one family, and that two of different
    families, have their largest growth in the same layer; a template's prompts stand for it alike. Each template moves
    it by twice the deviation of its own difference (Hoeffding 1948). Templates are dealt out to families for the test.
    """
    import xarray as xr

    clusters, layers = one.sample.clusters, _jumps(before, after)
    which = (layers.values[:, None] == before["layer"].values).astype(float)  # (prompt, layer)
    known = clusters.member @ np.isfinite(layers.values).astype(float)
    share = divide(clusters.member @ which, np.broadcast_to(known[:, None], (clusters.size, which.shape[1])))
    rows = [own[known[own] > 0] for own in clusters.rows]
    rows = [own for own in rows if len(own) > 1]  # families of one template say nothing
    if len(rows) < 2:
        return Evidence(blocked="too few templates", words={"within": "–", "apart": "–"})
    kept, sizes = np.concatenate(rows), np.array([len(own) for own in rows])
    alike = share[kept] @ share[kept].T  # (template, template): how often two share the layer
    np.fill_diagonal(alike, 0.0)
    average = np.repeat(np.eye(len(rows)) / sizes, sizes, axis=1)  # (family, template)

    def difference(order: Any) -> float:
        within, apart = _within_and_apart(alike[order][:, order] @ average.T, sizes)
        return float((average @ (within - apart)).mean())

    within, apart = _within_and_apart(alike @ average.T, sizes)  # of each template
    point = float((average @ (within - apart)).mean())
    moved = np.full(clusters.size, np.nan)
    moved[kept] = 2 * (within - apart - np.repeat(average @ (within - apart), sizes))
    names = {"cluster": list(clusters.names), "family": ("cluster", [name.split("|")[0] for name in clusters.names])}
    statistic = Statistic(xr.DataArray(point), xr.DataArray(moved, dims="cluster", coords=names), log=False)
    chance, least = dealt(sizes.tolist(), difference, 0 if one.sample.brief else DEALT, clusters.seed)
    return replace(
        statistic.evidence(two_sided=False, margin=SHARE_MARGIN),
        p=(1 + int((chance >= point - 1e-12).sum())) / (1 + len(chance)) if chance.size else math.nan,
        against="templates dealt out to families",
        control=(float(chance.mean()), *np.quantile(chance, (0.025, 0.975)).tolist()) if chance.size else UNKNOWN,
        least_p=least,
        words={"within": f"{(average @ within).mean():.2f}", "apart": f"{(average @ apart).mean():.2f}"},
    )


def _within_and_apart(shared: Floats, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return how often each template ``(template)`` shares the layer with one of its family, and with one of others.

    ``shared (template, family)`` is the mean over a family's templates, the template itself counted as 0.
    """
    own = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=0)
    within = np.where(own, shared, 0.0).sum(-1) * np.repeat(sizes / (sizes - 1), sizes)
    return within, np.where(own, 0.0, shared).sum(-1) / (len(sizes) - 1)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [NormProfile]
