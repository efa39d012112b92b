"""Conv taps: what is lost when a short convolution does not see one of the tokens under its kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, hookimpl
from xatlas.interventions import Change

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel
    from xatlas.interventions import Place

#: Taps of the usual kernel.
TAPS = 3
_FACTORS = ("conv_gate", "conv_carrier", "conv_signal")


@dataclass(frozen=True, eq=False)
class WithoutTap(Change):
    """Take one tap of the kernel out of a gated convolution; made at ``operator_out``.

    The output is linear in the kernel, so what the tap adds is taken away: the output projection of carrier ·
    tap · (gate · signal, ``back`` tokens earlier). Before the text's first token the convolution sees zeros. The
    factors are those of the clean run, so a condition that holds this change may change nothing before it.

    Parameters
    ----------
    tap : Tensor
        The kernel's weight at this tap ``(d_model,)``.
    out : Tensor
        Weight of the output projection ``(d_model, d_model)``; its bias stays.
    back : int
        How many tokens back the tap looks; 0 is the current one.
    """

    tap: Tensor
    out: Tensor
    back: int
    needs_sweep = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the output without what the tap adds."""
        gate, carrier, signal = (place.scene.clean(site) for site in self.looks_at(place.site))
        product = gate * signal  # (prompt, pos, d_model)
        seen = product.new_zeros(product.shape)
        length = product.shape[1]
        if self.back < length:
            seen[:, self.back :] = product[:, : length - self.back]
        return value - (carrier * self.tap * seen) @ self.out.T

    def looks_at(self, site: Site) -> tuple[Site, ...]:
        """Return the sites of the factors."""
        return tuple(Site(site.layer, kind) for kind in _FACTORS)


class ConvTaps(Probe):
    """KL when one tap of a short convolution's kernel is zero, at every position.

    Definition: ``kl`` = KL(clean ‖ tap zeroed) of the next-token distribution at the scope's positions, in
    nats; the convolution is recomputed from the input projection's output and the weight without the tap. Taps
    are named by the token they look at: 0 is the current one, -1 the one before. A causal convolution sees no
    future: there is no tap above 0.

    Unit: nats.

    Control: ``kl_control``, a random direction with, at every token, the norm of the change that zeroing the
    tap made, added to the operator's output.

    Source: this toolkit.
    """

    name = "conv_taps"
    version = 1
    sites = (*_FACTORS, "operator_out")
    _cell = ("prompt", "layer", "tap", "scope")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || tap zeroed)"),
        "kl_control": Variable(_cell, "nats", "KL(clean || random change of equal norm)"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        scopes : tuple of str
            Where KL is read: last, all.
        """

        scopes: tuple[Literal["last", "all"], ...] = ("last",)

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every tap of the usual kernel with its control."""
        return size["layer"] * TAPS * (1 + draws)

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl``, ``kl_control (prompt, layer, tap, scope)``."""
        from xatlas.interventions import RandomDirection
        from xatlas.measures.ablation import Grid
        from xatlas.measures.noise import noise_floor
        from xatlas.metrics import KL
        from xatlas.schema import cells, label, layer_coords, suite_coords

        tokens = model.read(suite)
        scopes = self.parameters.scopes
        kernels = {layer: found for layer in range(model.n_layers) if (found := _kernel(model, layer)) is not None}
        # Without any convolution the taps of the usual kernel stand there, all of them absent.
        width = max((kernel.shape[-1] for kernel, _ in kernels.values()), default=TAPS)
        shape = (model.n_layers, width)
        grid = Grid({"kl": shape, "kl_control": shape})
        for layer, (kernel, out) in kernels.items():
            for back in range(kernel.shape[-1]):
                cell = (layer, width - 1 - back)
                without = WithoutTap(kernel[:, kernel.shape[-1] - 1 - back], out, back)
                edited = Intervention(Site(layer, "operator_out"), without)
                grid.add("kl", cell, edited)
                for draw in range(inputs.draws):
                    grid.add("kl_control", cell, Intervention(edited.site, RandomDirection((edited,), draw)))
        measured = grid.measure(model, tokens, [KL(scope) for scope in scopes], inputs, self.name)
        absent = measured.absent()
        bare = [layer for layer in range(model.n_layers) if layer not in kernels]
        if bare:
            absent[cells(layer=bare)] = "layers without a convolution have no kernel"
        for layer, (kernel, _) in kernels.items():
            if kernel.shape[-1] < width:
                taps = range(1 - width, 1 - kernel.shape[-1])
                absent[cells(layer=[layer], tap=taps)] = "this layer has a shorter kernel"
        return label(
            self.variables,
            {name: array.transpose(1, 2, 3, 0) for name, array in measured.arrays.items()},
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                "tap": list(range(1 - width, 1)),
                "scope": list(scopes),
            },
            absent=absent,
            dropped=tokens.dropped | measured.dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )


def _kernel(model: HookedModel, layer: int) -> tuple[Tensor, Tensor] | None:
    """Return the kernel ``(d_model, tap)``, oldest tap first, and the output projection's weight."""
    adapter = model.adapter
    path, out = adapter.conv_path(layer), adapter.roles(layer).get("conv.out")
    if path is None or out is None or not all(model.has(Site(layer, kind)) for kind in _FACTORS):
        return None
    return adapter.module(path).weight[:, 0].detach(), adapter.module(out).weight.detach()


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ConvTaps]
