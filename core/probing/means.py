"""How much of a KL is mere rounding."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.metrics import kl_divergence
from xatlas.model.hooks import exclusive
from xatlas.prompts.reader import TokenPrompt, TokenSuite, buckets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt


#: Fewest tokens after position 0 that a mean may rest on.
LEAST_TOKENS = 500
#: Enough tokens: prompts are taken family by family in turn until there are so many.
ENOUGH_TOKENS = 1500


@dataclass(frozen=True)
class Means:
    """Mean values of sites over reference tokens.

    Parameters
    ----------
    values : dict of Site to Tensor
        ``(2, ...)``: at position 0, and over all other positions, all families pooled.
    n_tokens : int
        Tokens after position 0 that entered.
    """

    values: dict[Site, Tensor]
    n_tokens: int


@torch.inference_mode()
def reference_means(model: HookedModel, reference: TokenSuite, sites: Iterable[Site]) -> Means:
    """Average sites over the reference prompts' texts, position 0 apart.

    Parameters
    ----------
    model : HookedModel
        The model.
    reference : TokenSuite
        Prompts of the train split; they are taken family by family in turn until there are enough tokens.
    sites : iterable of Site
        What to average.

    Returns
    -------
    Means
        Computed in float64, stored in float32.

    Raises
    ------
    XatlasError
        The reference has fewer than 500 tokens after position 0.
    """
    wanted = sorted(set(sites))
    chosen = _take_in_turn(reference.prompts, ENOUGH_TOKENS)
    n_tokens = sum(len(prompt.ids) - 1 for prompt in chosen)
    if n_tokens < LEAST_TOKENS:
        raise XatlasError(
            f"the reference has {n_tokens} tokens after position 0; a mean needs at least {LEAST_TOKENS}: "
            f"give a longer --reference."
        )
    sums: dict[Site, Tensor] = {}
    lengths = [len(prompt.ids) for prompt in chosen]
    for group in buckets(lengths, {length: max(1, 512 // length) for length in set(lengths)}):
        values = model.capture(model.tokens([chosen[i] for i in group]), wanted)
        for site, value in values.items():
            value = value.double() if value.device.type != "mps" else value.float()
            pair = torch.stack([value[:, 0].sum(0), value[:, 1:].sum((0, 1))])
            sums[site] = sums[site] + pair if site in sums else pair
    counts = (len(chosen), n_tokens)
    means = {site: torch.stack([total[0] / counts[0], total[1] / counts[1]]).float() for site, total in sums.items()}
    return Means(means, n_tokens)


def _take_in_turn(prompts: Sequence[TokenPrompt], enough: int) -> list[TokenPrompt]:
    """Take one prompt of each family in turn until ``enough`` tokens are there."""
    families: dict[str, list[TokenPrompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.prompt.family, []).append(prompt)
    chosen: list[TokenPrompt] = []
    tokens = 0
    for turn in range(max((len(members) for members in families.values()), default=0)):
        for members in families.values():
            if turn < len(members):
                chosen.append(members[turn])
                tokens += len(members[turn].ids) - 1
        if tokens >= enough:
            break
    return chosen


def choose_donors(
    prompts: Sequence[TokenPrompt], reference: TokenSuite, seed: int, draws: int
) -> list[list[tuple[int, ...] | None]]:
    """Choose donors for resample ablation: equal token length, other family, other target.

    Parameters
    ----------
    prompts : sequence of TokenPrompt
        The prompts that are ablated.
    reference : TokenSuite
        Where donors come from.
    seed : int
        Each prompt's choice depends on it and the prompt's id alone.
    draws : int
        Donors per prompt; fewer where fewer fit.

    Returns
    -------
    list of list of (tuple of int or None)
        ``[draw][prompt]``: the donor's tokens, None where there is none.
    """
    by_length: dict[int, list[TokenPrompt]] = {}
    for donor in reference.prompts:
        by_length.setdefault(len(donor.ids), []).append(donor)
    chosen: list[list[tuple[int, ...] | None]] = [[] for _ in range(draws)]
    for prompt in prompts:
        fitting = [
            donor.ids
            for donor in by_length.get(len(prompt.ids), [])
            if donor.prompt.family != prompt.prompt.family
            and (prompt.prompt.target is None or donor.prompt.target != prompt.prompt.target)
        ]
        picked = random.Random(f"{seed}|{prompt.prompt.id}").sample(fitting, min(draws, len(fitting)))
        for draw in range(draws):
            chosen[draw].append(picked[draw] if draw < len(picked) else None)
    return chosen


#: Prompts that the noise floor is measured on.
SAMPLE = 8


@exclusive
@torch.inference_mode()
def noise_floor(model: HookedModel, prompts: Sequence[TokenPrompt]) -> dict[str, float]:
    """Return how far two clean runs lie apart at the readout position that differ in rounding alone.

    Parameters
    ----------
    model : HookedModel
        In float32, a prompt run alone is held against the same prompt run twice in a batch; in lower
        precision, a float32 copy of the model against the model itself.
    prompts : sequence of TokenPrompt
        The first few are used.

    Returns
    -------
    dict
        The largest ``kl`` in nats, and ``logit_diff``, the largest change of target minus foil in logits, where
        any of the prompts has a foil.
    """
    exact = None if model.dtype == torch.float32 else copy.deepcopy(model.model).float()
    found = {"kl": 0.0}
    for prompt in prompts[:SAMPLE]:
        ids = model.tokens([prompt])
        ours = _readout(model.model, ids.expand(3, -1), prompt)
        other = _readout(exact or model.model, ids, prompt)
        found["kl"] = max(found["kl"], float(kl_divergence(other, ours)))
        if prompt.answer is not None and prompt.foil_answer is not None:
            apart = (ours - other)[[prompt.answer, prompt.foil_answer]]
            found["logit_diff"] = max(found.get("logit_diff", 0.0), float((apart[0] - apart[1]).abs()))
    return found


def _readout(model: object, ids: Tensor, prompt: TokenPrompt) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits  # type: ignore[operator]
    return logits[0, prompt.readout].double()  # type: ignore[no-any-return]
