"""A model whose first convolution copies the previous token, by one tap, and which does nothing else."""

from __future__ import annotations

import torch
from models import build


def copier():
    """Return LFM2 of two conv layers: gate and carrier of the first are 1, its signal is the normed stream."""
    hf = build(
        "lfm2",
        vocab_size=260,
        hidden_size=64,
        num_hidden_layers=2,
        layer_types=["conv", "conv"],
        conv_bias=True,
    )
    width = 64
    with torch.no_grad():
        for number, layer in enumerate(hf.model.layers):
            layer.feed_forward.w2.weight.zero_()
            conv = layer.conv
            conv.in_proj.weight.zero_()
            conv.in_proj.bias.zero_()
            conv.in_proj.bias[: 2 * width] = 1
            conv.in_proj.weight[2 * width :] = torch.eye(width)
            conv.conv.weight.zero_()
            conv.conv.weight[:, 0, 1] = 1  # of three taps, the one before the current
            conv.conv.bias.zero_()
            conv.out_proj.weight.copy_(10 * torch.eye(width) * (number == 0))
            conv.out_proj.bias.zero_()
    return hf


def predicts_previous(hf):
    """Whether the model names the token before the current one, everywhere."""
    ids = torch.randint(0, 250, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        named = hf(input_ids=ids, use_cache=False).logits.argmax(-1)
    return bool((named[0, 1:] == ids[0, :-1]).all())
