"""Norms of the residual stream, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture

SITES = ("resid_pre", "resid_mid", "resid_post")


class ResidualNorms(ReadingProbe):
    """L2 norm of the stream at single tokens, by class of position.

    Definition: ``norm`` is the mean over the class's tokens of each token's L2 norm; ``top_share`` the mean
    share of the largest coordinate in the squared norm; ``jump_layer`` the layer with the largest ratio of
    the norm leaving it to the norm entering it. A norm over a whole prompt shows one spike at the first
    token as an explosion of the stream, so tokens are not pooled before the norm is taken. It is stored as well,
    for that is how norms are often published: ``frobenius``, with ``token_share``, the share of its square that the
    token with the largest norm holds.

    Unit: ``norm`` and ``frobenius`` in units of the stream; the others without.

    Control: none; position classes stand beside each other.

    Source: Sun et al. 2402.17762; Xiao et al. 2309.17453.
    """

    name = "residual_norms"
    version = 3
    sites = SITES
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "norm": Variable(("prompt", "layer", "site", "position"), "1", "L2 norm of the stream at a token"),
        "top_share": Variable(
            ("prompt", "layer", "site", "position"), "1", "share of the largest coordinate in the squared norm"
        ),
        "jump_layer": Variable(("prompt", "position"), "1", "layer with the largest ratio of norms"),
        "frobenius": Variable(("prompt", "layer", "site"), "1", "norm of the stream over all tokens of a prompt"),
        "token_share": Variable(
            ("prompt", "layer", "site"), "1", "share of the token with the largest norm in the prompt's squared norm"
        ),
    }

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Make room for every prompt."""
        import numpy as np

        from xatlas.vocabulary import POSITION_CLASSES

        self.model = model
        self.tokens = model.read(suite)
        shape = (len(self.tokens), model.n_layers, len(SITES), len(POSITION_CLASSES))
        self.norm, self.share = np.full(shape, np.nan), np.full(shape, np.nan)
        self.whole, self.token_share = np.full(shape[:-1], np.nan), np.full(shape[:-1], np.nan)

    def update(self, capture: Capture) -> None:
        """Take norms at every token, then means over each class of positions."""
        import numpy as np

        from xatlas.vocabulary import POSITION_CLASSES

        index, layers, columns = list(capture.index), [], []
        norms, shares = [], []  # (row, token) of each site
        for site, value in capture.values.items():
            squared = value.double().square() if value.device.type != "mps" else value.float().square()
            total = squared.sum(-1)
            norms.append(total.sqrt().cpu().numpy())
            shares.append((squared.amax(-1) / total).cpu().numpy())
            whole, largest = total.sum(-1), total.amax(-1)
            cells = (index, site.layer, SITES.index(site.kind))
            self.whole[cells], self.token_share[cells] = whole.sqrt().cpu(), (largest / whole).cpu()
            layers.append(site.layer)
            columns.append(SITES.index(site.kind))
        norm, share = np.array(norms), np.array(shares)  # (site, row, token)
        for row, prompt in enumerate(capture.prompts):
            for p, name in enumerate(POSITION_CLASSES):
                positions = list(prompt.positions(name))
                if positions:
                    self.norm[index[row], layers, columns, p] = norm[:, row, positions].mean(-1)
                    self.share[index[row], layers, columns, p] = share[:, row, positions].mean(-1)

    def finish(self) -> xr.Dataset:
        """Return ``norm (prompt, layer, site, position)`` and its companions."""
        import numpy as np

        from xatlas.probing.reading import absent_positions, without_tokens
        from xatlas.schema import cells, label, layer_coords, suite_coords
        from xatlas.vocabulary import POSITION_CLASSES

        absent = absent_positions(without_tokens(self.tokens.prompts, POSITION_CLASSES))
        for kind in SITES:
            bare = [layer for layer in range(self.model.n_layers) if not self.model.has(Site(layer, kind))]
            if bare:
                absent[cells(site=[kind], layer=bare)] = f"the block has no {kind}"
        if (np.isnan(self.share) & ~np.isnan(self.norm)).any():
            zero = ("top_share", "jump_layer", "token_share")
            absent |= dict.fromkeys(zero, "there are tokens at which the stream is zero")
        return label(
            self.variables,
            {
                "norm": self.norm,
                "top_share": self.share,
                "jump_layer": _jump(self.norm),
                "frobenius": self.whole,
                "token_share": self.token_share,
            },
            {
                **suite_coords(self.tokens),
                **layer_coords(self.model.operator_types),
                "site": list(SITES),
                "position": list(POSITION_CLASSES),
            },
            absent=absent,
            dropped=self.tokens.dropped,
        )


def _jump(norm: np.ndarray) -> np.ndarray:
    """Return ``(prompt, position)`` from ``norm (prompt, layer, site, position)``."""
    import numpy as np

    ratio = norm[:, :, SITES.index("resid_post")] / norm[:, :, SITES.index("resid_pre")]
    jump = np.argmax(np.nan_to_num(ratio, nan=-1.0), axis=1).astype(float)
    jump[np.isnan(ratio).all(axis=1)] = np.nan
    return np.asarray(jump)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ResidualNorms]
