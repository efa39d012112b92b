"""What a model goes on to say, with and without a direction added to its stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from xatlas.errors import XatlasError
from xatlas.interventions import Add, Intervention
from xatlas.measures.directions import median_norms, readout_values
from xatlas.model.hooks import exclusive
from xatlas.sites import Site
from xatlas.suites import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.suites import Suite


def check_strength(strength: float) -> None:
    """Refuse a strength that changes nothing, or everything.

    Raises
    ------
    XatlasError
        It is 0, NaN or infinite.
    """
    if strength == 0:
        raise XatlasError("strength 0 changes nothing: give a number above or below 0.")
    if not math.isfinite(strength):
        raise XatlasError(f"strength {strength} is no number: give one above or below 0.")


@dataclass(frozen=True)
class Steered:
    """What a model says with and without a direction.

    Parameters
    ----------
    clean, steered : str
        Greedy continuations.
    kl : float
        KL(clean ‖ steered) of the first next token, in nats.
    length : float
        Length of what was added, with the strength's sign.
    """

    clean: str
    steered: str
    kl: float
    length: float


@exclusive
def steer(
    model: HookedModel,
    text: str,
    vector: Tensor,
    layer: int,
    strength: float,
    *,
    relative_to: Suite | None = None,
    tokens: int = 30,
) -> Steered:
    """Continue a text greedily, clean and with a direction added to ``resid_post`` at every newest token.

    Parameters
    ----------
    model : HookedModel
        With a tokenizer.
    text : str
        What is continued.
    vector : Tensor
        Unit direction ``(d_model,)``.
    layer : int
        Where it is added.
    strength : float
        Length of what is added; with ``relative_to``, in multiples of the layer's median norm.
    relative_to : Suite, optional
        Prompts whose readout positions give that norm.
    tokens : int
        Most tokens that are generated.

    Returns
    -------
    Steered
        Both continuations, and how far apart their first next tokens are, in nats.

    Raises
    ------
    XatlasError
        The layer is out of range, the strength is 0, or the text has no token or too many.
    """
    check_strength(strength)
    site = Site(layer, "resid_post")
    model.point(site)
    read = model.read([Prompt(id="text", family="text", text=text)]).prompts[0]
    length = strength
    if relative_to is not None:
        norms = median_norms(readout_values(model, model.read(relative_to).prompts))
        length = strength * float(norms[layer])
    added = [Intervention(site, Add(vector.to(model.device) * length), positions="last")]
    ids = model.tokens([read])
    clean, first = _continue(model, ids, tokens)
    with model.intervene(added):
        steered, other = _continue(model, ids, tokens)
    p, q = first.log_softmax(-1), other.log_softmax(-1)
    return Steered(clean, steered, max(0.0, float((p.exp() * (p - q)).sum())), length)


@torch.inference_mode()
def _continue(model: HookedModel, ids: Tensor, tokens: int) -> tuple[str, Tensor]:
    """Return the greedy continuation, and the first next token's logits in float64."""
    from transformers import GenerationConfig

    own: Any = model.model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else model.tokenizer.eos_token_id
    pad = ends[0] if isinstance(ends, list) else ends
    # A config of our own: the model's may sample, or punish repetition.
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else pad,
        use_cache="attention" in model.operator_types,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = model.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    text: str = model.tokenizer.decode(made.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    return text, made.logits[0][0].double()
