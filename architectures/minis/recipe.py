"""How the miniatures are made: `python -m xatlas.architectures.minis.recipe train lfm2-mini --out build/minis`.

In order:

- `mkdir -p build/minis && cd build/minis`, `python -m xatlas.plugins.suites 1024000 train.jsonl`, and
  `python -m xatlas.plugins.suites overlap train.jsonl > overlap.json` write the training file and what it shares with
  the test split;
- `prepare` trains the tokenizer and cuts the file into tokens;
- per model `train` (can be stopped at any time and goes on from its last checkpoint), `export` (leaves the checkpoint
  as it is) and `card` (measures the exported file).

Every model sees the same tokens in the same order, because a step's lines follow from its number alone. Matrices
inside the layers are trained with Muon (Jordan et al. 2024), which needs about half of AdamW's steps for these tasks;
embeddings, norms and convolution kernels with AdamW.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .configs import MLP_WIDTH, build
from .tokens import TARGET, TokenFile, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a model learns, apart from its architecture."""

    seed: int = 0
    lines_per_step: int = 128
    parts: int = 8
    learning_rate: float = 2.5e-3
    momentum: float = 0.95  # of Muon
    warmup_steps: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    text_weight: float = 0.05  # of a text token's loss; a target token's is 1
    averaging: float = 0.995  # a running average of the weights over about 200 steps can ship without a decay


RECIPE = Recipe()


def rate(step: int, decay: tuple[int, int] | None = None, recipe: Recipe = RECIPE) -> float:
    """Learning rate of a step: warm-up, then constant; within `decay` (first and last step) linearly to a fiftieth."""
    if decay is not None:
        left = max(0.0, (decay[1] - step) / (decay[1] - decay[0]))
        return recipe.learning_rate * (0.02 + 0.98 * left)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps)


class Trainer:
    """One model in training: its weights, its optimiser and its place in the data."""

    def __init__(self, name: str, out: Path, device: str = "cpu", recipe: Recipe = RECIPE) -> None:
        self.name, self.out, self.device, self.recipe = name, out, device, recipe
        tokenizer = load_tokenizer(out / "tokenizer")
        self.data = TokenFile(out / "train.jsonl", tokenizer)
        model = build(name, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, recipe.seed)
        self.model = model.to(device)  # type: ignore[arg-type]
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.next_step, self.tokens_seen = 0, 0
        self.checkpoint = out / name / "checkpoint.pt"

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

        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}
        state |= {"average": self.average, "next_step": self.next_step, "tokens_seen": self.tokens_seen}
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def step(self, decay: tuple[int, int] | None = None) -> torch.Tensor:
        """One optimiser step; returns the mean loss of target tokens ``()``, in nats."""
        import torch

        batches = self.data.batches(self.next_step, self.recipe.lines_per_step, self._parts)
        kinds = [kinds[:, 1:] for _, kinds in batches]  # of predicted tokens
        targets = sum(int((part == TARGET).sum()) for part in kinds)
        predicted = sum(int((part > 0).sum()) for part in kinds)
        total = targets + self.recipe.text_weight * (predicted - targets)
        self.model.train()
        of_targets = []
        for (tokens, _), part in zip(batches, kinds, strict=True):
            loss, on_targets = weighted_loss(self.model, tokens, part, self.recipe.text_weight)
            (loss / total).backward()
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

    @property
    def _parts(self) -> int:
        """Arrays that a step's lines are cut into: a GPU is faster with some padding than with many small ones."""
        return self.recipe.parts if self.device == "cpu" else 1


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, its steps scaled to AdamW's; AdamW for everything else."""
    import torch

    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
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


def prepare(out: Path) -> None:
    """Train the tokenizer, cut the training file into tokens and measure the cards' baseline, once."""
    from .card import write_baseline

    TokenFile(out / "train.jsonl", train_tokenizer(out / "train.jsonl", out / "tokenizer"))
    write_baseline(out)


def train(name: str, out: Path, steps: int, save_seconds: float, device: str = "cpu") -> None:
    """Train until step `steps`, with a checkpoint every `save_seconds` and a line in the log every 100 steps."""
    trainer = Trainer(name, out, device)
    trainer.resume()
    started = saved = time.monotonic()
    first, seen, losses = trainer.next_step, trainer.tokens_seen, []
    while trainer.next_step < steps:
        losses.append(trainer.step())
        now = time.monotonic()
        if trainer.next_step % 100 == 0:
            speed = (trainer.tokens_seen - seen) / (now - started)
            mean = float(sum(losses)) / len(losses)
            print(f"{name} step {trainer.next_step} loss {mean:.4f} {speed:.0f} tokens/s", flush=True)
            losses = []
        if now - saved > save_seconds:
            trainer.save()
            saved = now
    if trainer.next_step > first:
        trainer.save()


def export(name: str, out: Path, folder: Path, decay_steps: int, device: str = "cpu") -> None:
    """Write the model that ships, from the newest checkpoint, which stays as it is.

    With `decay_steps` the learning rate is brought down over so many more steps; without, the running average ships.
    """
    import torch

    from .card import write_facts, write_model

    trainer = Trainer(name, out, device)
    trainer.resume()
    decay = (trainer.next_step, trainer.next_step + decay_steps)
    while trainer.next_step < decay[1]:
        trainer.step(decay)
    if not decay_steps:
        with torch.no_grad():
            for parameter, average in zip(trainer.model.parameters(), trainer.average, strict=True):
                parameter.copy_(average)
    write_model(trainer.model, out, folder)
    facts = asdict(trainer.recipe) | {"decay_steps": decay_steps, "steps": trainer.next_step}
    facts |= {
        "tokens_seen": trainer.tokens_seen,
        "device": trainer.device,
        "training_lines": len(trainer.data),
        "data_sha256": trainer.data.hash,
    }
    write_facts(folder, facts)


def main() -> int:
    """Run one step of the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "train", "export", "card"))
    parser.add_argument("name", nargs="?", choices=tuple(MLP_WIDTH), help="which miniature")
    parser.add_argument(
        "--out", type=Path, default=Path("build/minis"), help="folder with train.jsonl; checkpoints go there"
    )
    parser.add_argument("--steps", type=int, default=20_000, help="train until this step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--save-seconds", type=float, default=90)
    parser.add_argument("--decay-steps", type=int, default=300, help="export: steps of decay; 0 ships the average")
    parser.add_argument("--folder", type=Path, help="where the model ships; default: OUT/NAME/shipped")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.out)
        return 0
    if arguments.name is None:
        parser.error(f"{arguments.what} needs the name of a miniature")
    import torch

    torch.set_num_threads(arguments.threads)
    folder = arguments.folder or arguments.out / arguments.name / "shipped"
    if arguments.what == "train":
        train(arguments.name, arguments.out, arguments.steps, arguments.save_seconds, arguments.device)
    elif arguments.what == "export":
        folder.mkdir(parents=True, exist_ok=True)
        export(arguments.name, arguments.out, folder, arguments.decay_steps, arguments.device)
    else:
        from .card import write_card

        write_card(folder, arguments.name, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
