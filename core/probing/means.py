"""What ablations take from a reference: means, samples and donors; and how much of a number is mere rounding."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, RandomDirection, means_needed
from xatlas.metrics import kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import exclusive
from xatlas.prompts.reader import TokenPrompt, TokenSuite, buckets

if TYPE_CHECKING:
    from xatlas.contracts.probe import Inputs

#: Fewest tokens after position 0 that a mean may rest on.
LEAST_TOKENS = 500
#: Enough tokens: prompts are taken family by family in turn until there are so many.
ENOUGH_TOKENS = 1500
#: Tokens whose values make up the covariance of matched directions.
SAMPLED_TOKENS = 512
#: Bytes of values that are captured at a time.
_CAPTURED_BYTES = 128 << 20
#: What is written at a site → the stream behind it, whose covariance a random change there has.
_STREAMS = {"operator_out": "resid_mid", "mlp_out": "resid_post"}
#: Prompts that the noise floor is measured on.
NOISE_PROMPTS = 8

#: A run's tokens for each prompt, None where a prompt has no such run.
Run = list[tuple[int, ...] | None]


@dataclass(frozen=True)
class Means:
    """Mean values of sites over reference tokens, all families pooled, and samples of single ones."""

    values: dict[Site, Tensor]  # (2, ...): at position 0, and over all other positions
    n_tokens: int  # after position 0
    samples: dict[Site, Tensor]  # (row, ...): values at single tokens after position 0, centred


def sources(
    model: HookedModel, prompts: Sequence[TokenPrompt], conditions: Sequence[Condition], inputs: Inputs
) -> tuple[dict[str, Run], dict[Site, Tensor], list[Condition]]:
    """Return donors' runs, reference means, and the conditions with the samples that match their directions."""
    needed = means_needed(conditions)
    named = any(part.change.runs() for condition in conditions for part in condition)
    streams = streams_needed(model, conditions)
    if not needed and not named and not streams:
        return {}, {}, list(conditions)
    if inputs.reference is None:
        raise XatlasError("mean and resample ablation, and controls, need a reference suite: pass --reference FILE.")
    reference = model.read(inputs.reference)
    runs = {"donor": choose_donors(prompts, reference, inputs.seed)} if named else {}
    if not needed and not streams:
        return runs, {}, list(conditions)
    means = reference_means(model, reference, needed, streams.values())
    return runs, means.values, matched(conditions, streams, means)


def streams_needed(model: HookedModel, conditions: Sequence[Condition]) -> dict[Site, Site]:
    """Return site of a random direction → the stream that what is written there goes to, else the site itself."""
    found = {}
    for site in {part.site for each in conditions for part in each if isinstance(part.change, RandomDirection)}:
        stream = Site(site.layer, _STREAMS.get(site.kind, site.kind))
        found[site] = stream if model.has(stream) else Site(site.layer, "resid_post")
    return found


def matched(conditions: Sequence[Condition], streams: Mapping[Site, Site], means: Means) -> list[Condition]:
    """Give random directions the samples whose covariance they have."""

    def match(part: Intervention) -> Intervention:
        if not isinstance(part.change, RandomDirection):
            return part
        return replace(part, change=replace(part.change, sample=means.samples[streams[part.site]]))

    return [tuple(map(match, condition)) for condition in conditions]


@torch.inference_mode()
def reference_means(
    model: HookedModel, reference: TokenSuite, sites: Iterable[Site], streams: Iterable[Site] = ()
) -> Means:
    """Average sites over the reference prompts' texts, position 0 apart: in float64, stored in float32.

    Of ``streams`` up to 512 tokens are kept as samples, evenly spaced.
    """
    averaged, sampled = set(sites), set(streams)
    every = sorted(averaged | sampled)
    batches = mean_batches(reference, min(512, _CAPTURED_BYTES // (4 * model.d_model * max(1, len(every)))))
    n_prompts, n_tokens = sum(map(len, batches)), sum(len(prompt.ids) - 1 for batch in batches for prompt in batch)
    kept = torch.zeros(n_tokens, dtype=torch.bool, device=model.device)
    kept[torch.arange(SAMPLED_TOKENS) * n_tokens // SAMPLED_TOKENS] = True
    by_batch = torch.split(kept, [sum(len(prompt.ids) - 1 for prompt in batch) for batch in batches])
    sums: dict[Site, Tensor] = {}
    rows: dict[Site, list[Tensor]] = {site: [] for site in sampled}
    for batch, picked in zip(batches, by_batch, strict=True):
        values = model.capture(model.tokens(batch), every)
        for site in sampled:
            rows[site].append(values[site][:, 1:].flatten(0, 1)[picked].float())
        for site in averaged:
            value = values[site].double() if model.device.type != "mps" else values[site].float()
            pair = torch.stack([value[:, 0].sum(0), value[:, 1:].sum((0, 1))])
            sums[site] = sums[site] + pair if site in sums else pair
    means = {site: torch.stack([first / n_prompts, rest / n_tokens]).float() for site, (first, rest) in sums.items()}
    samples = {site: torch.cat(rows.pop(site)) for site in sampled}
    return Means(means, n_tokens, {site: sample - sample.mean(0) for site, sample in samples.items()})


def mean_batches(reference: TokenSuite, at_once: int = 512) -> list[list[TokenPrompt]]:
    """Return the reference prompts that means are taken over, in batches of equal length of so many tokens."""
    families: dict[str, list[TokenPrompt]] = {}
    for prompt in reference.prompts:
        families.setdefault(prompt.prompt.family, []).append(prompt)
    chosen: list[TokenPrompt] = []
    n_tokens = 0
    for turn in range(max(map(len, families.values()), default=0)):  # family by family, until there are enough
        if n_tokens >= ENOUGH_TOKENS:
            break
        chosen += [members[turn] for members in families.values() if turn < len(members)]
        n_tokens = sum(len(prompt.ids) - 1 for prompt in chosen)
    if n_tokens < LEAST_TOKENS:
        what = f"the reference has {n_tokens} tokens after position 0; a mean needs at least {LEAST_TOKENS}"
        raise XatlasError(f"{what}: give a longer --reference.")
    lengths = [len(prompt.ids) for prompt in chosen]
    groups = buckets(lengths, lambda length: at_once // length)
    return [[chosen[i] for i in group] for group in groups]


def choose_donors(prompts: Sequence[TokenPrompt], reference: TokenSuite, seed: int) -> Run:
    """Choose donors for resample ablation: of equal token length, other family, other target; None where none fits."""
    by_length: dict[int, list[TokenPrompt]] = {}
    for donor in reference.prompts:
        by_length.setdefault(len(donor.ids), []).append(donor)
    chosen: Run = []
    for prompt in prompts:
        family, target = prompt.prompt.family, prompt.prompt.target
        others = [donor for donor in by_length.get(len(prompt.ids), []) if donor.prompt.family != family]
        fitting = [donor.ids for donor in others if target is None or donor.prompt.target != target]
        chosen.append(random.Random(f"{seed}|{prompt.prompt.id}").choice(fitting) if fitting else None)
    return chosen


@exclusive
@torch.inference_mode()
def noise_floor(model: HookedModel, prompts: Sequence[TokenPrompt]) -> dict[str, float]:
    """Return how far two clean runs lie apart at the readout of the first prompts that differ in rounding alone.

    In float32, a prompt run alone is compared with the same prompt in a batch; in lower precision, a float32 copy of
    the model with the model itself. ``kl`` is the largest in nats; ``logit_diff`` the largest change of target minus
    foil in logits, where any of the prompts has a foil.
    """

    def readout(hf: Any, ids: Tensor, position: int) -> Tensor:
        logits: Tensor = hf(input_ids=ids, use_cache=False).logits[0, position]
        return logits.double()

    exact = model.model if model.dtype == torch.float32 else copy.deepcopy(model.model).float()
    found = {"kl": 0.0}
    for prompt in prompts[:NOISE_PROMPTS]:
        ids = model.tokens([prompt])
        ours = readout(model.model, ids.expand(3, -1), prompt.readout)
        other = readout(exact, ids, prompt.readout)
        found["kl"] = max(found["kl"], float(kl_divergence(other, ours)))
        if prompt.answer is not None and prompt.foil_answer is not None:
            change = (ours - other)[prompt.answer] - (ours - other)[prompt.foil_answer]
            found["logit_diff"] = max(found.get("logit_diff", 0.0), float(change.abs()))
    return found
