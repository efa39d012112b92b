"""Kernels of short convolutions: how large each tap is, by its weight and by what it is multiplied with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture
    from xatlas.prompts.reader import TokenPrompt

#: Taps of the usual kernel.
TAPS = 3
_CELL = ("layer", "tap")
_SITES = ("conv_gate", "conv_signal")


class ConvKernel(ReadingProbe):
    """Size of each tap of a depthwise causal convolution's kernel, layer by layer.

    Definition: ``weight_size`` is the mean over channels of a tap's absolute weight; ``effective_size`` that of the
    weight times the standard deviation of what the tap is multiplied with, gate · signal in that channel, over the
    suite's tokens but position 0 (which is one constant); ``dominant_share`` the share of channels in which the tap has
    the largest absolute weight (taps that are equally large share a channel; where all weights are zero, none has it).
    Taps are named by the token they look at: 0 is the current one, -1 the one before. A causal convolution is
    padded on its left alone: its last tap is the current token's, and none looks ahead. ``ahead`` holds that against
    the model: with another last token, the largest change of what the layer's operator writes at earlier ones over
    the largest at any. Every convolution that the adapter names has a kernel; one without gate and signal has no
    effective size.

    Unit: ``weight_size`` that of the weights, ``effective_size`` that of the convolution's output; else none.

    Control: none; ``conv_taps`` measures what is lost without each tap.

    Source: this toolkit.
    """

    name = "conv_kernel"
    version = 1
    sites = _SITES
    replicate = None
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "weight_size": Variable(_CELL, "1", "mean absolute weight of the tap"),
        "effective_size": Variable(_CELL, "1", "mean of absolute weight times standard deviation of gate · signal"),
        "dominant_share": Variable(_CELL, "1", "share of channels in which the tap has the largest weight"),
        "ahead": Variable(("layer",), "1", "change at earlier tokens over that at any, with another last token"),
    }

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Find the kernels, and whether any of them looks ahead."""
        self.model, self.tokens = model, model.read(suite)
        paths = {layer: model.adapter.conv_path(layer) for layer in range(model.n_layers)}
        self.kernels = {  # (channel, tap), oldest tap first
            layer: model.adapter.module(path).weight[:, 0].detach().double().cpu().abs()
            for layer, path in paths.items()
            if path is not None
        }
        self.moments: dict[int, tuple[int, Tensor, Tensor]] = {}  # tokens, mean and summed squares about it (channel)
        self.ahead = _ahead(model, max(self.tokens.prompts, key=lambda prompt: len(prompt.ids)), list(self.kernels))

    def update(self, capture: Capture) -> None:
        """Take in what enters the convolutions, about its own mean: sums of squares would cancel."""
        for layer in self.kernels:
            gate, signal = (capture.values.get(Site(layer, kind)) for kind in _SITES)
            if gate is None or signal is None or gate.shape[1] < 2:
                continue
            seen = (gate * signal)[:, 1:].flatten(0, 1).cpu().double()  # (token, channel)
            number, mean = len(seen), seen.mean(0)
            about = (seen - mean).square().sum(0)
            if layer in self.moments:
                before, old, spread = self.moments[layer]
                gap, number = mean - old, before + number
                about = about + spread + gap.square() * before * len(seen) / number
                mean = old + gap * len(seen) / number
            self.moments[layer] = number, mean, about

    def finish(self) -> xr.Dataset:
        """Return the sizes ``(layer, tap)``."""
        import numpy as np

        from xatlas.schema import label, layer_coords

        width = max((kernel.shape[1] for kernel in self.kernels.values()), default=TAPS)
        sizes = {name: np.full((self.model.n_layers, width), np.nan) for name in self.variables if name != "ahead"}
        for layer, kernel in self.kernels.items():
            own = slice(width - kernel.shape[1], None)
            largest = (kernel == kernel.amax(1, keepdim=True)) & (kernel > 0)
            sizes["weight_size"][layer, own] = kernel.mean(0)
            sizes["dominant_share"][layer, own] = (largest / largest.sum(1, keepdim=True).clamp(min=1)).mean(0)
            if layer in self.moments:
                number, _, about = self.moments[layer]
                sizes["effective_size"][layer, own] = (kernel * (about / number).sqrt()[:, None]).mean(0)
        coords = {**layer_coords(self.model.operator_types), "tap": list(range(1 - width, 1))}
        ahead = np.array([self.ahead.get(layer, np.nan) for layer in range(self.model.n_layers)])
        given, absent = {**sizes, "ahead": ahead}, self._absent(width)
        return label(self.variables, given, coords, absent=absent, dropped=self.tokens.dropped)

    def _absent(self, width: int) -> dict[str, str]:
        """Return why sizes are NaN: no convolution, a shorter kernel, nothing named that enters it."""
        from xatlas.schema import cells

        absent = {}
        bare = [layer for layer in range(self.model.n_layers) if layer not in self.kernels]
        if bare:
            absent[cells(layer=bare)] = "layers without a convolution have no kernel"
        for layer, kernel in self.kernels.items():
            if kernel.shape[1] < width:
                absent[cells(layer=[layer], tap=range(1 - width, 1 - kernel.shape[1]))] = "the kernel is shorter"
        blind = [layer for layer in self.kernels if layer not in self.moments]
        if blind:
            listed = ", ".join(map(str, blind))
            absent["effective_size"] = f"gate and signal of layers {listed} are not named, or no text has two tokens"
        if len(self.ahead) < len(self.kernels):
            absent["ahead"] = "no text has two tokens, or another last token changes nothing"
        return absent


def _ahead(model: HookedModel, prompt: TokenPrompt, layers: list[int]) -> dict[int, float]:
    """Return layer → how much another last token changes an operator's earlier outputs, over the most it changes."""
    *before, last = prompt.ids
    ids = model.tokens([prompt, replace(prompt, ids=(*before, (last + 1) % model.adapter.vocabulary))])
    found = {}
    for site, (one, other) in model.capture(ids, [Site(layer, "operator_out") for layer in layers]).items():
        *earlier, at_last = (other - one).abs().amax(-1).tolist()
        if earlier and (most := max(*earlier, at_last)):
            found[site.layer] = max(earlier) / most
    return found


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ConvKernel]
