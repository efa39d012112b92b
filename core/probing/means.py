"""What ablations take from a reference: means and donors; and how much of a number is mere rounding."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xatlas.errors import XatlasError
from xatlas.interventions import means_needed
from xatlas.metrics import kl_divergence
from xatlas.model.hooks import exclusive
from xatlas.prompts.reader import TokenPrompt, TokenSuite, buckets

if TYPE_CHECKING:
    from xatlas.contracts.adapter import Site
    from xatlas.contracts.probe import Inputs
    from xatlas.interventions import Condition
    from xatlas.model import HookedModel

#: Fewest tokens after position 0 that a mean may rest on.
LEAST_TOKENS = 500
#: Enough tokens: prompts are taken family by family in turn until there are so many.
ENOUGH_TOKENS = 1500
#: Prompts that the noise floor is measured on.
NOISE_PROMPTS = 8

#: A run's tokens for each prompt, None where a prompt has no such run.
Run = list[tuple[int, ...] | None]


@dataclass(frozen=True)
class Means:
    """Mean values of sites over reference tokens, all families pooled."""

    values: dict[Site, Tensor]  # (2, ...): at position 0, and over all other positions
    n_tokens: int  # after position 0


def sources(
    model: HookedModel, prompts: Sequence[TokenPrompt], conditions: Sequence[Condition], inputs: Inputs
) -> tuple[dict[str, Run], dict[Site, Tensor]]:
    """Return the donors' runs and the reference means that conditions look at."""
    needed = means_needed(conditions)
    named = any(part.change.runs() for condition in conditions for part in condition)
    if not needed and not named:
        return {}, {}
    if inputs.reference is None:
        raise XatlasError("mean and resample ablation need a reference suite: pass --reference FILE.")
    reference = model.read(inputs.reference)
    means = reference_means(model, reference, needed).values if needed else {}
    donors = choose_donors(prompts, reference, inputs.seed, inputs.draws) if named else []
    return {f"donor {draw}": donor for draw, donor in enumerate(donors)}, means


@torch.inference_mode()
def reference_means(model: HookedModel, reference: TokenSuite, sites: Iterable[Site]) -> Means:
    """Average sites over the reference prompts' texts, position 0 apart: in float64, stored in float32."""
    batches = mean_batches(reference)
    n_prompts, n_tokens = sum(map(len, batches)), sum(len(prompt.ids) - 1 for batch in batches for prompt in batch)
    sums: dict[Site, Tensor] = {}
    for batch in batches:
        values = model.capture(model.tokens(batch), sorted(set(sites)))
        for site, value in values.items():
            value = value.double() if value.device.type != "mps" else value.float()
            pair = torch.stack([value[:, 0].sum(0), value[:, 1:].sum((0, 1))])
            sums[site] = sums[site] + pair if site in sums else pair
    means = {site: torch.stack([first / n_prompts, rest / n_tokens]).float() for site, (first, rest) in sums.items()}
    return Means(means, n_tokens)


def mean_batches(reference: TokenSuite) -> list[list[TokenPrompt]]:
    """Return the reference prompts that means are taken over, in batches of equal length.

    Prompts are taken family by family in turn until there are enough tokens.
    """
    families: dict[str, list[TokenPrompt]] = {}
    for prompt in reference.prompts:
        families.setdefault(prompt.prompt.family, []).append(prompt)
    chosen: list[TokenPrompt] = []
    n_tokens = 0
    for turn in range(max(map(len, families.values()), default=0)):
        if n_tokens >= ENOUGH_TOKENS:
            break
        chosen += [members[turn] for members in families.values() if turn < len(members)]
        n_tokens = sum(len(prompt.ids) - 1 for prompt in chosen)
    if n_tokens < LEAST_TOKENS:
        what = f"the reference has {n_tokens} tokens after position 0; a mean needs at least {LEAST_TOKENS}"
        raise XatlasError(f"{what}: give a longer --reference.")
    lengths = [len(prompt.ids) for prompt in chosen]
    groups = buckets(lengths, {length: max(1, 512 // length) for length in set(lengths)})
    return [[chosen[i] for i in group] for group in groups]


def choose_donors(prompts: Sequence[TokenPrompt], reference: TokenSuite, seed: int, draws: int) -> list[Run]:
    """Choose donors for resample ablation ``[draw][prompt]``: equal token length, other family, other target.

    A prompt's choice depends on the seed and its id alone; where fewer than ``draws`` fit, the rest are None.
    """
    by_length: dict[int, list[TokenPrompt]] = {}
    for donor in reference.prompts:
        by_length.setdefault(len(donor.ids), []).append(donor)
    chosen: list[Run] = [[] for _ in range(draws)]
    for prompt in prompts:
        fitting = [
            donor.ids
            for donor in by_length.get(len(prompt.ids), [])
            if donor.prompt.family != prompt.prompt.family
            and (prompt.prompt.target is None or donor.prompt.target != prompt.prompt.target)
        ]
        picked = random.Random(f"{seed}|{prompt.prompt.id}").sample(fitting, min(draws, len(fitting)))
        for draw, run in enumerate(chosen):
            run.append(picked[draw] if draw < len(picked) else None)
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
