"""How the miniatures are made: `python -m xatlas.architectures.minis.recipe train lfm2-mini --out build/minis`.

In order:

- `mkdir -p build/minis && cd build/minis`, `python -m xatlas.plugins.suites 1024000 train.jsonl`, and
  `python -m xatlas.plugins.suites facts train.jsonl > facts.json` write the training file and what it holds;
- `prepare` trains the tokenizer and cuts the file into tokens;
- per model and `--seed` 0 to 4: `train` (can be stopped at any time and goes on from its last checkpoint), `export`
  (leaves the checkpoint as it is) and `card` (measures the exported file), the last two with `--folder`: seed 0 of
  `lfm2-mini` ships in `architectures/minis/lfm2-mini`, seed 1 in `architectures/minis/lfm2-mini-1`.

Of one seed every model sees the same tokens in the same order, because a step's lines follow from its number and the
seed alone; each seed begins elsewhere in the file. What the models learn, their widths and how long they are trained
was settled before the first of them, and stands in the defaults here, in `configs.py` and `trainer.py`. Matrices
inside the layers are trained with Muon (Jordan et al. 2024), which needs about half of AdamW's steps for these tasks;
embeddings, norms and convolution kernels with AdamW.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

from .configs import MLP_WIDTH
from .tokens import TokenFile, train_tokenizer
from .trainer import RECIPE, Trainer


def prepare(out: Path) -> None:
    """Train the tokenizer, cut the training file into tokens and measure the cards' baseline, once."""
    from .card import write_baseline

    TokenFile(out / "train.jsonl", train_tokenizer(out / "train.jsonl", out / "tokenizer"))
    write_baseline(out)


def train(
    name: str, out: Path, seed: int, steps: int, save_seconds: float, device: str = "cpu", compiled: bool = False
) -> None:
    """Train until step `steps`, with a checkpoint every `save_seconds` and a line in the log every 100 steps."""
    trainer = Trainer(name, out, device, replace(RECIPE, seed=seed), compiled)
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


def export(name: str, out: Path, seed: int, folder: Path, decay_steps: int, device: str = "cpu") -> None:
    """Write the model that ships, from the newest checkpoint, which stays as it is.

    With `decay_steps` the learning rate is brought down over so many more steps; without, the running average ships.
    """
    import torch

    from .card import write_facts, write_model

    trainer = Trainer(name, out, device, replace(RECIPE, seed=seed))
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
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the data")
    parser.add_argument("--steps", type=int, default=3_600, help="train until this step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--compile", action="store_true", help="train: needs a C++ compiler; lfm2-mini is quicker without"
    )
    parser.add_argument("--save-seconds", type=float, default=90)
    parser.add_argument("--decay-steps", type=int, default=400, help="export: steps of decay; 0 ships the average")
    parser.add_argument("--folder", type=Path, help="where the model ships; default: OUT/NAME-SEED/shipped")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.out)
        return 0
    if arguments.name is None:
        parser.error(f"{arguments.what} needs the name of a miniature")
    import torch

    torch.set_num_threads(arguments.threads)
    folder = arguments.folder or arguments.out / f"{arguments.name}-{arguments.seed}" / "shipped"
    if arguments.what == "train":
        options = arguments.steps, arguments.save_seconds, arguments.device, arguments.compile
        train(arguments.name, arguments.out, arguments.seed, *options)
    elif arguments.what == "export":
        folder.mkdir(parents=True, exist_ok=True)
        export(arguments.name, arguments.out, arguments.seed, folder, arguments.decay_steps, arguments.device)
    else:
        from .card import write_card

        write_card(folder, arguments.name, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
