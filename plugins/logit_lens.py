"""The logit lens: what the stream says of the next token before it has gone through all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture

SITES = ("resid_pre", "resid_mid", "resid_post")


class LogitLens(ReadingProbe):
    """The model's own final norm (once) and unembedding, put to the stream at the readout position of every layer.

    Definition: of ``resid_pre`` of layer 0 and every ``resid_mid`` and ``resid_post``, ``target_logprob`` is the
    log-probability of the target's token at the readout; ``target_rank`` its rank from 1, equal logits sharing
    their mean rank; ``kl_to_final`` is KL(output || lens); ``entropy`` that of the lens; ``top_token`` the likeliest
    token, and ``top_is_final`` whether the output puts it first, too. Multipliers and soft caps of logits apply. At the
    last ``resid_post`` all of it is the model's own output. The attribute ``vocabulary`` says among how many tokens.

    Unit: nats; ranks and shares have none.

    Control: none in the probe; chance is one of the vocabulary, and ``lens_profile`` sets untrained twins beside it.

    Source: nostalgebraist, 'interpreting GPT: the logit lens', 2020; Belrose et al. 2303.08112.
    """

    name = "logit_lens"
    version = 1
    sites = SITES
    _at = ("prompt", "layer", "site")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "target_logprob": Variable(_at, "nats", "log-probability of the target's token"),
        "target_rank": Variable(_at, "1", "rank of the target's token, from 1"),
        "kl_to_final": Variable(_at, "nats", "KL(output || lens)"),
        "entropy": Variable(_at, "nats", "entropy of the lens"),
        "top_token": Variable(_at, "1", "likeliest token"),
        "top_is_final": Variable(_at, "1", "1 where the likeliest token is the output's, too"),
    }

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Make room for every prompt."""
        import numpy as np

        from xatlas.probing.reading import Readouts

        self.model, self.tokens, self.places = model, model.read(suite), stream_sites(model)
        shape = (len(self.tokens), model.n_layers, len(SITES))
        self.numbers = {name: np.full(shape, np.nan) for name in self.variables if name != "top_token"}
        self.top = np.full(shape, "", dtype=object)
        self.held = Readouts()

    def update(self, capture: Capture) -> None:
        """Gather the stream at the readout positions."""
        if self.held.add(capture, range(len(capture.prompts))):
            self._unembed()

    def _unembed(self) -> None:
        import torch

        from xatlas.probing.lens import lens
        from xatlas.probing.reading import Readouts

        held, self.held = self.held, Readouts()
        values = held.values()
        streams = [values[place] for place in self.places]
        answers = torch.tensor([-1 if prompt.answer is None else prompt.answer for prompt in held.prompts])
        found = lens(self.model, streams, streams[-1], answers.to(self.model.device))
        given = (found.logprob, found.rank, found.kl, found.entropy, found.top_is_final)
        numbers = dict(zip(self.numbers, (each.double().cpu().numpy() for each in given), strict=True))
        index, top, reader = held.index, found.top.tolist(), self.model.reader
        assert reader is not None
        texts = {token: reader.text_of(token) for token in {token for row in top for token in row}}
        for at, place in enumerate(self.places):
            column = SITES.index(place.kind)
            for name, array in numbers.items():
                self.numbers[name][index, place.layer, column] = array[at]
            self.top[index, place.layer, column] = [texts[token] for token in top[at]]

    def finish(self) -> xr.Dataset:
        """Return ``target_logprob (prompt, layer, site)`` and its companions."""
        from xatlas.schema import cells, label, layer_coords, suite_coords

        if self.held.prompts:
            self._unembed()
        absent = {
            cells(site=["resid_pre"], layer=range(1, self.model.n_layers)): "it is resid_post of the layer before"
        }
        bare = [layer for layer in range(self.model.n_layers) if "resid_mid" not in self.model.points[layer]]
        if bare:
            absent[cells(site=["resid_mid"], layer=bare)] = "the block has no resid_mid"
        without = sum(prompt.answer is None for prompt in self.tokens.prompts)
        if without:
            reason = f"{without} of {len(self.tokens)} prompts have no target"
            absent |= dict.fromkeys(("target_logprob", "target_rank"), reason)
        dataset = label(
            self.variables,
            {**self.numbers, "top_token": self.top.astype(str)},
            {**suite_coords(self.tokens), **layer_coords(self.model.operator_types), "site": list(SITES)},
            absent=absent,
            dropped=self.tokens.dropped,
        )
        return dataset.assign_attrs(vocabulary=self.model.adapter.vocabulary)


def stream_sites(model: HookedModel) -> list[Site]:
    """Return where the stream can be read, in its order: entering layer 0, after each operator and after each layer."""
    kinds = ("resid_mid", "resid_post")
    later = [Site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    return [Site(0, "resid_pre"), *filter(model.has, later)]


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LogitLens]
