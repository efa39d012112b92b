"""From final streams to metrics: only what a metric reads is unembedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from xatlas.metrics import Metric, TokenLogits

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.prompts import TokenPrompt
    from xatlas.sweep.budget import Budget
    from xatlas.sweep.scene import BucketScene


class Readout:
    """Turns final streams into metrics: only the positions that a metric reads are unembedded.

    Parameters
    ----------
    model : HookedModel
        The model.
    scene : BucketScene
        The bucket, with its clean run.
    metrics : sequence of Metric
        What is read; ``earliest`` is the first position that is.
    budget : Budget
        Bounds the logits that are held at once.
    """

    def __init__(self, model: HookedModel, scene: BucketScene, metrics: Sequence[Metric], budget: Budget) -> None:
        self.model = model
        self.metrics = metrics
        self.budget = budget
        prompts = scene.prompts
        self.pairs = sorted(
            {(row, p) for metric in metrics for row, prompt in enumerate(prompts) for p in metric.positions(prompt)}
        )
        self.rows = torch.tensor([row for row, _ in self.pairs], device=model.device, dtype=torch.long)
        self.earliest = min((p for _, p in self.pairs), default=scene.length - 1 + scene.offset) - scene.offset
        # counted from the end, for of a final stream there may be only that
        from_end = [p - scene.offset - scene.length for _, p in self.pairs]
        self.positions = torch.tensor(from_end, device=model.device, dtype=torch.long)
        self.final = scene.recorded.final[self.rows, self.positions]  # (token, d_model)
        self.weights = [_weights(metric, prompts, self.pairs) for metric in metrics]
        self.labels = torch.tensor([_label(prompts[row], p) for row, p in self.pairs], device=model.device)
        self.answer = torch.tensor([_or_none(prompts[row].answer) for row, _ in self.pairs], device=model.device)
        self.foil = torch.tensor([_or_none(prompts[row].foil_answer) for row, _ in self.pairs], device=model.device)

    def measure(self, finals: Sequence[Tensor], touched: Tensor) -> np.ndarray:
        """Return ``(metric, prompt, condition)`` for final streams ``(prompt, pos, d_model)``."""
        hidden = torch.stack([final[self.rows, self.positions] for final in finals])  # (condition, token, d_model)
        moved = touched[:, self.rows]  # (condition, token)
        per_token = np.full((len(self.metrics), len(finals), len(self.pairs)), np.nan)
        vocabulary = self.model.adapter.module(self.model.adapter.unembedding_path).weight.shape[0]
        at_once = max(1, self.budget.logit_bytes // (4 * vocabulary))
        for start in range(0, len(self.pairs), at_once):
            tokens = slice(start, start + at_once)
            clean = self.model.logits(self.final[tokens])
            group = max(1, at_once // clean.shape[0])
            for first in range(0, len(finals), group):
                some = slice(first, first + group)
                logits = self.model.logits(hidden[some, tokens])
                logits = torch.where(moved[some, tokens, None], logits, clean)
                view = TokenLogits(clean, logits, self.labels[tokens], self.answer[tokens], self.foil[tokens])
                bad = ~(view.lse.isfinite() & view.clean_lse.isfinite())
                for m, metric in enumerate(self.metrics):
                    numbers = metric.per_token(view).double().masked_fill(bad, torch.nan)
                    per_token[m, some, tokens] = numbers.cpu().numpy()
        return np.stack([_reduce(per_token[m], self.weights[m]) for m in range(len(self.metrics))])


def _weights(metric: Metric, prompts: Sequence[TokenPrompt], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return ``(prompt, token)``: what each token's number is multiplied with; NaN rows without any."""
    weights = np.zeros((len(prompts), len(pairs)))
    place = {pair: i for i, pair in enumerate(pairs)}
    for row, prompt in enumerate(prompts):
        positions = metric.positions(prompt)
        for p in positions:
            weights[row, place[row, p]] = metric.weight(prompt)
        if not len(positions):
            weights[row] = np.nan
    return weights


def _reduce(per_token: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``(prompt, condition)`` from ``(condition, token)``; another prompt's NaN stays its own."""
    result = np.full((weights.shape[0], per_token.shape[0]), np.nan)
    for row, weight in enumerate(weights):
        used = weight != 0
        if not np.isnan(weight).any():
            result[row] = per_token[:, used] @ weight[used]
    return result


def _label(prompt: TokenPrompt, position: int) -> int:
    """Return the target's token after ``position``, or -1."""
    index = position - (prompt.n_text - 1)
    return prompt.target_ids[index] if 0 <= index < len(prompt.target_ids) else -1


def _or_none(token: int | None) -> int:
    return -1 if token is None else token
