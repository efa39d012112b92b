"""Which tap carries each convolution: by its weight, by its effective size, and by what is lost without it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import kernel as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence
from xatlas.findings.estimates import side
from xatlas.findings.verdict import Bounds
from xatlas.stats import AGREEMENT, PERMUTATIONS, Floats, t_quantile, wilson

if TYPE_CHECKING:
    import xarray as xr

#: What a later token may change of an earlier output, over what it changes at itself, and count as rounding.
ROUNDING = 1e-3
#: Ways to size a tap, and what they are called.
SIZES = {"weight": "absolute weight", "effective": "effective size"}
_CENTRED = (
    "the largest tap is the last: read as one of a kernel about its middle it would be the next token's, but a causal "
    "convolution is padded on its left alone, and its last tap is the current token's"
)


class KernelProfile(ClaimComparison):
    """Share of each tap in a convolution's kernel, layer by layer, beside what is lost when the tap is zeroed.

    ``weight_share``, ``effective_share``, ``causal_share (model, layer, tap)``: a tap's share in the layer's summed
    mean absolute weight, effective size (weight times the standard deviation of what it is multiplied with), and KL of
    ``conv_taps`` at the readout. That one tap is the largest is tested over layers: taps are permuted within each, and
    its lead over the next has to be above zero over layers. That size names the tap that matters: in how many layers
    the largest effective size and the largest KL are of one tap, against chance (exact, Wilson interval). That a kernel
    looks ahead is held against the model: what another last token changes before it.
    """

    name = "kernel_profile"
    version = 1
    summary = "Which tap carries each convolution, by weight, by effective size and causally, and does any look ahead?"
    default = False
    requires = (Requirement("conv_taps"), Requirement("conv_kernel"))
    claims = (
        *(
            Claim(
                f"{name}_lead",
                f"Does one tap of the kernels have the largest {called}?",
                f"In {{model}} tap {{lead}} has the largest {called}: {{number}} of its kernel's, over {{layers}} conv "
                "layers (equal taps: {control})",
                label=f"tap by {name}",
                short=f"tap {{lead}} has the largest {called}",
                unit="layer type",
                kinds=False,
            )
            for name, called in SIZES.items()
        ),
        Claim(
            "size_is_causal",
            "Is the tap of the largest effective size the one without which most is lost?",
            "In {number} of {layers} conv layers of {model} the tap of the largest effective size is the one without "
            "which most is lost (chance: {control}; by weight alone in {by_weight})",
            label="size = effect",
            short="the effective size names the tap that matters",
            unit="layer type",
            kinds=False,
        ),
        Claim(
            "looks_ahead",
            "Do the convolutions look ahead?",
            "The convolutions of {model} look ahead: another last token changes what they write before it by {number} "
            "of the most that it changes",
            label="looks ahead",
            short="the convolutions look ahead",
            unit="layer type",
            kinds=False,
        ),
    )
    nothing = "no conv layers"
    variables: ClassVar = {
        "weight_share": Variable(("layer", "tap"), "1", "share of the tap in the kernel's absolute weight"),
        "effective_share": Variable(("layer", "tap"), "1", "share of the tap in the kernel's effective size"),
        "causal_share": Variable(("layer", "tap"), "1", "share of the tap in the KL of taps that are zeroed"),
        "dominant_share": Variable(("layer", "tap"), "1", "share of channels in which the tap has the largest weight"),
        "ahead": Variable(("layer",), "1", "change at earlier tokens over that at any, with another last token"),
    }
    absent: ClassVar = dict.fromkeys(variables, "padding, a layer without a convolution, or a kernel without that tap")
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return which tap leads by either size, whether it is the causal one, and whether any looks ahead."""
        taps, kernel = effects
        shares = _shares(taps, kernel)
        layers = np.flatnonzero(shares["weight_share"].notnull().any("tap").values)
        if not len(layers):
            return {}
        leads = {f"{name}_lead": _lead(shares[f"{name}_share"]) for name in SIZES}
        ahead = kernel["ahead"].values
        ahead = ahead[np.isfinite(ahead)]
        number = _over_layers(ahead)
        last = str(shares["weight_share"]["tap"].values.max())
        led = any(each.words["lead"] == last for each in leads.values() if each is not None)
        looks = side(*number[1:], ROUNDING)
        looks_ahead = Evidence(
            number,
            p=0.5 ** len(ahead) if looks > 0 else math.nan,
            against="either sign in each layer",
            side=looks,
            answer=looks > 0 if len(ahead) else None,
            control=(0.0, math.nan, math.nan),
            artefact=_CENTRED if looks < 0 and led else "",
        )
        return {**leads, "size_is_causal": _causal(taps, shares), "looks_ahead": looks_ahead}

    def describe(self, *effects: Effects) -> dict[str, xr.DataArray]:
        """Return the shares, layer by layer."""
        kernel = effects[1]
        return {**_shares(*effects), **{name: kernel[name] for name in ("dominant_share", "ahead")}}

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return the label of a number, a tap by its number."""
        label = super().called(name, one)
        if name.endswith("_lead"):
            label += f": {int(one[name.replace('lead', 'share')].mean('layer').idxmax('tap'))}"
        return label


def _shares(taps: Effects, kernel: Effects) -> dict[str, xr.DataArray]:
    """Return shares ``(layer, tap)`` by weight, by effective size, and by what is lost."""
    sizes = {f"{name}_share": kernel[f"{name}_size"] for name in SIZES}
    sizes["causal_share"] = taps.sample.mean(taps["kl"]).point
    found = {}
    for name, values in sizes.items():
        values = values.transpose("layer", "tap")
        whole = values.sum("tap")
        found[name] = (values / whole.where(whole > 0)).where(values.notnull())
    return found


def _over_layers(values: Floats) -> Bounds:
    """Return a mean over layers with its t interval."""
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else math.nan), math.nan, math.nan
    half = float(t_quantile(n - 1.0)) * float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def _whole(shares: xr.DataArray) -> Floats:
    """Return shares ``(layer, tap)`` of the layers that have all taps."""
    return np.asarray(shares.dropna("layer").values, dtype=float)


def _lead(shares: xr.DataArray) -> Evidence | None:
    """Return what speaks for one tap's being the largest, over layers."""
    values, taps = _whole(shares), shares["tap"].values
    n, width = values.shape
    if not n or width < 2:
        return None
    order = np.argsort(-values.mean(0), kind="stable")
    first, second = (values[:, tap] for tap in order[:2])
    number, lead = _over_layers(first), _over_layers(first - second)
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.broadcast_to(values, (PERMUTATIONS, n, width)), axis=-1).mean(1).max(-1)
    return Evidence(
        number=number,
        p=(1 + int((drawn >= first.mean() * (1 - 1e-9)).sum())) / (1 + PERMUTATIONS),
        against="taps permuted in each layer",
        side=side(*number[1:], 1 / width),
        answer=int(taps[order[0]]),
        control=(1 / width, math.nan, math.nan),
        least_p=float(width) ** (1 - n),
        blocked="" if lead[1] > 0 or not math.isfinite(lead[1]) else f"it ties with tap {taps[order[1]]}",
        descriptive=True,
        words={"lead": str(taps[order[0]]), "layers": str(n)},
    )


def _causal(taps: Effects, shares: dict[str, xr.DataArray]) -> Evidence | None:
    """Return in how many layers size and effect name one tap; a layer without any effect is left out."""
    lost = taps.sample.mean(taps["kl"]).point.transpose("layer", "tap")
    known = [lost.max("tap") > AGREEMENT[0], *(each.notnull().all("tap") for each in shares.values())]
    kept = np.flatnonzero(np.logical_and.reduce([each.values for each in known]))
    if not len(kept):
        return None
    best = {name: each.isel(layer=kept).values.argmax(-1) for name, each in shares.items()}
    n, width = len(kept), lost.sizes["tap"]
    hits, by_weight = (int((best[f"{name}_share"] == best["causal_share"]).sum()) for name in ("effective", "weight"))
    tail = sum(math.comb(n, k) * (width - 1) ** (n - k) for k in range(hits, n + 1)) / width**n
    low, high = wilson(hits, n)
    return Evidence(
        number=(hits / n, low, high),
        p=tail,
        against="a tap by chance in each layer",
        side=side(low, high, 1 / width),
        answer=hits / n > 1 / width,
        control=(1 / width, math.nan, math.nan),
        least_p=float(width) ** -n,
        words={"layers": str(n), "by_weight": f"{by_weight / n:.2f}"},
    )


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [KernelProfile]
