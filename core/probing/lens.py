"""The model's own end, put to the stream before its end: the logit lens, and logits as sums of what layers write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.engine.schedule import Budget
from xatlas.errors import XatlasError
from xatlas.metrics import kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import exclusive

#: Bytes of logits that stay in a processor's cache while they are read: several times as fast as all at once.
_CACHED = 1 << 20
#: Share of a normed stream that a linear map need not explain.
_ODD = 1e-4


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


def stream_sites(model: HookedModel) -> list[Site]:
    """Return where the stream can be read, in its order: entering layer 0, after each operator and after each layer."""
    kinds = ("resid_mid", "resid_post")
    later = [Site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    return [Site(0, "resid_pre"), *filter(model.has, later)]


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


@exclusive
def frozen_direction(model: HookedModel, final: Tensor, token: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return what turns parts of the stream into parts of a difference of two tokens' logits.

    With the scale of the final norm as it is at ``final (row, d_model)``, the logit of ``token (row)`` minus that of
    ``other (row)`` is ``(direction * final).sum(-1) + constant``: ``direction (row, d_model)`` reads off what each
    part of the stream adds to it, and ``constant (row)`` are biases of norm and unembedding. Of logits with a soft
    cap it is the difference before the cap.

    A norm is a linear map over a scale. At zero the scale is constant, so the slope there is the linear map, whatever
    the norm's formula; a cap's slope there is 1. The scale at ``final`` follows from what the norm makes of it.

    Raises
    ------
    XatlasError
        The final norm is no linear map over a scale: nothing can be frozen.
    """
    path = model.adapter.final_norm_path
    norm = model.adapter.module(path)
    with torch.inference_mode(False), torch.enable_grad():
        final = final.detach().clone()
        zero = torch.zeros_like(final, requires_grad=True)
        logits = model.adapter.logits(zero).float()
        pair = [logits.gather(-1, chosen[:, None])[:, 0] for chosen in (token, other)]
        constant = pair[0] - pair[1]
        (slope,) = torch.autograd.grad(constant.sum(), zero)
        at_zero = norm(zero)
        cotangent = torch.zeros_like(at_zero, requires_grad=True)
        (pulled,) = torch.autograd.grad(at_zero, zero, cotangent, create_graph=True)
        (linear,) = torch.autograd.grad(pulled, cotangent, final)  # the norm's linear map of the stream
        normed = (norm(final) - at_zero).detach().double()
    linear = linear.double()
    scale = (normed * linear).sum(-1, keepdim=True) / linear.square().sum(-1, keepdim=True)
    odd = (normed - scale * linear).norm(dim=-1) / normed.norm(dim=-1)
    if bool((odd > max(_ODD, 16 * torch.finfo(final.dtype).eps)).any()):
        raise XatlasError(f"{path} is no linear map over a scale, so that logits are no sum of what layers write.")
    return (slope.double() * scale).float(), constant.detach()


def adds_heads(model: HookedModel, layer: int) -> bool:
    """Whether what a layer adds to the stream is a sum over its heads: no norm stands behind their projection."""
    path, layout = model.adapter.output_projection(layer), model.head_layouts[layer]
    if path is None or layout is None:
        return False
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 1, model.d_model, generator=generator).to(model.device, model.dtype)
    with torch.inference_mode():
        one, other, both = (model.adapter.written(layer, each) for each in (*pair, pair.sum(0)))
    return bool((one + other - both).norm() <= 0.05 * both.norm())


def through_projection(model: HookedModel, layer: int, direction: Tensor) -> Tensor | None:
    """Return what reads a layer's heads as ``direction (row, d_model)`` reads its output: ``(row, n_heads, d_head)``.

    None where the layer has no heads, or its output is no sum over them.
    """
    path, layout = model.adapter.output_projection(layer), model.head_layouts[layer]
    if path is None or layout is None or not adds_heads(model, layer):
        return None
    projection = model.adapter.module(path)
    with torch.inference_mode(False), torch.enable_grad():
        width = layout.n_heads * layout.d_head
        zero = torch.zeros(len(direction), width, device=direction.device, dtype=model.dtype, requires_grad=True)
        output = model.adapter.written(layer, projection(zero))
        (found,) = torch.autograd.grad(output, zero, direction.to(model.dtype))
    slices: Tensor = found.float().reshape(-1, layout.n_heads, layout.d_head)
    return slices
