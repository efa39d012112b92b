"""Conv taps: what is lost when a short convolution does not see one of the tokens under its kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xatlas import AblationProbe, Intervention, Probe, Site, Variable, hookimpl
from xatlas.interventions import Change
from xatlas.probing.ablation import Cells, matched_control
from xatlas.vocabulary import Scope

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas import HookedModel
    from xatlas.interventions import Target

#: Taps of the usual kernel.
TAPS = 3
_FACTORS = ("conv_gate", "conv_carrier", "conv_signal")


@dataclass(frozen=True)
class WithoutTap(Change):
    """Take one tap of the kernel out of a gated convolution; made at ``operator_out``.

    The output is linear in the kernel, so what the tap adds is taken away: the output projection of carrier ·
    tap · (gate · signal, ``back`` tokens earlier). Before the text's first token the convolution sees zeros. The
    factors are those of the clean run, so a condition that holds this change may change nothing before it.
    """

    tap: Tensor = field(compare=False)  # the kernel's weight there (d_model,)
    out: Tensor = field(compare=False)  # weight of the output projection (d_model, d_model); its bias stays
    back: int  # how many tokens back the tap looks; 0 is the current one

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        """Return the output without what the tap adds."""
        gate, carrier, signal = (target.context.clean(site) for site in self.reads_sites(target.site))
        product = gate * signal  # (prompt, pos, d_model)
        seen = product.new_zeros(product.shape)
        length = product.shape[1]
        if self.back < length:
            seen[:, self.back :] = product[:, : length - self.back]
        return value - (carrier * self.tap * seen) @ self.out.T

    def reads_sites(self, site: Site) -> tuple[Site, ...]:
        """Return the sites of the factors."""
        return tuple(Site(site.layer, kind) for kind in _FACTORS)


class ConvTaps(AblationProbe):
    """KL when one tap of a short convolution's kernel is zero, at every position.

    Definition: ``kl`` = KL(clean ‖ tap zeroed) of the next-token distribution at the scope's positions, in
    nats; the convolution is recomputed from the input projection's output and the weight without the tap. Taps
    are named by the token they look at: 0 is the current one, -1 the one before. A causal convolution sees no
    future: there is no tap above 0.

    Unit: nats.

    Control: ``kl_control``, a random direction with, at every token, the norm of the change that zeroing the
    tap made, added to the operator's output. It has the covariance of the stream behind the operator, and is drawn for
    each prompt and ``draw``.

    Source: this toolkit.
    """

    name = "conv_taps"
    version = 2
    sites = (*_FACTORS, "operator_out")
    reasons = {"tap": "layers without a gated convolution have no kernel, and some may have a shorter one"}  # noqa: RUF012
    _cell = ("prompt", "layer", "tap", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || tap zeroed)"),
        "kl_control": Variable(("prompt", "draw", *_cell[1:]), "nats", "KL(clean || random change of equal norm)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        scopes: tuple[Scope, ...] = ("last",)

    def labels(self, model: HookedModel | None) -> dict[str, list[Any]]:
        """Return layers, scopes and the taps of the longest kernel; without any convolution, of the usual one."""
        kernels = [] if model is None else [_kernel(model, layer) for layer in range(model.n_layers)]
        width = max((found[0].shape[-1] for found in kernels if found is not None), default=TAPS)
        return super().labels(model) | {"tap": list(range(1 - width, 1))}

    def cells(self, model: HookedModel, draw: int) -> Cells:
        """Yield every tap of every convolution, with its control."""
        for layer in range(model.n_layers):
            found = _kernel(model, layer)
            if found is None:
                continue
            kernel, out = found
            for back in range(kernel.shape[-1]):
                without = WithoutTap(kernel[:, kernel.shape[-1] - 1 - back], out, back)
                one = Intervention(Site(layer, "operator_out"), without)
                yield {"layer": layer, "tap": -back}, one, matched_control(one, draw)


def _kernel(model: HookedModel, layer: int) -> tuple[Tensor, Tensor] | None:
    """Return the kernel ``(d_model, tap)``, oldest tap first, and the output projection's weight."""
    adapter = model.adapter
    path, out = adapter.conv_path(layer), adapter.roles(layer).get("conv.out")
    if path is None or not isinstance(out, str) or not all(model.has(Site(layer, kind)) for kind in _FACTORS):
        return None
    if model.point(Site(layer, "operator_out")).module != out.rpartition(".")[0]:
        return None  # a norm stands behind the output projection
    return adapter.module(path).weight[:, 0].detach(), adapter.module(out).weight.detach()


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ConvTaps]
