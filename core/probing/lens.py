"""The model's own end, put to the stream before its end: the logit lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xatlas.engine.schedule import Budget
from xatlas.metrics import kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import exclusive

#: Bytes of logits that stay in a processor's cache while they are read: several times as fast as all at once.
_CACHED = 1 << 20


@dataclass(frozen=True)
class Lens:
    """What streams give through the model's own final norm and unembedding ``(site, row)``, in nats."""

    logprob: Tensor  # of the token asked for; NaN where none is
    rank: Tensor  # of it, from 1: how many are likelier, and half of those that are as likely
    kl: Tensor  # KL(output || lens)
    entropy: Tensor
    top: Tensor  # id of the likeliest token
    top_logprob: Tensor
    top_is_final: Tensor  # whether that is the output's likeliest token, too


@exclusive
@torch.inference_mode()
def lens(model: HookedModel, streams: Sequence[Tensor], final: Tensor, tokens: Tensor) -> Lens:
    """Return what ``streams`` ``(row, d_model)``, one a site, say of ``tokens (row)``; -1 where none is asked for.

    ``final (row, d_model)`` is the stream after the last layer, which gives the output. A few sites of a few rows are
    unembedded at a time.
    """
    most = max(2, Budget.for_device(final.device).logit_bytes // (4 * model.adapter.vocabulary))  # rows at a time
    rows = max(1, min(len(final), most // 2))
    sites = most // rows
    columns = []
    for row in range(0, len(final), rows):
        part = slice(row, row + rows)
        output = model.logits(final[part]).log_softmax(-1)
        some = (torch.stack([s[part] for s in streams[at : at + sites]]) for at in range(0, len(streams), sites))
        read = [_read(model, stacked, output, tokens[part]) for stacked in some]
        columns.append([torch.cat(values) for values in zip(*read, strict=True)])
    return Lens(*(torch.cat(values, dim=1) for values in zip(*columns, strict=True)))


def _read(model: HookedModel, streams: Tensor, output: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of a :class:`Lens` for streams ``(site, row, d_model)`` beside the output's (logarithms)."""
    logits = model.logits(streams)  # (site, row, vocabulary)
    asked, pieces = tokens.repeat(len(logits)), max(1, _CACHED // (4 * logits.shape[-1]))
    read = map(_rows, torch.split(logits.flatten(0, 1), pieces), torch.split(asked, pieces))
    flat = (torch.cat(values) for values in zip(*read, strict=True))
    logprob, rank, lse, entropy, top = (values.reshape(logits.shape[:2]) for values in flat)
    kl = kl_divergence(output, logits, torch.zeros_like(lse[0]), lse)
    return logprob, rank, kl, entropy, top, -lse, top == output.argmax(-1)


def _rows(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Take from logits ``(row, vocabulary)``, in place, the largest: an entropy near zero is then no difference."""
    index = tokens.clamp(min=0)[:, None]
    above = (logits - logits.gather(-1, index)).sign_().sum(-1)  # how many are likelier, less those that are not
    highest, top = logits.max(-1, keepdim=True)
    logits -= highest
    share = logits.exp()
    total = share.sum(-1)
    lse = total.log()
    entropy = lse - torch.linalg.vecdot(share, logits) / total
    logprob, rank = logits.gather(-1, index)[:, 0] - lse, (logits.shape[-1] + 1 + above) / 2
    logprob, rank = (torch.where(tokens >= 0, value, torch.nan) for value in (logprob, rank))
    return logprob, rank, lse, entropy, top[:, 0]
