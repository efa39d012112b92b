"""Set what the reading probes cost against one plain forward over the same prompts, in one process and in turn.

    python benchmarks/reading.py --threads 2
    python benchmarks/reading.py --threads 1 --clock cpu --memory standard

*Plain* is Hugging Face's own forward, unembedding every token, over batches of equal length. *Pass* is the capture pass
of all probes that need no attention weights, with the card and the embeddings; *eager* the pass of
`attention_patterns`, and *Gram* what CKA computes at the end. ``--memory`` takes peaks on half a suite and all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from functools import partial

import machine
import torch

import xatlas
from xatlas import Inputs, ReadingProbe, Suite, manager
from xatlas.probing.reading import read_together
from xatlas.prompts.reader import buckets

NAMES = ("model_card", "residual_norms", "cka", "logit_lens", "direct_logit_attribution", "conv_kernel")
NAMES += ("attention_patterns", "token_loss", "embedding_structure")
MINIATURES = ("lfm2-mini", "qwen-mini", "smollm2-mini")
EAGER = "attention_patterns"


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", metavar="SUITE", help="the suite that memory is measured on: standard")
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.set_defaults(device="cpu")
    return parser.parse_args()


@torch.inference_mode()
def plain(model, prompts):
    """Run all prompts of one length at once, as long as there are any."""
    for group in buckets([len(prompt.ids) for prompt in prompts], len(prompts)):
        model.model(input_ids=model.tokens([prompts[i] for i in group]), use_cache=False)


def measure(model, suite, names, clock="wall"):
    """Measure probes as a job list does, the reading ones together; returns the time of each part in seconds."""
    probes, inputs, took = {name: manager.probes()[name]() for name in names}, Inputs(), defaultdict(float)
    timed = partial(machine.seconds, device=model.device, clock=clock)
    if "cka" in probes:

        def finish(of=probes["cka"].finish):
            took["gram"], dataset = timed(of)
            return dataset

        probes["cka"].finish = finish
    reading = [probe for probe in probes.values() if isinstance(probe, ReadingProbe)]
    took["reading"] = timed(partial(read_together, reading, model, suite, [inputs] * len(reading)))[0] - took["gram"]
    for name, probe in probes.items():
        if not isinstance(probe, ReadingProbe):
            took[name], _ = timed(partial(probe.measure, model, suite, inputs))
    return took


def ratios(model, suite, options):
    """Return medians over rounds in which the ways take turns."""
    prompts, found = model.read(suite).prompts, defaultdict(list)
    plain(model, prompts[:4]), measure(model, Suite(suite.name, suite.prompts[:4]), {*NAMES} - {"cka"})  # warm-up
    for _ in range(options.rounds):
        base, _ = machine.seconds(partial(plain, model, prompts), model.device, options.clock)
        shared = measure(model, suite, [name for name in NAMES if name != EAGER], options.clock)
        eager = measure(model, suite, [EAGER], options.clock)["reading"]
        gram = shared.pop("gram")
        found["plain_s"].append(base)
        for name, took in {"pass": sum(shared.values()), "eager": eager, "gram": gram, **shared}.items():
            found[f"{name}_over_plain"].append(took / base)
    sizes = {"prompts": len(prompts), "tokens": sum(len(prompt.ids) for prompt in prompts)}
    return {"model": model.slug} | sizes | {name: statistics.median(values) for name, values in found.items()}


def memory(model, suite):
    """Return the peak of all nine probes over the weights, on half of a suite and on all of it."""
    found = {}
    for part, prompts in (("half", suite.prompts[::2]), ("whole", suite.prompts)):
        machine.reset_peak(model.device)
        measure(model, Suite(suite.name, prompts), NAMES)
        found[f"{part}_prompts"] = len(prompts)
        found[f"{part}_over_weights_gb"] = (machine.peak_bytes(model.device) - machine.weight_bytes(model)) / 1e9
    return {"memory_suite": suite.name, **found}


def main():
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    found, suites = machine.about(options), manager.suites()
    found |= {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    model = xatlas.load(options.model, device="cpu")
    found |= {"reading": ratios(model, suites["quick"].load(), options)}
    if options.memory:
        found["reading"] |= memory(model, suites[options.memory].load())
    minis = [measure(xatlas.load(name, device="cpu"), suites["quick"].load(), NAMES) for name in MINIATURES]
    found["reading"]["miniatures_s"] = sum(sum(took.values()) for took in minis)
    print(json.dumps(found, indent=1))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
