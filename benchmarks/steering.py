"""Time steering at the readout: the engine against hooks on whole forwards, prompt by prompt, in turn.

    python benchmarks/steering.py --threads 2
    python benchmarks/steering.py --threads 1 --clock cpu --layers 6

Each condition adds a random unit direction, times a strength, to the stream leaving a layer, at the readout
position. The engine is timed on all conditions of the chosen layers, the plain way on an evenly spaced subset
of the same, its time scaled to all. KL of the shared conditions must agree.
"""

from __future__ import annotations

import argparse
import json

import cases
import machine
import numpy as np
import torch

from xatlas import Intervention, Site
from xatlas.interventions import Add
from xatlas.metrics import KL
from xatlas.sweep import sweep

STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
DIRECTIONS = 24


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5, help="layers, evenly spaced from first to last; 0: all")
    parser.add_argument("--plain", type=int, default=24, help="conditions that the plain way is timed on")
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def conditions(model, layers):
    """Return the conditions, layer by layer."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(DIRECTIONS, model.d_model, generator=generator)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    return [
        (Intervention(Site(layer, "resid_post"), Add(strength * vector), positions="last"),)
        for layer in layers
        for strength in STRENGTHS
        for vector in vectors
    ]


@torch.inference_mode()
def plain(model, prompts, chosen):
    """Return KL ``(prompt, condition)``, one hooked whole forward each."""
    result = np.zeros((len(prompts), len(chosen)))
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.ids], device=model.device)
        clean = model.model(input_ids=ids, use_cache=False).logits[0, prompt.readout].double().log_softmax(-1)
        for column, (part,) in enumerate(chosen):
            vector, at = part.change.vector.to(model.device), prompt.readout

            def steer(_, __, output, vector=vector, at=at):
                moved = output.clone()
                moved[:, at] += vector
                return moved

            handle = model.adapter.layer(part.site.layer).register_forward_hook(steer)
            logits = model.model(input_ids=ids, use_cache=False).logits[0, at].double().log_softmax(-1)
            handle.remove()
            result[row, column] = float((clean.exp() * (clean - logits)).sum())
    return result


def main():
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    case = cases.smollm2(options.prompts, max(1, options.prompts // 4), options.device, "float32")
    n = case.model.n_layers
    layers = range(n) if not options.layers else sorted({round(i) for i in np.linspace(0, n - 1, options.layers)})
    every = conditions(case.model, layers)
    subset = [int(i) for i in np.linspace(0, len(every) - 1, options.plain)]
    sweep(case.model, case.prompts[:1], every[:8], [KL()])  # warm-up of both
    plain(case.model, case.prompts[:1], every[:2])
    clock, device = options.clock, case.model.device
    ours, values = machine.seconds(lambda: sweep(case.model, case.prompts, every, [KL()])[0], device, clock)
    some = [every[i] for i in subset]
    theirs, expected = machine.seconds(lambda: plain(case.model, case.prompts, some), device, clock)
    scaled = theirs * len(every) / len(some)
    row = {
        "probe": "steering, whole sweep",
        "model": case.name,
        "conditions": len(every),
        "prompts": len(case.prompts),
        "mean_tokens": round(float(np.mean([len(prompt.ids) for prompt in case.prompts])), 1),
        "engine_s": ours,
        "prompt_by_prompt_s": scaled,
        "ratio": scaled / ours,
        "difference": float(np.abs(values[:, subset] - expected).max()),
    }
    about = machine.about(options)
    for name, value in {**about, **row}.items():
        print(f"{name:22}{value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "probes": [row]}, file, indent=1)


if __name__ == "__main__":
    main()
