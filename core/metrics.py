"""What is read off the logits: KL, NLL change, top-1 change, logit difference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from xatlas.errors import unknown
from xatlas.prompts.reader import TokenPrompt
from xatlas.vocabulary import SCOPES


@dataclass
class TokenLogits:
    """Clean and intervened logits at some token positions, with what several metrics share."""

    clean: Tensor  # (token, vocabulary)
    logits: Tensor  # (condition, token, vocabulary)
    labels: Tensor  # (token,) the next token that the target has there; -1 where there is none
    answer: Tensor  # (token,) the readout's right token, and its wrong one; -1 where there is none
    foil: Tensor

    @cached_property
    def clean_lse(self) -> Tensor:
        """Log of the summed exponentials of the clean logits ``(token,)``."""
        return self.clean.logsumexp(dim=-1)

    @cached_property
    def lse(self) -> Tensor:
        """Log of the summed exponentials ``(condition, token)``."""
        return self.logits.logsumexp(dim=-1)

    def clean_logit(self, tokens: Tensor) -> Tensor:
        """Return the clean logit of one token per position ``(token,)``."""
        return self.clean.gather(-1, tokens.clamp(min=0)[:, None])[:, 0]

    def logit(self, tokens: Tensor) -> Tensor:
        """Return the logit of one token per position ``(condition, token)``."""
        index = tokens.clamp(min=0)[None, :, None].expand(self.logits.shape[0], -1, 1)
        return self.logits.gather(-1, index)[..., 0]


class Metric(ABC):
    """A number per prompt and condition, reduced from numbers per token."""

    name: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def positions(self, prompt: TokenPrompt) -> Sequence[int]:
        """Return the positions that are read in this prompt; without any, the result is NaN."""

    @abstractmethod
    def per_token(self, tokens: TokenLogits) -> Tensor:
        """Return ``(condition, token)``."""

    def weight(self, prompt: TokenPrompt) -> float:
        """Return what the sum over the prompt's positions is multiplied with: by default, a mean."""
        return 1.0 / max(1, len(self.positions(prompt)))


def kl_divergence(clean: Tensor, logits: Tensor, clean_lse: Tensor | None = None, lse: Tensor | None = None) -> Tensor:
    """Return KL(clean ‖ changed) of next-token distributions, in nats, shaped as ``logits`` without ``vocabulary``.

    Of logits ``(..., vocabulary)``, changed in one run or in several ``(condition, ..., vocabulary)``, and their
    ``logsumexp`` where it is known already. It is written with the difference of the logits, so that equal logits give
    exactly 0; rounding below zero is cut off.
    """
    clean_lse = clean.logsumexp(-1) if clean_lse is None else clean_lse
    lse = logits.logsumexp(-1) if lse is None else lse
    p = (clean - clean_lse[..., None]).exp()
    rows = logits if logits.dim() > clean.dim() else logits[None]  # one by one: a difference is as large as the logits
    expected = torch.stack([torch.linalg.vecdot(p, row - clean) for row in rows])
    return (lse - clean_lse - expected.reshape(lse.shape)).clamp(min=0)


class KL(Metric):
    """KL(clean ‖ intervened) of the next-token distribution, in nats.

    At the readout position (scope ``last``), or the mean over the text's positions but the first (``all``).
    """

    name = "kl"

    def __init__(self, scope: str = "last") -> None:
        if scope not in SCOPES:
            raise unknown("scope", scope, SCOPES)
        self.scope = scope

    def __str__(self) -> str:
        return f"kl, scope {self.scope}"

    def positions(self, prompt: TokenPrompt) -> Sequence[int]:
        return (prompt.readout,) if self.scope == "last" else range(1, prompt.n_text)

    def per_token(self, tokens: TokenLogits) -> Tensor:
        return kl_divergence(tokens.clean, tokens.logits, tokens.clean_lse, tokens.lse)


class DeltaNLL(Metric):
    """Teacher-forced change of the negative log-likelihood of the whole target, in nats per byte of it."""

    name = "delta_nll"

    def positions(self, prompt: TokenPrompt) -> Sequence[int]:
        return range(prompt.n_text - 1, len(prompt.ids)) if prompt.target_ids else ()

    def per_token(self, tokens: TokenLogits) -> Tensor:
        clean = tokens.clean_logit(tokens.labels) - tokens.clean_lse
        return clean - (tokens.logit(tokens.labels) - tokens.lse)

    def weight(self, prompt: TokenPrompt) -> float:
        return 1.0 / max(1, len((prompt.prompt.target or "").encode()))


class Top1Changed(Metric):
    """1 where the most likely token at the readout position is another one, else 0."""

    name = "top1_changed"

    def positions(self, prompt: TokenPrompt) -> Sequence[int]:
        return (prompt.readout,)

    def per_token(self, tokens: TokenLogits) -> Tensor:
        return (tokens.logits.argmax(-1) != tokens.clean.argmax(-1)).float()


class LogitDifference(Metric):
    """Target's minus foil's logit at the readout position, intervened; minus the clean one if ``change``."""

    name = "logit_diff"

    def __init__(self, change: bool = True) -> None:
        self.change = change

    def positions(self, prompt: TokenPrompt) -> Sequence[int]:
        return (prompt.readout,) if prompt.foil_answer is not None else ()

    def per_token(self, tokens: TokenLogits) -> Tensor:
        after = tokens.logit(tokens.answer) - tokens.logit(tokens.foil)
        if not self.change:
            return after
        return after - (tokens.clean_logit(tokens.answer) - tokens.clean_logit(tokens.foil))


#: Metrics by the names that probes give their variables; ``kl`` takes a scope.
METRICS: dict[str, Callable[..., Metric]] = {
    "kl": KL,
    "delta_nll": DeltaNLL,
    "top1_changed": Top1Changed,
    "delta_logit_diff": LogitDifference,
}
