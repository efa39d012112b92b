"""At which depth the subject's information has reached the readout, and which operator moves it there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, XatlasError, hookimpl
from xatlas.comparisons.figures import patching as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence, Sample, largest
from xatlas.findings.estimates import bounds_of
from xatlas.findings.places import largest_over
from xatlas.findings.readings import sample_of
from xatlas.findings.verdict import Bounds
from xatlas.stats import PERMUTATIONS, Floats, quantile
from xatlas.vocabulary import PATCH_MODES, POSITION_CLASSES

if TYPE_CHECKING:
    import xarray as xr

SITES = ("resid_post", "operator_out", "mlp_out")
#: Largest mean distance from 1 of the last layer's stream at the readout: bfloat16 rounds by half of it.
_GAP = 0.02


class PatchingProfile(ClaimComparison):
    """Where the answer moves with a patch: stream, operators and MLPs, by layer and position.

    ``recovery (model, site, position, mode, layer, bound)``: family-macro share of the answer that moves, beside
    ``recovery_control``. ``onset (model, mode, bound)``: depth of the first layer from which on the stream at the
    readout recovers half of the answer or more; ``departure``: from which on the subject's recovers less than half. In
    the last layer both are so by construction, which is their control, and that layer takes no part in the test: the
    step at the onset against that of profiles whose layers are permuted within templates. Numbers are those of
    ``denoise``, and nothing is decided where ``noise`` contradicts it. Two models are compared on the prompts that
    both answer.
    """

    name = "patching_profile"
    version = 3
    summary = "At which depth has the subject's information reached the readout, and which operator moves it?"
    default = False
    requires = (Requirement("activation_patching"),)
    claims = (
        Claim(
            "onset",
            "At which depth has the subject's information reached the readout?",
            "From depth {number} on (layer {layer}, {type}) the stream at the readout of {model} recovers half of the "
            "answer or more: {there} there, {before} before",
            label="at readout from",
            short="the answer reaches the readout before the last layer",
            pair="the depth at which the answer reaches the readout",
            kinds=False,
        ),
        Claim(
            "departure",
            "From which depth on is it gone from the subject?",
            "From depth {number} on (layer {layer}, {type}) the stream at the subject of {model} recovers less than "
            "half of the answer: {there} there, {before} before",
            label="gone from subject",
            short="the answer has left the subject before the last layer",
            kinds=False,
        ),
        Claim(
            "mover",
            "Does one layer's operator move most of it to the readout?",
            "In {model} the operator of layer {layer} ({type}) moves most to the readout: alone it recovers {number} "
            "of the answer (a random change of equal norm {control})",
            label="top operator",
            short="one operator moves most of the answer to the readout",
            kinds=False,
        ),
    )
    _map = ("site", "position", "mode", "layer", "bound")
    curves = ("recovery",)
    variables: ClassVar = {
        "recovery": Variable(_map, "1", "share of the answer that moves with the patch"),
        "recovery_control": Variable(_map, "1", "the same for a random change of equal norm"),
        "onset": Variable(("mode", "bound"), "1", "depth from which on the readout's stream recovers half or more"),
        "departure": Variable(("mode", "bound"), "1", "depth from which on the subject's recovers less than half"),
        "mover": Variable((), "layer", "layer whose operator's output at the readout recovers most"),
        "prompts": Variable((), "1", "pairs that were patched"),
        "dropped": Variable((), "1", "prompts left out"),
    }
    absent: ClassVar = {
        "recovery": "padding of models with fewer layers, a site that a layer lacks, a position without tokens",
        "onset": "the readout's stream never recovers half",
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return onset, departure and the operator that moves most."""
        (one,) = effects
        check(one)
        found = {"mover": _mover(one)}
        if one.setting.layer0:  # when a profile crosses a half does not change with its beginning cut off
            found |= {"onset": _crossing(one, "last"), "departure": _crossing(one, "subject")}
        return found

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return the difference in onset, over the prompts that both models answer."""
        one, two = first[0], second[0]
        return {"onset": _difference(one, two) if one.setting.layer0 else None}

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return maps, depths in both modes, and how many prompts there were."""
        import xarray as xr

        from xatlas.schema import notes

        (one,) = effects
        check(one)
        chosen: dict[str, Any] = {"site": list(SITES), "position": list(POSITION_CLASSES), "mode": list(PATCH_MODES)}
        names = ("recovery", "recovery_control")
        found: dict[str, Any] = {name: one.sample.mean(one[name].sel(chosen)).bounds() for name in names}
        for name, position in (("onset", "last"), ("departure", "subject")):
            rows = [_depth(one, position, mode) for mode in PATCH_MODES]
            found[name] = xr.DataArray(rows, {"mode": list(PATCH_MODES)}, ("mode", "bound"))
        first = largest(one.sample, _moved(one))
        found["mover"] = float(first.label) if first else math.nan
        found["prompts"] = float(one.dataset.sizes["prompt"])
        found["dropped"] = float(len(notes(one.dataset, "dropped")))
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per finding about a model, with the layer that it names."""
        rows = super().table(dataset)
        about = [finding for finding in self.findings(dataset) if not finding.model_other]
        for row, finding in zip(rows, about, strict=True):
            one = dataset.sel(model=finding.model)
            depth = one["depth"].values
            at = float(one["mover"]) if finding.name == "mover" else finding.value * (np.isfinite(depth).sum() - 1)
            row["layer"] = "–" if math.isnan(at) else f"{round(at)}"
        order = ("model", "number", "layer", "value", "control", "verdict", "sensitivity")
        return [{name: row[name] for name in order} for row in rows]


def check(one: Effects) -> None:
    """Refuse a result that was measured on fewer sites, positions or modes than profiles show.

    Raises
    ------
    XatlasError
        Names what is missing, and the command that measures it.
    """
    for dim, needed in (("site", SITES), ("position", POSITION_CLASSES), ("mode", PATCH_MODES)):
        missing = [name for name in needed if name not in one.dataset[dim].values]
        if missing:
            raise XatlasError(
                f"activation_patching of {one.model} was measured without the {dim} '{missing[0]}'; measure it "
                f"with: xatlas run {one.reading.called} --probes activation_patching"
            )


def stays_from(there: Any) -> Floats:
    """Return the first layer from which on ``there (…, layer)`` is true to the end; NaN where it never is."""
    kept = np.logical_and.accumulate(np.asarray(there)[..., ::-1], axis=-1)[..., ::-1]
    return np.where(kept.any(-1), kept.argmax(-1), np.nan)


def _stream(one: Effects, position: str, mode: str) -> xr.DataArray:
    stream = one["recovery"].sel(site="resid_post", position=position, mode=mode, drop=True)
    return stream.transpose("prompt", "layer")


def _there(recovery: Floats, position: str) -> Any:
    return recovery >= figure.HALF if position == "last" else recovery < figure.HALF


def _crossed(sample: Sample, stream: xr.DataArray, position: str) -> tuple[float, Floats]:
    """Return depth, and bootstrap draws of it, stretched for few templates."""
    last = max(stream.sizes["layer"] - 1, 1)
    clusters, values = sample.clusters, stream.values
    depth = float(stays_from(_there(clusters.macro(values), position))) / last
    drawn = stays_from(_there(clusters.macro_draws(values), position)) / last
    at = 0 if math.isnan(depth) else round(depth * last)
    freedom = sample.mean(stream.isel(layer=max(at - 1, 0))).freedom()
    return depth, np.clip(sample.stretched(drawn, depth, freedom), 0, 1)


def _ends(draws: Floats, value: float, resamples: bool) -> Bounds:
    """Return the value with the ends of its interval; draws are whole layers, and may end beside it."""
    known = draws[np.isfinite(draws)]
    if not resamples or not known.size or math.isnan(value):
        return value, math.nan, math.nan
    return value, min(float(quantile(known, 0.025)), value), max(float(quantile(known, 0.975)), value)


def _depth(one: Effects, position: str, mode: str) -> Bounds:
    depth, drawn = _crossed(one.sample, _stream(one, position, mode), position)
    return _ends(drawn, depth, one.sample.clusters.resamples)


def _crossing(one: Effects, position: str) -> Evidence:
    """Return what speaks for a profile's crossing a half before the last layer, where it must."""
    stream = _stream(one, position, "denoise")
    number, noise = (_depth(one, position, mode) for mode in PATCH_MODES)
    n_layers, value = stream.sizes["layer"], number[0]
    at = 0 if math.isnan(value) else round(value * (n_layers - 1))
    means = one.sample.clusters.macro(stream.values)
    words = {
        "layer": "–" if math.isnan(value) else str(at),
        "type": str(one.dataset["operator_type"].values[at]),
        "there": f"{means[at]:.2f}",
        "before": f"{means[at - 1]:.2f} a layer" if at else "nothing was patched",
    }
    sign = 1 if position == "last" else -1

    def step(means: Floats) -> Floats:
        """Return how much higher profiles lie, on average, behind the best place to cut them."""
        cuts = [means[..., at:].mean(-1) - means[..., :at].mean(-1) for at in range(1, means.shape[-1])]
        return np.asarray(np.max(sign * np.array(cuts), axis=0))

    before_last = stream.isel(layer=slice(None, -1))
    p = one.sample.permuted(before_last, "layer", step, PERMUTATIONS // 5) if n_layers > 2 else math.nan
    blocked = ""
    if not one.sample.clusters.resamples:
        blocked = "too few templates"
    elif n_layers < 3:
        blocked = "too few layers"
    elif _last_gap(one) > _GAP:
        blocked = "the last layer's stream does not recover everything, as it must"
    elif at == 0:
        blocked = "it is so from the first layer on"
    elif not (number[1] <= noise[2] and noise[1] <= number[2]):
        blocked = "denoise and noise disagree"
    return Evidence(
        number=number,
        p=p,
        against="layers permuted",
        side=1 if number[2] < 1 else -1 if value == 1 else 0,
        answer=None if math.isnan(value) else at,
        control=(1.0, math.nan, math.nan),
        blocked=blocked,
        words=words,
    )


def _last_gap(one: Effects) -> float:
    """Return how far the last layer's stream at the readout is from what it must be, 1."""
    return float(np.nanmean(np.abs(_stream(one, "last", "denoise").values[:, -1] - 1)))


def _moved(one: Effects, name: str = "recovery", mode: str = "denoise") -> xr.DataArray:
    return one[name].sel(site="operator_out", position="last", mode=mode, drop=True).transpose("prompt", "layer")


def _mover(one: Effects) -> Evidence | None:
    """Return what speaks for one operator's moving most to the readout; None for a model without any."""
    moved = _moved(one)
    first = largest(one.sample, moved)
    if first is None:
        return None
    whole = np.isfinite(moved.values).any(1).astype(float)
    number, _ = largest_over(one.sample, np.nan_to_num(moved.values), whole)
    control = one.sample.mean(_moved(one, "recovery_control").isel(layer=first.index))
    over = (one.sample.mean(moved.isel(layer=first.index)) - control).evidence(two_sided=False)
    other = largest(one.sample, _moved(one, mode="noise"))
    found = Evidence(
        number=number,
        p=float(np.nanmax([first.p, over.p])) if first.runner_up is not None else math.nan,
        against="layers permuted and the control",
        side=over.side,
        own=1,
        answer=int(first.label),
        control=bounds_of(control),
        descriptive=True,
        words={"layer": str(first.label), "type": str(one.dataset["operator_type"].values[first.index])},
    )
    blocked = ""
    if first.runner_up is None:
        blocked = "one layer"
    elif not one.sample.clusters.resamples:
        blocked = "too few templates"
    elif first.tie and over.side >= 0:
        blocked = f"it ties with layer {', '.join(map(str, first.tied))}"
    elif _last_gap(one) > _GAP or (other is not None and other.label != first.label):
        blocked = "denoise and noise disagree, or layers are mislabelled"
    return replace(found, blocked=blocked)


def _difference(one: Effects, two: Effects) -> Evidence:
    """Return the difference in onset, on the prompts that both answer; half a layer of the shallower is nothing."""
    others = set(two.dataset["prompt"].values.tolist())
    common = [name for name in one.dataset["prompt"].values.tolist() if name in others]
    n_layers = [each.dataset.sizes["layer"] for each in (one, two)]
    if not common:
        return Evidence(blocked="no prompt that both answer")
    depths, draws, resamples = [], [], True
    for each in (one, two):
        sample = sample_of(each.dataset.sel(prompt=common))
        depth, drawn = _crossed(sample, _stream(each, "last", "denoise").sel(prompt=common), "last")
        depths.append(depth)
        draws.append(drawn)
        resamples &= sample.clusters.resamples
    value, drawn = depths[0] - depths[1], draws[0] - draws[1]
    number = _ends(drawn, value, resamples)
    drawn = drawn[np.isfinite(drawn)]
    margin = figure.HALF / max(min(n_layers) - 1, 1)

    def share(there: Any) -> float:
        return (1 + int(there.sum())) / (1 + len(drawn))

    gap = max(share(drawn >= margin), share(drawn <= -margin))
    ordered = all(each.dataset.sizes["layer"] > 1 and _last_gap(each) < _GAP for each in (one, two))
    blocked = "too few templates" if not resamples else "" if ordered else "a profile does not end at 1, as it must"
    return Evidence(
        number=number,
        p=min(1.0, 2 * min(share(drawn >= 0), share(drawn <= 0))),
        against="0",
        margin=margin,
        side=int(number[1] > 0 or number[2] < 0),
        answer=int(np.sign(value)) if math.isfinite(value) else None,
        control=(0.0, math.nan, math.nan),
        near=abs(value) < margin,
        equal=abs(value) < margin and gap <= 0.05,
        equal_p=gap,
        blocked=blocked,
    )


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [PatchingProfile]
