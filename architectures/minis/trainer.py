"""Training of one miniature: what decides what it learns, its steps, its checkpoints."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xatlas.files import write_atomic

from .configs import build
from .tokens import TARGET, TokenFile, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a model learns, apart from its architecture."""

    seed: int = 0  # of the initial weights, and of where in the training file the model begins
    lines_per_step: int = 128
    parts: int = 4
    learning_rate: float = 2.5e-3
    momentum: float = 0.95  # of Muon
    warmup_steps: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    text_weight: float = 0.05  # of a text token's loss; a target token's is 1
    averaging: float = 0.995  # a running average of the weights over about 200 steps can ship without a decay


RECIPE = Recipe()
SEED_STEPS = 1600  # of the training file between the beginnings of two seeds


def rate(step: int, decay: tuple[int, int] | None = None, recipe: Recipe = RECIPE) -> float:
    """Learning rate of a step: warm-up, then constant; within `decay` (first and last step) linearly to a fiftieth."""
    if decay is not None:
        left = max(0.0, (decay[1] - step) / (decay[1] - decay[0]))
        return recipe.learning_rate * (0.02 + 0.98 * left)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps)


class Trainer:
    """One model in training: its weights, its optimiser and its place in the data."""

    def __init__(
        self, name: str, out: Path, device: str = "cpu", recipe: Recipe = RECIPE, compiled: bool = False
    ) -> None:
        import torch

        self.name, self.out, self.device, self.recipe = name, out, device, recipe
        tokenizer = load_tokenizer(out / "tokenizer")
        self.data = TokenFile(out / "train.jsonl", tokenizer)
        model = build(name, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, recipe.seed)
        self.model = model.to(torch.device(device))
        if compiled:  # halves a step's time where there is no convolution and a C++ compiler is at hand
            self.model.model.forward = torch.compile(self.model.model.forward, dynamic=True)
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.next_step, self.tokens_seen = 0, 0
        self.checkpoint = out / f"{name}-{recipe.seed}" / "checkpoint.pt"

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        import torch

        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.average = state["average"]
            self.next_step, self.tokens_seen = state["next_step"], state["tokens_seen"]

    def save(self) -> None:
        """Write a checkpoint; a kill in between leaves the old one whole."""
        import torch

        state = {"model": self.model.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}
        state |= {"average": self.average, "next_step": self.next_step, "tokens_seen": self.tokens_seen}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.checkpoint, buffer.getvalue())

    def step(self, decay: tuple[int, int] | None = None) -> torch.Tensor:
        """One optimiser step; returns the mean loss of target tokens ``()``, in nats."""
        import torch

        batches = self.data.batches(
            self.next_step + self.recipe.seed * SEED_STEPS, self.recipe.lines_per_step, self.recipe.parts
        )
        kinds = [kinds[:, 1:] for _, kinds in batches]  # of predicted tokens
        targets = sum(int((part == TARGET).sum()) for part in kinds)
        predicted = sum(int((part > 0).sum()) for part in kinds)
        total = targets + self.recipe.text_weight * (predicted - targets)
        self.model.train()
        of_targets = []
        for (tokens, _), part in zip(batches, kinds, strict=True):
            loss, on_targets = weighted_loss(self.model, tokens, part, self.recipe.text_weight)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            of_targets.append(on_targets)
        self.tokens_seen += predicted
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(self.next_step, decay, self.recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - self.recipe.averaging)
        self.next_step += 1
        return torch.stack(of_targets).sum() / targets


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, its steps scaled to AdamW's; AdamW for everything else."""
    import torch

    from .muon import BatchedMuon

    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    muon = BatchedMuon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, momentum=recipe.momentum)
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True)
    return [muon, adamw]


def weighted_loss(
    model: PreTrainedModel, tokens: np.ndarray, kinds: np.ndarray, text_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of weighted next-token losses, and the unweighted sum over target tokens, both ``()``.

    Padding stands at the right and nothing looks ahead, so no mask is needed; only predicted positions are unembedded.
    What is predicted is found before the device is asked for anything, so that it never waits.

    Parameters
    ----------
    model : PreTrainedModel
        On any device.
    tokens : ndarray of int64
        ``(lines, positions)``.
    kinds : ndarray of int64
        Of the predicted tokens ``(lines, positions - 1)``: 0 padding, 1 text, 2 target.
    text_weight : float
        Of a text token's loss; a target token's is 1.
    """
    import torch

    flat = kinds.reshape(-1)
    (kept,) = flat.nonzero()
    ids = torch.from_numpy(tokens).to(model.device)
    rows = torch.from_numpy(kept).to(model.device)
    is_target = torch.from_numpy(flat[kept] == TARGET).to(model.device)
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[rows])  # (predicted tokens, vocabulary)
    labels = ids[:, 1:].reshape(-1)[rows]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (losses * torch.where(is_target, 1.0, text_weight)).sum(), (losses.detach() * is_target).sum()
