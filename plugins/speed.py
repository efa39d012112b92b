"""Speed: how many tokens a second a model reads and writes on this machine, and what memory that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas import Inputs, Probe, Suite, Variable, hookimpl

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel

PHASES = ("prefill", "decode")


class GenerationSpeed(Probe):
    """Tokens a second of reading a prompt and of writing, apart, at several lengths and batch sizes.

    Definition: prompts of random tokens of exact length are read in one forward with a cache (``prefill``; tokens of
    all rows over its time); then as many tokens as ``new_tokens`` says are written, whatever they are, one step at a
    time (``decode``; tokens of all rows over the time of the steps after the first). ``first_token`` is the time from
    the prompt to its first token. After a warm-up that is thrown away each is repeated, lengths and batches in turn, so
    that a machine that slows down slows all alike; each repeat is kept, and comparisons take medians. ``peak_memory``
    is the most that the device has held (on a GPU), or the process (elsewhere: a high-water mark, which never falls
    again). Device, dtype and threads stand in the result's provenance; speeds compare on one machine only.

    Unit: token/s; s; bytes.

    Control: none; the spread over repeats says what the machine makes of equal work.

    Source: the phases as in Pope et al. 2211.05102.
    """

    name = "speed"
    version = 1
    measures_on = "tests"
    replicate = None
    check_parameters = {"lengths": (4,), "batches": (1,), "new_tokens": 2, "repeats": 1}  # noqa: RUF012 - declared ClassVar in the base
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "tokens_per_second": Variable(("phase", "length", "batch", "repeat"), "token/s", "tokens per second"),
        "first_token": Variable(("length", "batch", "repeat"), "s", "time from the prompt to its first token"),
        "peak_memory": Variable(("phase", "length", "batch", "repeat"), "B", "most memory that was held"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is timed."""

        lengths: tuple[int, ...] = (32, 128)
        batches: tuple[int, ...] = (1, 8)
        new_tokens: int = 16
        repeats: int = 5

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Time every length and batch size, repeat by repeat."""
        import numpy as np

        from xatlas.schema import label

        asked = self.parameters
        lengths, batches = sorted(set(asked.lengths)), sorted(set(asked.batches))
        shape = (len(lengths), len(batches), asked.repeats)
        rate = np.full((len(PHASES), *shape), np.nan)
        memory = np.full((len(PHASES), *shape), np.nan)
        first = np.full(shape, np.nan)
        cells = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
        done, total = 0, (asked.repeats + 1) * len(cells)
        for repeat in range(-1, asked.repeats):  # the first is the warm-up
            for i, j in cells:
                found = timed(model, lengths[i], batches[j], asked.new_tokens, inputs.seed)
                done += 1
                inputs.progress("speed", done, total)
                if repeat >= 0:
                    rate[:, i, j, repeat], memory[:, i, j, repeat], first[i, j, repeat] = found
        coords = {
            "phase": list(PHASES),
            "length": lengths,
            "batch": batches,
            "repeat": np.arange(asked.repeats),
        }
        arrays = {"tokens_per_second": rate, "first_token": first, "peak_memory": memory}
        return label(self.variables, arrays, coords)


def timed(
    model: HookedModel, length: int, batch: int, new_tokens: int, seed: int
) -> tuple[list[float], list[float], float]:
    """Return tokens a second and peak memory of both phases, and the time to the first token."""
    import torch

    from xatlas.model.generation import run_generate, way_for

    generator = torch.Generator().manual_seed(seed + 1000 * length + batch)
    prompts = torch.randint(model.adapter.vocabulary, (batch, length), generator=generator).tolist()
    ids = torch.tensor(prompts, device=model.device)
    way = way_for(model)

    def read() -> None:
        with torch.inference_mode():
            model.logits(model.decoder(input_ids=ids, use_cache=way.cached).last_hidden_state[:, -1:]).argmax(-1)

    prefill, held = clocked(model, read)
    steps: list[float] = []  # when each token was there

    def watch(ids: Tensor, *_: object, **__: object) -> Tensor:
        if ids.device.type == "cuda":
            torch.cuda.synchronize(ids.device)
        steps.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    started = time.perf_counter()
    _, most = clocked(
        model, lambda: run_generate(model, prompts, new_tokens + 1, way, forced=True, stopping_criteria=[watch])
    )
    rates = [batch * length / prefill, batch * new_tokens / (steps[-1] - steps[0])]
    return rates, [held, most], steps[0] - started


def clocked(model: HookedModel, work: Callable[[], object]) -> tuple[float, float]:
    """Return how long a piece of work takes, and the most memory that was held until its end."""
    import resource

    import torch

    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
        torch.cuda.synchronize(model.device)
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(model.device)
    seconds = time.perf_counter() - started
    held = torch.cuda.max_memory_allocated(model.device) if on_gpu else 0
    return seconds, float(held or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [GenerationSpeed]
