"""Set what the tests of `capability` cost against the same tokens through plain batched ``generate``, in turn.

    python benchmarks/capability.py --threads 1 --clock cpu --per-category 3

*xatlas* is the probe as it is run: templates, tokens, batches, answers kept on disk, checks. *Plain* is the tokenizer
and ``generate`` of Hugging Face on the same prompts, padded on the left, in the same batches, up to as many tokens.
Both must write the same; answers in which the two likeliest tokens lie within 1e-4 may differ, and are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import machine
import torch

import xatlas
from xatlas import manager
from xatlas.contracts.probe import Inputs
from xatlas.model.generation import BATCH, batches, way_for
from xatlas.plugins.skills.choosing import questions_of
from xatlas.results.store import FolderCheckpoint


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--per-category", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


def plain(model, questions):
    """Return the answers of Hugging Face's own ``generate``."""
    order = batches([len(one.ids) for one in questions], [one.most for one in questions], way_for(model), BATCH)
    tokenizer, answers = model.tokenizer, {}
    for rows in order:
        texts = [questions[i].text for i in rows]
        given = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        most = questions[rows[0]].most
        made = model.model.generate(**given.to(model.device), max_new_tokens=most, do_sample=False)
        written = made[:, given["input_ids"].shape[1] :]
        answers |= dict(zip(rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True))
    return [answers[i] for i in range(len(questions))]


def main():
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    model = xatlas.load(options.model, device=options.device, dtype="float32")
    probe = manager.probes()["capability"](per_category=options.per_category)
    questions = questions_of(model, probe.parameters)[1]
    suite = manager.suites()["quick"].load()  # which this probe doesn't read
    plain(model, questions[:2])  # warm-up
    taken = {"xatlas": [], "plain": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            inputs = Inputs(checkpoint=FolderCheckpoint(Path(folder)))
            seconds, found = machine.seconds(partial(probe.measure, model, suite, inputs), model.device, options.clock)
        taken["xatlas"].append(seconds)
        seconds, answers = machine.seconds(lambda: plain(model, questions), model.device, options.clock)
        taken["plain"].append(seconds)
    pairs = list(zip(found["answer"].values, answers, found["ties"].values, strict=True))
    row = {
        "model": options.model,
        "tests": len(questions),
        "tokens": int(found["answer_tokens"].sum()),
        "xatlas_s": statistics.median(taken["xatlas"]),
        "plain_s": statistics.median(taken["plain"]),
        "ratio": statistics.median(a / b for a, b in zip(*taken.values(), strict=True)),
        "with_ties": sum(bool(ties) for _, _, ties in pairs),
        "differing": sum(ours != theirs for ours, theirs, _ in pairs),
    }
    unexplained = [ours for ours, theirs, ties in pairs if ours != theirs and not ties]
    if unexplained:
        raise SystemExit(f"{len(unexplained)} answers differ without a tie: {unexplained[:3]}")
    about = machine.about(options)
    for name, value in {**about, **row}.items():
        print(f"{name:12}{value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "capability": row}, file, indent=1)


if __name__ == "__main__":
    main()
