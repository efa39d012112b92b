"""What fine-tuning did, on prompts that it was not trained on: loss, distance from the base, right answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.metrics import kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import attached
from xatlas.plugins.training.data import Example
from xatlas.prompts.reader import buckets
from xatlas.stats import divide

#: What is measured of held-out examples, family by family; the training probes' variables say what each is.
MEASURES = ("heldout_loss", "kl_shift", "accuracy", "preference", "reward")
#: Tokens that are run at a time.
_TOKENS = 4096
#: Logits that are held at a time.
_LOGITS = 1 << 24


class HeldOut:
    """Held-out examples, and what the base makes of them; what is measured later is compared with that.

    Response tokens alone count, each given the prompt and the response before it. Nothing is padded.
    """

    def __init__(self, base: HookedModel, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        self.families = list(dict.fromkeys(example.family for example in examples))
        self._ids = [(*e.prompt, *e.response[:-1]) for e in examples]
        self._worse = [(*e.prompt, *e.rejected[:-1]) for e in examples if e.rejected]
        self._base = torch.cat(self._hidden(base, self._ids, [len(e.response) for e in examples]))
        self._unembed = base.logits

    def measure(self, model: HookedModel, names: Sequence[str] = MEASURES) -> dict[str, np.ndarray]:
        """Return ``(family)`` of a model for some of ``MEASURES``; ``preference`` is NaN without rejected responses."""
        responses = [example.response for example in self.examples]
        nll, kl, hit = self._per_token(model, self._hidden(model, self._ids, list(map(len, responses))), responses)
        tokens = np.array(list(map(len, responses)))
        start = np.cumsum(tokens) - tokens
        loss, ones = np.add.reduceat(nll, start), np.ones(len(tokens))
        parts = {
            "heldout_loss": (loss, tokens),
            "kl_shift": (np.add.reduceat(kl, start), tokens),
            "accuracy": (np.logical_and.reduceat(hit, start), ones),
            "reward": (np.exp(-loss), ones),
        }
        if "preference" in names:
            better = self._preferred(model, loss)
            parts["preference"] = (np.nan_to_num(better), np.isfinite(better))
        own = np.array([[e.family == family for e in self.examples] for family in self.families], dtype=float)
        return {name: divide(*(own @ each.astype(float) for each in parts[name])) for name in names}

    def _per_token(
        self, model: HookedModel, hidden: list[Tensor], responses: Sequence[Sequence[int]], *, shift: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return loss, KL from the base, and whether the token is the likeliest, of all responses ``(token)``."""
        tokens, rows = [token for each in responses for token in each], max(1, _LOGITS // model.adapter.vocabulary)
        each = zip(torch.split(torch.cat(hidden), rows), torch.split(torch.tensor(tokens), rows), strict=True)
        base = torch.split(self._base, rows) if shift else ()
        found: list[list[np.ndarray]] = [[], [], []]
        with torch.no_grad():
            for place, (some, right) in enumerate(each):
                logits, right = model.logits(some), right.to(some.device)
                found[0].append(-logits.double().log_softmax(-1).gather(1, right[:, None])[:, 0].cpu().numpy())
                found[2].append((logits.argmax(-1) == right).cpu().numpy())
                if shift:
                    clean = self._unembed(base[place].to(some.device))
                    found[1].append(kl_divergence(clean.double(), logits.double()).cpu().numpy())
        loss, kl, hit = (np.concatenate(part) if part else np.zeros(0) for part in found)
        return loss, kl, hit

    def _preferred(self, model: HookedModel, loss: np.ndarray) -> np.ndarray:
        """Return whether each response is likelier than the rejected one; NaN where there is none."""
        found = np.full(len(self.examples), np.nan)
        some = [number for number, example in enumerate(self.examples) if example.rejected]
        worse = [self.examples[number].rejected for number in some]
        if some:
            lengths = np.array(list(map(len, worse)))
            hidden = self._hidden(model, self._worse, lengths.tolist())
            other, _, _ = self._per_token(model, hidden, worse, shift=False)
            found[some] = loss[some] < np.add.reduceat(other, np.cumsum(lengths) - lengths)
        return found

    @staticmethod
    def _hidden(model: HookedModel, ids: Sequence[Sequence[int]], responses: Sequence[int]) -> list[Tensor]:
        """Return the stream ``(pos, d_model)`` after the last layer where each token of a response is predicted."""
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        held: list[Tensor] = []
        hook = model.hook(Site(model.n_layers - 1, "resid_post"), held.append)
        training = model.model.training
        model.model.train(False)
        lengths = [len(each) for each in ids]
        try:
            for group in buckets(lengths, lambda length: _TOKENS // length):
                with model.lock, torch.no_grad(), attached([hook]):
                    model.run(torch.tensor([list(ids[i]) for i in group], device=model.device))
                for row, number in zip(held.pop(), group, strict=True):
                    found[number] = row[len(ids[number]) - responses[number] :].clone()
        finally:
            model.model.train(training)
        return found
