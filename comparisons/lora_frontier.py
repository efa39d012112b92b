"""What fine-tuning costs: KL shift at equal held-out loss, by where LoRA weights go and how they are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import frontier as figure
from xatlas.findings import RATIO_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Sample, Statistic
from xatlas.findings.estimates import bounds_of
from xatlas.findings.verdict import ALPHA
from xatlas.stats import Floats
from xatlas.text import number

if TYPE_CHECKING:
    import xarray as xr

#: Fewest training seeds of a claim.
SEEDS = 5
#: Share of the loss before training that has to be learnt before costs are compared.
LEARNT = 0.05
#: Strategies that are compared with ``all_linear``, and methods that are with SFT.
STRATEGIES = ("attention_only", "mlp_only", "conv_only", "atlas_guided", "atlas_full")
METHODS = {"qlora": "QLoRA", "dpo": "DPO", "grpo": "GRPO"}
#: What grows: a coordinate of the settings, its probe's place among the requirements, its step, and how that is called.
SWEEPS = {"rank": (1, 2.0, "each doubling of the rank"), "learning_rate": (2, 10.0, "a tenfold learning rate")}
SWEEPS["steps"] = (2, 2.0, "twice the steps")


def _cost(name: str, dear: str, cheap: str, label: str = "", level: str = "held-out loss") -> Claim:
    return Claim(
        name,
        f"Does {dear} shift the model more than {cheap}, where both have learnt as much?",
        f"At equal {level} {dear} shifts {{model}} {{number}} times as much as {cheap} (after equal steps {{steps}})",
        label=label or f"{dear} / {cheap}",
        short=f"at equal {level} {dear} shifts the model more than {cheap}",
        margin=RATIO_MARGIN,
        kinds=False,
    )


def _growth(name: str, called: str, what: str, said: str) -> Claim:
    return Claim(
        f"{name}_{what}",
        f"Does {called} change the {said}, after equal steps?" if name != "steps" else f"Does it with {called}?",
        f"In {{model}} the {said} becomes {{number}} times as large with {called}",
        label=f"{said} by {name.replace('_', ' ')}",
        short=f"{called} changes the {said}",
        margin=RATIO_MARGIN,
        kinds=False,
    )


class LoraFrontier(ClaimComparison):
    """KL shift against held-out loss, a curve for each strategy, compared where both have learnt as much.

    A strategy that has learnt less has shifted less; so at one number of steps nothing can be said. In each training
    seed two curves are read at the lowest loss that both reach (log KL interpolated over loss; from 0, its root); the
    number is the geometric mean of their quotients, its interval and p-value those of a paired t over seeds, at least
    five. What holds after equal steps, where more was learnt, is an artefact if at equal loss the two are equal within
    the margin, or the interval lies below the quotient after equal steps; one that reaches from 1 to that quotient
    decides nothing. DPO and GRPO, which are not trained to lower the loss, are compared with SFT at equal reward. KL is
    that on families that were not trained on (``shift=trained``: on those that were), loss and reward those on families
    that were. Ranks, learning rates and steps: the quotient for each doubling (tenfold), a straight line through
    logarithms, after the last step. That KL doubles with the rank: that this quotient is 2, within 0.80 to 1.25 of it.

    ``loss``, ``kl``, ``kl_trained (model, strategy, step, bound)``: means over seeds, of every strategy.
    """

    name = "lora_frontier"
    version = 2
    summary = "What does fine-tuning cost, at equal held-out loss: by modules, rank, learning rate, steps, method?"
    default = False
    uses_twins = False
    requires = (
        Requirement("lora_targets"),
        Requirement("lora_rank", optional=True),
        Requirement("lora_hyperparameters", optional=True),
        Requirement("finetune_methods", optional=True),
    )
    claims = (
        _cost("random_over_guided", "random_layers", "atlas_guided"),
        *(_cost(f"all_over_{name}", "all_linear", name) for name in STRATEGIES),
        Claim(
            "rank_doubles",
            "Does the KL shift double with the rank, after equal steps?",
            "In {model} the KL shift doubles with the rank: it becomes {number} times as large with each doubling",
            label="KL, doubled rank (2?)",
            short="the KL shift doubles with the rank",
            kinds=False,
        ),
        _cost("rank_cost", "the highest rank", "the lowest", "highest / lowest rank"),
        *(
            _growth(name, called, what, said)
            for name, (_, _, called) in SWEEPS.items()
            for what, said in (("shift", "KL shift"), ("loss", "held-out loss"))
        ),
        _cost("learning_rate_cost", "the highest learning rate", "the lowest that learns", "highest / lowest rate"),
        _cost("qlora_cost", "QLoRA", "SFT"),
        *(_cost(f"{name}_cost", "SFT", METHODS[name], level="reward") for name in ("dpo", "grpo")),
    )
    _curve = ("strategy", "step", "bound")
    variables: ClassVar = {
        "loss": Variable(_curve, "nats", "held-out loss on families that were trained on"),
        "kl": Variable(_curve, "nats", "KL(base || tuned) on other families"),
        "kl_trained": Variable(_curve, "nats", "KL(base || tuned) on families that were trained on"),
    }
    absent: ClassVar = dict.fromkeys(variables, "the architecture lacks such modules, or not measured at this step")

    @dataclass(frozen=True)
    class Parameters:
        """What is compared."""

        shift: Literal["others", "trained"] = "others"

    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return what costs more at equal loss, and what grows with ranks, rates and steps."""
        targets, ranks, rates, methods = (
            None if each is None else _Curves(each, self.parameters.shift) for each in effects
        )
        found: dict[str, Evidence | None] = {}
        if targets is not None:
            found["random_over_guided"] = targets.cost("random_layers", "atlas_guided")
            found |= {f"all_over_{name}": targets.cost("all_linear", name) for name in STRATEGIES}
        if ranks is not None:
            ordered = ranks.ordered("rank")
            found |= {"rank_doubles": ranks.doubles(), "rank_cost": ranks.cost(ordered[-1], ordered[0])}
        for name, (place, by, _) in SWEEPS.items():
            held = (targets, ranks, rates)[place]
            for what, variable in (("shift", "kl"), ("loss", "loss")):
                growth = None if held is None else held.growth(name, by, variable)
                if held is not None and growth is not None:
                    found[f"{name}_{what}"] = held.evidence(growth, two_sided=True)
        if rates is not None:
            learning = [name for name in rates.ordered("learning_rate") if rates.learns(name)]
            found["learning_rate_cost"] = rates.cost(learning[-1], learning[0]) if len(learning) > 1 else None
        if methods is not None:
            found["qlora_cost"] = methods.cost("qlora", "sft")
            found |= {f"{name}_cost": methods.cost("sft", name, "reward") for name in ("dpo", "grpo")}
        return found

    def describe(self, *effects: Effects) -> Mapping[str, xr.DataArray]:
        """Return every strategy's curve."""
        targets = effects[0]
        shown = {"loss": ("heldout_loss", True), "kl": ("kl_shift", False), "kl_trained": ("kl_shift", True)}
        curves = _Curves(targets, self.parameters.shift)
        return {
            name: curves.sample.mean(_families(targets, variable, trained).rename(setting="strategy")).bounds()
            for name, (variable, trained) in shown.items()
        }


def _families(effects: Effects, variable: str, trained: bool) -> xr.DataArray:
    """Return the mean over families that were trained on, or over the others, seeds in the place of prompts."""
    data = effects.dataset
    return (
        data[variable]
        .isel(family=np.flatnonzero(data["trained"].values == trained))
        .mean("family")
        .rename(seed="prompt")
        .reset_coords(drop=True)
        .transpose("prompt", "setting", "step")
    )


class _Curves:
    """Loss and KL ``(prompt: seed, setting, step)`` of one probe's settings."""

    def __init__(self, effects: Effects, shift: str) -> None:
        self.data = effects.dataset
        self.loss = _families(effects, "heldout_loss", True)
        self.kl = _families(effects, "kl_shift", shift == "trained")
        if "reward" in self.data:
            self.reward = _families(effects, "reward", True)
        seeds = [str(seed) for seed in self.data["seed"].values]
        self.sample = Sample(["seeds"] * len(seeds), seeds)

    def ordered(self, by: str) -> list[str]:
        """Return the settings that vary in one coordinate alone, in its order."""
        others = [name for name in ("rank", "learning_rate", "steps") if name != by]
        usual = {name: _commonest(self.data[name].values) for name in others}
        fits = np.all([self.data[name].values == value for name, value in usual.items()], axis=0)
        chosen = self.data.isel(setting=np.flatnonzero(fits)).sortby(by)
        return [str(name) for name in chosen["setting"].values]

    def learns(self, name: str) -> bool:
        """Tell whether a setting lowers the held-out loss in every seed."""
        loss = self.loss.sel(setting=name)
        return bool((loss.min("step") < (1 - LEARNT) * loss.isel(step=0)).all())

    def evidence(self, logs: Floats, *, two_sided: bool = False) -> Evidence:
        """Return what speaks for quotients' being above 1, from their logarithms ``(seed)``."""
        statistic = self._statistic(logs)
        found = statistic.evidence(two_sided=two_sided, margin=RATIO_MARGIN)
        known = int(np.isfinite(logs).sum())
        blocked = "too few training seeds" if 0 < known < SEEDS or found.blocked else ""
        return replace(found, sample="training seeds", blocked=blocked, against="1", own=found.side)

    def _statistic(self, logs: Floats) -> Statistic:
        import xarray as xr

        return replace(self.sample.mean(xr.DataArray(logs, dims="prompt")), log=True)

    def cost(self, dear: str, cheap: str, at: str = "loss") -> Evidence | None:
        """Return by how much more one setting shifts than another at equal loss (or reward); None without either."""
        held = self.data["setting"].values.tolist()
        if dear not in held or cheap not in held:
            return None
        lacking = self.loss if at == "loss" else 1 - self.reward
        curves = [[np.asarray(each.sel(setting=name)) for name in (dear, cheap)] for each in (lacking, self.kl)]
        if any(np.isnan(part).all() for part in (*curves[0], *curves[1])):
            return None
        logs = np.array([_quotient(*(part[seed] for own in curves for part in own)) for seed in range(len(self.kl))])
        steps = self._statistic(np.log(_last(curves[1][0])) - np.log(_last(curves[1][1])))
        found, equal_steps = self.evidence(logs), steps.evidence(two_sided=False)
        if not np.isfinite(logs).any():
            return Evidence(
                blocked="one of them has learnt next to nothing", words={"steps": number(equal_steps.number[0])}
            )
        after, artefact = equal_steps.number[0], ""
        holds = equal_steps.side > 0 and equal_steps.p <= ALPHA
        denied = found.equal or (found.side <= 0 and found.number[2] < after)
        if holds and denied and _last(curves[0][0]).mean() < _last(curves[0][1]).mean():
            artefact = f"it does after equal steps ({number(after)} times), where it has learnt more"
        return replace(found, artefact=artefact, words={"steps": number(after)})

    def growth(self, by: str, step: float, variable: str) -> Floats | None:
        """Return ``(seed)`` log quotients of a variable, at the end, for a coordinate ``step`` times as large."""
        names = self.ordered(by)
        x = np.log(self.data[by].sel(setting=names).values.astype(float)) / math.log(step)
        values = _last(np.asarray((self.kl if variable == "kl" else self.loss).sel(setting=names)))
        logs = np.log(np.where(values > 0, values, np.nan))
        if len(names) < 2 or not np.isfinite(logs).any():
            return None
        return np.array([_slope(x, own) for own in logs])

    def doubles(self) -> Evidence | None:
        """Return what speaks for KL's being twice as large with twice the rank: two one-sided tests of the margin."""
        logs = self.growth("rank", 2.0, "kl")
        if logs is None:
            return None
        statistic = self._statistic(logs)
        value, low, high = bounds_of(statistic)
        near = replace(statistic, point=statistic.point - math.log(2)).within(RATIO_MARGIN)
        least, most = (2 * end for end in RATIO_MARGIN)
        beyond = high < least or low > most
        return Evidence(
            number=(value, low, high),
            p=near.get("equal_p", math.nan),
            against="a larger difference from 2",
            side=1 if near.get("equal") else -int(beyond),
            answer=near["near"],
            open=f"the interval reaches beyond {least:g} to {most:g}",
            sample="training seeds",
            blocked="too few training seeds" if np.isfinite(logs).sum() < SEEDS else "",
        )


def _commonest(values: Floats) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _last(values: Floats) -> Floats:
    """Return ``(...)`` what was measured last of ``(..., step)``."""
    place = values.shape[-1] - 1 - np.isfinite(values)[..., ::-1].argmax(-1)
    return np.asarray(np.take_along_axis(values, place[..., None], -1)[..., 0])


def _slope(x: Floats, y: Floats) -> float:
    known = np.isfinite(y)
    return float(np.polyfit(x[known], y[known], 1)[0]) if known.sum() > 1 else math.nan


def _quotient(loss: Floats, loss_other: Floats, kl: Floats, kl_other: Floats) -> float:
    """Return the log quotient of two curves' KL at the lowest loss that both reach; NaN where one learns nothing."""
    level = max(float(np.nanmin(loss)), float(np.nanmin(loss_other)))
    if not level < (1 - LEARNT) * max(loss[0], loss_other[0]):
        return math.nan
    found = [_at(level, *each) for each in ((loss, kl), (loss_other, kl_other))]
    return math.log(found[0] / found[1]) if min(found) > 0 else math.nan


def _at(level: float, loss: Floats, kl: Floats) -> float:
    """Return the KL where a curve first reaches a loss, its logarithm interpolated (from 0: its root)."""
    known = np.isfinite(loss) & np.isfinite(kl)
    loss, kl = loss[known], kl[known]
    end = int((loss <= level).argmax())
    if end == 0:
        return float(kl[0])
    share = float((loss[end - 1] - level) / (loss[end - 1] - loss[end]))
    before, after = float(kl[end - 1]), float(kl[end])
    if before <= 0 or after <= 0:
        return before + share**2 * (after - before)
    return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [LoraFrontier]
