"""How much of a KL is mere rounding."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from xatlas.model.hooks import exclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.prompts import TokenPrompt

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
        p, q = other.log_softmax(-1), ours.log_softmax(-1)
        found["kl"] = max(found["kl"], float((p.exp() * (p - q)).sum().clamp(min=0)))
        if prompt.answer is not None and prompt.foil_answer is not None:
            apart = (ours - other)[[prompt.answer, prompt.foil_answer]]
            found["logit_diff"] = max(found.get("logit_diff", 0.0), float((apart[0] - apart[1]).abs()))
    return found


def _readout(model: object, ids: Tensor, prompt: TokenPrompt) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits  # type: ignore[operator]
    return logits[0, prompt.readout].double()  # type: ignore[no-any-return]
