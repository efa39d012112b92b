"""Compare the engine with two plain ways to do the same sweep, in one process and in turn.

    python benchmarks/sweep.py --threads 2
    python benchmarks/sweep.py --threads 1 --models lfm2.5-230m-shape --json results.json
    python benchmarks/sweep.py --device cuda --prompts 60 --conditions 0

Layer sweep: operator, MLP and both, replaced by their mean, with a random-direction control each. Head
sweep: every head likewise. KL is read at the readout position. All methods get the same prompts and the same
subset of conditions, evenly spaced (--conditions 0 takes all). Ratios compare medians over rounds in which
the three methods take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys

import cases
import machine
import numpy as np
import torch
from baselines import bucketed, plain_conditions, prompt_by_prompt

from xatlas.engine.schedule import Budget
from xatlas.metrics import KL
from xatlas.probing.means import matched, reference_means, streams_needed
from xatlas.sweep import sweep

SEED = 0
CASES = {"smollm2-135m-q4": cases.smollm2, "lfm2.5-230m-shape": cases.lfm2_shape}
SWEEPS = {"layers": cases.layer_conditions, "heads": cases.head_conditions}
#: Agreement that is asked for: nats, and share of the value.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
COLUMNS = (
    ("model", "model", "{}"),
    ("sweep", "sweep", "{}"),
    ("conditions", "cond.", "{}"),
    ("engine_s", "engine s", "{:.2f}"),
    ("prompt_by_prompt_s", "by prompt s", "{:.2f}"),
    ("bucketed_s", "bucketed s", "{:.2f}"),
    ("ratio_prompt_by_prompt", "ratio", "{:.2f}"),
    ("ratio_bucketed", "ratio", "{:.2f}"),
    ("difference", "largest diff.", "{:.1e}"),
    ("share_of_multiply_rate", "share of rate", "{:.2f}"),
    ("peak_over_weights_gb", "peak - weights GB", "{:.2f}"),
)
SCALING_COLUMNS = (
    ("model", "model", "{}"),
    ("prompts", "prompts", "{}"),
    ("tokens", "tokens", "{}"),
    ("engine_s", "engine s", "{:.2f}"),
    ("us_per_token_and_condition", "us per token and condition", "{:.1f}"),
    ("peak_over_weights_gb", "peak - weights GB", "{:.2f}"),
)


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per model")
    parser.add_argument("--bucket", type=int, default=4, help="prompts of each token length")
    parser.add_argument("--conditions", type=int, default=120, help="conditions per sweep, evenly spaced; 0: all")
    parser.add_argument("--rounds", type=int, default=2, help="turns of the three methods")
    parser.add_argument("--models", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="comma-separated")
    parser.add_argument("--scaling", action="store_true", help="also time the engine alone on 1, 2 and 4 x prompts")
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


def measure(case, kind, options):
    """Time the three methods on one model and sweep; returns one row of results."""
    model, device = case.model, case.model.device
    conditions, controls = _subset(*SWEEPS[kind](model), options.conditions)
    conditions, means = _with_reference(case, conditions, controls)
    plain = plain_conditions(model, case.prompts, conditions, controls, means, SEED)
    methods = {
        "engine": lambda: sweep(model, case.prompts, conditions, [KL("last")], means=means, seed=SEED)[0],
        "prompt_by_prompt": lambda: prompt_by_prompt(model, case.prompts, plain),
        "bucketed": lambda: bucketed(model, case.prompts, plain),
    }
    with machine.counting(model) as flop:
        machine.reset_peak(device)
        methods["engine"]()  # also warms up
        peak = machine.peak_bytes(device)
    prompt_by_prompt(model, case.prompts[:1], plain[:2])
    bucketed(model, case.prompts[:1], plain[:2])
    times, values = {name: [] for name in methods}, {}
    for turn in range(options.rounds):
        for name, method in methods.items():
            taken, values[name] = machine.seconds(method, device, options.clock)
            times[name].append(taken)
            print(f"  {case.name} {kind}, round {turn + 1}: {name} {taken:.1f} s", file=sys.stderr)
    rate = machine.multiply_rate(model, Budget.for_device(device).tile_tokens, options.clock)
    return _row(case, kind, len(conditions), times, values, flop[0], rate, peak)


def _subset(conditions, controls, number):
    """Keep ``number`` conditions, evenly spaced, an ablation and its control together."""
    pairs = len(conditions) // 2
    wanted = pairs if number == 0 else min(pairs, max(1, number // 2))
    chosen = [2 * int(i * pairs / wanted) + side for i in range(wanted) for side in (0, 1)]
    return [conditions[i] for i in chosen], [controls[i] for i in chosen]


def _with_reference(case, conditions, controls):
    """Return the conditions with matched directions, and the means that they need."""
    sites = {part.site for i, c in enumerate(conditions) for part in controls[i] or c}
    streams = streams_needed(case.model, conditions)
    found = reference_means(case.model, case.reference, sites, streams.values())
    return matched(conditions, streams, found), found.values


def _row(case, kind, n_conditions, times, values, flop, rate, peak):
    median = {name: statistics.median(taken) for name, taken in times.items()}
    plain = values["prompt_by_prompt"]
    gap = np.abs(values["engine"] - plain)
    weights = machine.weight_bytes(case.model)
    return {
        "model": case.name,
        "sweep": kind,
        "prompts": len(case.prompts),
        "conditions": n_conditions,
        **{f"{name}_s": value for name, value in median.items()},
        "seconds": times,
        "ratio_prompt_by_prompt": median["prompt_by_prompt"] / median["engine"],
        "ratio_bucketed": median["bucketed"] / median["engine"],
        "difference": float(gap.max()),
        "largest_kl": float(plain.max()),
        "agrees": bool((gap <= ABSOLUTE + RELATIVE * np.abs(plain)).all()),
        "multiply_rate_gflops": rate / 1e9,
        "share_of_multiply_rate": flop / median["engine"] / rate,
        "peak_gb": peak / 1e9,
        "weights_gb": weights / 1e9,
        "peak_over_weights_gb": (peak - weights) / 1e9,
    }


def scaling(name, options):
    """Time the engine's layer sweep on 1, 2 and 4 times the prompts: seconds per prompt should not grow."""
    rows = []
    for factor in (1, 2, 4):
        gc.collect()  # the model before this one: its memory is not this one's
        case = CASES[name](factor * options.prompts, options.bucket, options.device, options.dtype)
        rows.append(_engine_alone(case, options))
        del case
    return rows


def _engine_alone(case, options):
    conditions, controls = _subset(*SWEEPS["layers"](case.model), options.conditions)
    conditions, means = _with_reference(case, conditions, controls)
    machine.reset_peak(case.model.device)
    taken, _ = machine.seconds(
        lambda: sweep(case.model, case.prompts, conditions, [KL("last")], means=means), case.model.device, options.clock
    )
    peak = machine.peak_bytes(case.model.device) - machine.weight_bytes(case.model)
    tokens = sum(len(prompt.ids) for prompt in case.prompts)
    return {
        "model": case.name,
        "prompts": len(case.prompts),
        "tokens": tokens,
        "engine_s": taken,
        "us_per_token_and_condition": 1e6 * taken / tokens / len(conditions),
        "peak_over_weights_gb": peak / 1e9,
    }


def table(rows, columns):
    """Return rows as aligned text."""
    cells = [[title for _, title, _ in columns]]
    cells += [[form.format(row[key]) for key, _, form in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def main():
    """Run what was asked for and print it."""
    options = parse()
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        sys.exit("--clock cpu compares methods only with --threads 1 on the CPU: waiting threads count too.")
    torch.set_num_threads(options.threads)
    about = machine.about(options)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows, scaled = [], []
    for name in options.models.split(","):
        case = CASES[name](options.prompts, options.bucket, options.device, options.dtype)
        rows += [measure(case, kind, options) for kind in options.sweeps.split(",")]
        del case
        scaled += scaling(name, options) if options.scaling else []
    print(table(rows, COLUMNS))
    for row in rows:
        words = "agrees" if row["agrees"] else "DOES NOT AGREE"
        where, size = f"{row['model']} {row['sweep']}", f"largest KL {row['largest_kl']:.3g} nats"
        print(f"{where}: the engine {words} with the hook loop; {size}")
    if scaled:
        print(table(scaled, SCALING_COLUMNS))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows, "scaling": scaled}, file, indent=1)
    return 0 if all(row["agrees"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
