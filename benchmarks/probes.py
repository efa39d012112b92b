"""Time the causal probes' own sweeps: the engine against hooks on whole forwards, prompt by prompt, in turn.

    python benchmarks/probes.py --threads 2
    python benchmarks/probes.py --threads 1 --clock cpu --probes conv_taps,activation_patching

Each probe lays out its conditions as it always does; they are caught on their way to the engine. The engine and the
plain way then measure the same evenly spaced subset of them on the same prompts. The plain way runs one whole Hugging
Face forward per condition and prompt; what its changes look at (clean values, means, the twin's values) it is given
ready made. What both measure must agree. Attribution patching has no plain way of its own: its time is set against
exact patching of the same cells, prompt by prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import cases
import machine
import numpy as np
import torch
from plain import PlainContext, plain

from xatlas import Suite, manager
from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.interventions import means_needed
from xatlas.probing.patching import gradients
from xatlas.sweep import sweep

#: Where probes and their helpers find the engine.
DOORS = ("xatlas.sweep.sweep", "xatlas.engine.sweep.sweep")
#: Probe → the model that it is timed on, and parameters; convolutions need the hybrid.
PROBES = {
    "conv_factors": ("hybrid", {}),
    "conv_taps": ("hybrid", {}),
    "activation_patching": ("smollm2", {}),
    "position_ablation": ("smollm2", {}),
    "pairwise_ablation": ("smollm2", {"components": "L0.mlp,L5.operator,L11.mlp,L20.mlp,L29.mlp"}),
    "steering": ("smollm2", {"random": 4, "matched": 4, "shuffled": "no"}),
}
COLUMNS = (
    ("probe", "{}"),
    ("model", "{}"),
    ("prompts", "{}"),
    ("conditions", "{}"),
    ("engine_s", "{:.2f}"),
    ("prompt_by_prompt_s", "{:.2f}"),
    ("ratio", "{:.1f}"),
    ("difference", "{:.1e}"),
)


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=8, help="prompts that are measured, those of common lengths")
    parser.add_argument("--conditions", type=int, default=48, help="conditions per probe, evenly spaced")
    parser.add_argument("--probes", default=",".join(PROBES), help="comma-separated")
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


class Caught(Exception):
    """What a probe asked of the engine."""

    def __init__(self, call):
        super().__init__("caught")
        self.call = call


@contextmanager
def catching():
    """Make every call of the engine end in :class:`Caught`."""

    def catch(model, prompts, conditions, metrics, *, runs=None, means=None, seed=0, **_):
        raise Caught(SimpleNamespace(**locals()))

    patches = [mock.patch(door, catch) for door in DOORS]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def asked(name, model, suite, parameters):
    """Return the first sweep that a probe asks for."""
    probe = manager.probes()[name](**parameters)
    try:
        with catching():
            probe.measure(model, suite, Inputs(reference=manager.suites()["train"].load()))
    except Caught as caught:
        return caught.call
    raise SystemExit(f"{name} never called the engine")


def subset(call, n_prompts, n_conditions):
    """Keep prompts of the commonest lengths, and conditions evenly spaced."""
    lengths = [len(prompt.ids) for prompt in call.prompts]
    common = sorted(range(len(lengths)), key=lambda i: (-lengths.count(lengths[i]), lengths[i], i))[:n_prompts]
    chosen = sorted({int(i) for i in np.linspace(0, len(call.conditions) - 1, n_conditions)})
    runs = {name: [run[i] for i in common] for name, run in (call.runs or {}).items()}
    call.prompts, call.conditions, call.runs = (
        [call.prompts[i] for i in common],
        [call.conditions[i] for i in chosen],
        runs,
    )
    return call


def case_for(kind, device):
    """Return a model and the suite that its probes are timed on."""
    suite = manager.suites()["quick"].load()
    if kind == "smollm2":
        return cases.smollm2(8, 4, device, "float32").model, suite
    return cases.lfm2_reading(device, "float32"), suite


def measure(name, model, suite, parameters, options):
    """Time one probe both ways; returns a row."""
    call = subset(asked(name, model, suite, parameters), options.prompts, options.conditions)
    call.means = call.means or {}
    assert means_needed(call.conditions) <= set(call.means)
    contexts = [PlainContext(call, row) for row in range(len(call.prompts))]

    def engine():
        given = {"runs": call.runs, "means": call.means, "seed": call.seed}
        return sweep(model, call.prompts, call.conditions, call.metrics[:1], **given)[0]

    engine()  # warm-up
    ours, values = machine.seconds(engine, model.device, options.clock)
    theirs, expected = machine.seconds(lambda: plain(call, contexts), model.device, options.clock)
    return {
        "probe": name,
        "prompts": len(call.prompts),
        "mean_tokens": float(np.mean([len(prompt.ids) for prompt in call.prompts])),
        "conditions": len(call.conditions),
        "engine_s": ours,
        "prompt_by_prompt_s": theirs,
        "ratio": theirs / ours,
        "difference": float(np.nanmax(np.abs(values - expected))),
    }


def attribution(row, model, suite, options):
    """Set attribution patching's time for one pair's gradients at all sites against exact patching of its cells."""
    call = subset(asked("activation_patching", model, suite, {}), options.prompts, 1)
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in ("resid_post", "operator_out", "mlp_out")]
    short = [prompt for prompt in call.prompts if len(prompt.ids) == len(call.prompts[0].ids)]

    def once():
        gradients(model, short, sites)
        model.capture(model.tokens(short), sites)

    once()
    taken, _ = machine.seconds(once, model.device, options.clock)
    cells = len(sites) * 4  # position classes
    exact = row["prompt_by_prompt_s"] / row["prompts"] / row["conditions"] * cells * len(short)
    found = {"probe": "attribution_patching", "prompts": len(short), "conditions": cells, "engine_s": taken}
    return {**found, "prompt_by_prompt_s": exact, "ratio": exact / taken, "difference": float("nan")}


def main():
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    about = machine.about(options)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    held, rows = {}, []
    for name in options.probes.split(","):
        kind, parameters = PROBES[name]
        if kind not in held:
            held = {kind: case_for(kind, options.device)}
        model, suite = held[kind]
        rows.append(measure(name, model, Suite(suite.name, suite.prompts), parameters, options))
        if name == "activation_patching":
            rows.append(attribution(rows[-1], model, suite, options))
        for row in rows:
            row.setdefault("model", model.slug)
        print(json.dumps(rows[-1]), file=sys.stderr)
    cells = [[title for title, _ in COLUMNS], *([form.format(row[key]) for key, form in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    print("\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in cells))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "probes": rows}, file, indent=1)


if __name__ == "__main__":
    main()
