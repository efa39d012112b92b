"""Time CKA's pass over the prompts and its Gram arithmetic apart, and what memory it takes beside the weights.

python benchmarks/cka.py --model smollm2-135m-q4 --suite standard --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

import xatlas
from xatlas import manager
from xatlas.contracts.probe import Inputs


def main() -> None:
    """Measure once and print a JSON line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m-q4")
    options.add_argument("--suite", default="standard")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    model, suite = xatlas.load(given.model, device="cpu"), manager.suites()[given.suite].load()
    probe, clocks = manager.probes()["cka"](), [time.perf_counter()]
    finish = probe.finish

    def timed():
        clocks.append(time.perf_counter())
        return finish()

    probe.finish = timed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = probe.measure(model, suite, Inputs())
    clocks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"model": given.model, "samples": dataset.sizes["sample"], "layers": dataset.sizes["layer"]}
    found |= {"pass_s": round(clocks[1] - clocks[0], 2), "gram_arithmetic_s": round(clocks[2] - clocks[1], 2)}
    found |= {"weights_mib": sum(each.nbytes for each in model.model.parameters()) >> 20}
    print(json.dumps(found | {"loaded_peak_mib": before >> 10, "peak_mib": peak >> 10}))


if __name__ == "__main__":
    main()
