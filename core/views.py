"""What a model makes of one text, as datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.drawing import VIEW
from xatlas.errors import XatlasError
from xatlas.model.hooks import exclusive
from xatlas.probing.lens import lens as read_lens
from xatlas.probing.reading import SCORES, head_scores
from xatlas.schema import CONVENTIONS
from xatlas.suites import Prompt
from xatlas.text import printable

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel
    from xatlas.prompts.reader import Reader, TokenPrompt

#: Most tokens of a text whose attention is shown.
LONGEST = 200


def _read(model: HookedModel, text: str) -> tuple[Reader, TokenPrompt]:
    if model.reader is None:
        raise XatlasError("this model was made without a tokenizer: it can't read text.")
    prompt = model.reader.prompt(Prompt("text", "text", text))
    if isinstance(prompt, str):
        raise XatlasError(f"the text can't be read: {prompt}.")
    return model.reader, prompt


@exclusive
@torch.inference_mode()
def lens(model: HookedModel, text: str, target: str | None = None) -> xr.Dataset:
    """Return what the logit lens says at every position of a text, of the embedding and after every layer.

    ``top_token``, ``top_probability``, ``entropy``, ``kl_to_final (site, position)``; with a target, one token that
    may follow the text, ``target_probability`` and ``target_rank``, too. The last site is the model's own output.
    """
    import xarray as xr

    reader, prompt = _read(model, text)
    asked = -1 if target is None else _one_token(model, text, target)
    layers = range(model.n_layers)
    sites = [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in layers)]
    values = model.capture(model.tokens([prompt]), sites)
    streams = [values[site][0] for site in sites]
    found = read_lens(model, streams, streams[-1], torch.full((len(prompt.ids),), asked, device=model.device))
    texts = {token: reader.text_of(token) for token in {*prompt.ids, *found.top.flatten().tolist()}}
    at = ("site", "position")
    top = [[texts[token] for token in row] for row in found.top.tolist()]
    data: dict[str, Any] = {"top_token": (at, np.array(top), {"units": "1", "long_name": "likeliest token"})}
    given = {
        "top_probability": (found.top_logprob.exp(), "1", "probability of the likeliest token"),
        "entropy": (found.entropy, "nats", "entropy of the lens"),
        "kl_to_final": (found.kl, "nats", "KL(output || lens)"),
    }
    if target is not None:
        given["target_probability"] = found.logprob.exp(), "1", f"probability of {target!r}"
        given["target_rank"] = found.rank, "1", f"rank of {target!r}, from 1"
    for name, (values_of, units, long_name) in given.items():
        array = values_of.double().cpu().numpy()
        data[name] = (at, array, {"units": units, "long_name": printable(long_name)})
    coords = {
        "site": list(map(str, sites)),
        "operator_type": ("site", ["embedding", *model.operator_types]),
        "position": np.arange(len(prompt.ids)),
        "token": ("position", [texts[token] for token in prompt.ids]),
    }
    about = {VIEW: "lens", "model": model.slug, "text": printable(text), "target": printable(target or "")}
    settings = ", ".join(f"{name} {value}" for name, value in model.settings.items())
    return xr.Dataset(data, coords, {**about, "settings": settings, "Conventions": CONVENTIONS})


def _one_token(model: HookedModel, text: str, target: str) -> int:
    assert model.reader is not None
    read = model.reader.prompt(Prompt("text", "text", text, target=target)) if target else "it is empty"
    if isinstance(read, str):
        raise XatlasError(f"the target {target!r} does not fit: {read}.")
    if len(read.target_ids) > 1:
        parts = ", ".join(repr(model.reader.text_of(token)) for token in read.target_ids)
        raise XatlasError(f"the target {target!r} is {len(read.target_ids)} tokens ({parts}): name one of them.")
    return read.target_ids[0]


@exclusive
@torch.inference_mode()
def attention(model: HookedModel, text: str, layer: int) -> xr.Dataset:
    """Return where each head of a layer looks, token by token of a text.

    ``pattern (head, query, key)``, and ``entropy``, ``distance``, ``first_weight``, ``previous_score (head)``: means
    over queries from the third token on, NaN where there is none, or a window hides the key.
    """
    import xarray as xr

    _check_layer(model, layer)
    reader, prompt = _read(model, text)
    n = len(prompt.ids)
    if n > LONGEST:
        raise XatlasError(f"the text has {n} tokens: a pattern is shown of {LONGEST} at most.")
    site = Site(layer, "attention_pattern")
    pattern = model.capture(model.tokens([prompt]), [site])[site][0].float()
    found = head_scores(pattern, model.adapter.window(layer))
    data: dict[str, Any] = {
        "pattern": (("head", "query", "key"), pattern.cpu().numpy(), {"units": "1", "long_name": "weight"})
    }
    for name, (units, long_name) in SCORES.items():
        data[name] = ("head",), found[name].cpu().numpy(), {"units": units, "long_name": long_name}
    texts, layout = [reader.text_of(token) for token in prompt.ids], model.head_layouts[layer]
    heads = range(len(pattern))
    coords = {
        "head": list(heads),
        "kv_group": ("head", [layout.kv_group(head) if layout is not None else head for head in heads]),
        "query": np.arange(n),
        "key": np.arange(n),
        "query_token": ("query", texts),
        "key_token": ("key", texts),
    }
    about = {VIEW: "attention", "model": model.slug, "text": printable(text), "layer": layer}
    settings = ", ".join(f"{name} {value}" for name, value in model.settings.items() if name != "attention")
    return xr.Dataset(data, coords, {**about, "settings": settings, "Conventions": CONVENTIONS})


def _check_layer(model: HookedModel, layer: int) -> None:
    reads = [site.layer for site in model.sites("attention_pattern")]
    if not reads:
        kinds = ", ".join(sorted(set(model.operator_types)))
        raise XatlasError(f"{model.slug} has no attention: its layers are {kinds}.")
    model.point(Site(layer, "resid_post"))  # raises where the layer is out of range
    if layer not in reads:
        kind, others = model.operator_types[layer], ", ".join(map(str, reads))
        raise XatlasError(f"layer {layer} of {model.slug} is a {kind} layer, without attention: choose from {others}.")
