"""How well a model predicts the texts themselves, in a unit that tokenizers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, ReadingProbe, Site, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture


class TokenLoss(ReadingProbe):
    """Negative log-likelihood of a prompt's text, token by token, given what stands before.

    Definition: all tokens of the text are scored but one at position 0, which nothing predicts: as a rule that is a
    beginning token, which is none of the text. The target is not scored; it is tokenised with the text, as everywhere.
    ``nll`` is the mean over the scored tokens, ``bits_per_byte`` their sum over ln 2 and over the bytes that they stand
    for. Only the latter compares between models: with other tokens, a mean over tokens is a mean over other things.

    Unit: ``nll`` in nats per token; ``bits_per_byte`` in bits per byte (of the text in UTF-8).

    Control: ``bits_per_byte_uniform``, of a guess at which every token of the model's vocabulary is as likely.

    Source: Gao et al. 2101.00027 for bits per byte.
    """

    name = "token_loss"
    version = 1
    sites = ("resid_post",)
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "nll": Variable(("prompt",), "nats", "negative log-likelihood, mean over the text's tokens"),
        "bits_per_byte": Variable(("prompt",), "bit/byte", "negative log-likelihood of the text over its bytes"),
        "bits_per_byte_uniform": Variable(("prompt",), "bit/byte", "the same of guessing among all tokens alike"),
    }

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Make room for every prompt."""
        import numpy as np

        self.model = model
        self.tokens = model.read(suite)
        self.total = np.full(len(self.tokens), np.nan)  # nats

    def update(self, capture: Capture) -> None:
        """Unembed the text's positions, some at a time, and sum what the next tokens cost."""
        import torch

        from xatlas.engine.schedule import Budget

        hidden = capture.values[Site(self.model.n_layers - 1, "resid_post")]
        ids = self.model.tokens(capture.prompts)
        # prompts of one length may differ in how much of it is text: what follows is run, and not scored
        n_text = torch.tensor([prompt.n_text for prompt in capture.prompts], device=hidden.device)
        row, position = (torch.arange(ids.shape[1], device=hidden.device) < n_text[:, None] - 1).nonzero(as_tuple=True)
        labels = ids[row, position + 1]
        budget = Budget.for_device(self.model.device)
        rows = max(1, budget.logit_bytes // (4 * self.model.adapter.vocabulary))
        cost = [
            torch.nn.functional.cross_entropy(self.model.logits(hidden[some, at]), right, reduction="none").cpu()
            for some, at, right in zip(*(torch.split(each, rows) for each in (row, position, labels)), strict=True)
        ]
        total = torch.zeros(len(ids), dtype=torch.float64)
        if cost:
            total.index_add_(0, row.cpu(), torch.cat(cost).double())
        self.total[list(capture.index)] = total.numpy()

    def finish(self) -> xr.Dataset:
        """Return ``nll (prompt)`` and ``bits_per_byte (prompt)`` with what guessing costs."""
        import numpy as np

        from xatlas.schema import label, suite_coords
        from xatlas.stats import divide

        prompts = self.tokens.prompts
        scored = np.array([prompt.n_text - 1 for prompt in prompts], dtype=float)
        n_bytes = np.where(scored > 0, [prompt.n_bytes for prompt in prompts], 0.0)
        bits = n_bytes * np.log(2)
        few = {
            name: "the text is a single token, or none, at position 0: nothing predicts it" for name in self.variables
        }
        return label(
            self.variables,
            {
                "nll": divide(self.total, scored),
                "bits_per_byte": divide(self.total, bits),
                "bits_per_byte_uniform": divide(scored * np.log(self.model.adapter.vocabulary), bits),
            },
            suite_coords(self.tokens),
            absent=few if not (n_bytes > 0).all() else None,
            dropped=self.tokens.dropped,
        )


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [TokenLoss]
