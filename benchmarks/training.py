"""Set what fine-tuning costs here against TRL's own steps: the same LoRA weights and examples, in one process, in turn.

    python benchmarks/training.py --model lfm2-mini --threads 1 --clock cpu

*TRL* is its trainer as it is called without xatlas: in float32, without gradient checkpointing, logging every ten
steps; GRPO with the same reward, groups of eight and KL. *xatlas* is ``xatlas.plugins.training.trainer.train``, which
follows the loss of every step. Both include the making of the trainer. Measurements on held-out prompts stand apart:
seconds for each.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from functools import partial

import machine
import torch

import xatlas
from xatlas.loading.loader import quiet_transformers
from xatlas.plugins.training.data import answers, split
from xatlas.plugins.training.measure import HeldOut
from xatlas.plugins.training.targets import target_modules
from xatlas.plugins.training.trainer import METHODS, Run, lora, train


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lfm2-mini")
    parser.add_argument("--methods", default="sft,dpo,grpo", help="comma-separated")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


def plain(tuned, examples, run):
    """Train as TRL is used without xatlas."""
    import datasets
    import trl
    from transformers import PrinterCallback

    name = {"dpo": "DPO", "grpo": "GRPO"}.get(run.method, "SFT")
    tokenizer = copy.deepcopy(tuned.model.tokenizer)
    text = [(tokenizer.decode(e.prompt), tokenizer.decode(e.response)) for e in examples]
    rows = {
        "SFT": [
            {"input_ids": [*e.prompt, *e.response], "labels": [-100] * len(e.prompt) + [*e.response]} for e in examples
        ],
        "DPO": [
            {"prompt": p, "chosen": r, "rejected": tokenizer.decode(e.rejected)}
            for (p, r), e in zip(text, examples, strict=True)
        ],
        "GRPO": [{"prompt": p, "answer": e.answer} for (p, _), e in zip(text, examples, strict=True)],
    }[name]
    settings = {"max_steps": run.steps, "per_device_train_batch_size": run.batch, "bf16": False, "use_cpu": True}
    settings |= {"gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    settings |= {"learning_rate": run.learning_rate, "lr_scheduler_type": "constant", "logging_steps": 10}
    more = {}
    if name == "GRPO":
        longest = max(len(e.response) for e in examples) + 1
        settings |= {"beta": 0.04, "per_device_train_batch_size": 8 * run.batch, "max_completion_length": longest}
        more = {"reward_funcs": lambda completions, answer, **_: list(map(float, map(answers, completions, answer)))}
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        trainer = getattr(trl, f"{name}Trainer")(
            model=tuned.peft,
            args=getattr(trl, f"{name}Config")(output_dir=folder, **settings),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            **more,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def main():
    """Time, print, and write down."""
    options = parse()
    torch.set_num_threads(options.threads)
    model = xatlas.load(options.model, device="cpu")
    targets, (examples, own) = target_modules(model, ["all"]), split(model, "transfer")
    held = HeldOut(model, own)
    rows = []
    for method in options.methods.split(","):
        assert method in METHODS
        assert method != "qlora", "of QLoRA's four bits TRL knows nothing once a model is loaded"
        took = {"trl": [], "xatlas": []}
        for number in range(options.rounds + 1):
            run = Run(method, steps=options.steps if number else 3, batch=8)
            for name, function in (("trl", plain), ("xatlas", train)):
                with lora(model, targets, run) as tuned:
                    seconds, _ = machine.seconds(partial(function, tuned, examples, run), model.device, options.clock)
                took[name] += [seconds / run.steps] if number else []  # the first is to warm up
        per_step = {name: statistics.median(each) for name, each in took.items()}
        ratio = statistics.median(a / b for a, b in zip(took["xatlas"], took["trl"], strict=True))
        row = {"method": method, "model": options.model, "steps": options.steps, "ratio": ratio}
        rows.append(row | {f"{name}_s": each for name, each in per_step.items()})
        print(f"{method}: TRL {per_step['trl']:.4f} s, xatlas {per_step['xatlas']:.4f} s a step, {ratio:.3f} times")
    seconds, _ = machine.seconds(partial(held.measure, model), model.device, options.clock)
    print(f"{len(own)} held-out prompts: {seconds:.2f} s")
    if options.json:
        options.device = "cpu"
        with open(options.json, "w", encoding="utf-8") as file:
            found = machine.about(options) | {"training": rows, "held_out": len(own), "held_out_s": seconds}
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
