"""LoRA weights are merged into the model they were trained for, or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.model_files import LORA_CONFIG, LORA_WEIGHTS, read_json, tensor_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Fields of an adapter_config.json that peft uses as regular expressions, some of them only in some versions.
_PATTERNS = (
    *("target_modules", "exclude_modules", "target_parameters", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "layers_pattern"),
)
_PATTERN_SECONDS = 5.0
_MOST_PATTERNS, _LONGEST_PATTERN = 5000, 10_000
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, pattern in enumerate(patterns):
    print(number, flush=True)
    for form in ("{}", r"(.*\\.)?({})$", r"(^|.*\\.){}($|\\..*)", r"(?:^|.*?\\.){}\\.(?P<idx>\\d+)\\."):
        try:
            compiled = re.compile(form.replace("{}", pattern))
        except re.error:
            continue
        for name in names:
            compiled.match(name)
            compiled.fullmatch(name)
"""
#: A whole embedding or unembedding beside the LoRA weights.
_EMBEDDING = re.compile(r"\.(lm_head|embed_tokens|wte|embed_in|embed_out)(\.(modules_to_save|base_layer))?\.weight$")
#: Tokens that the merged model and peft's are compared on.
_COMPARED_TOKENS = 12
#: Share of the largest logit by which rounding may move one when weights are merged.
_ROUNDING = 1e-3


def merge(model: PreTrainedModel, folder: Path, place: Path) -> PreTrainedModel:
    """Merge the LoRA weights in ``folder``, called ``place``, into a float32 model, or refuse them."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    misfit = f"the LoRA weights in {place} do not fit the model:"
    settings = read_json(folder / LORA_CONFIG)
    _refuse_endless(settings, [*dict(model.named_modules()), *dict(model.named_parameters())], place)
    stored = tensor_shapes(folder / LORA_WEIGHTS)
    # Asked of the modules: transformers unties what a config calls tied when the file holds both.
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    rows = {len(embedding), len(unembedding)}
    for name, shape in stored.items():
        if _EMBEDDING.search(name) and shape[0] not in rows:  # only the user knows how to fit another vocabulary in
            advice = "resize the embeddings, merge with peft's merge_and_unload and give the saved folder."
            raise XatlasError(f"{misfit} {name} has {shape[0]} rows, the model {min(rows)}; {advice}")
    ids = torch.tensor([_tokens_to_compare(settings, min(rows))])
    for name, value in load_file(folder / LORA_WEIGHTS).items():
        if not bool(value.isfinite().all()):
            raise XatlasError(f"{name} in {place} is not finite: it holds NaN or infinity, the weights are damaged.")
    tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=False, torch_device="cpu")
    # Once more, for the report that from_pretrained keeps to itself.
    report = tuned.load_adapter(str(folder), "default", torch_device="cpu")
    biases = {name for name in get_peft_model_state_dict(tuned, save_embedding_layers=False) if "bias" in name}
    stray, gaps = sorted(report.unexpected_keys), sorted({*report.missing_keys, *(biases - stored.keys())})
    with torch.no_grad():
        expected = tuned.eval()(ids).logits
        merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
        found = merged.eval()(ids).logits
    if stray or gaps:
        raise XatlasError(f"{misfit} it has no module for {stray[0]}." if stray else f"{misfit} they lack {gaps[0]}.")
    if not float((found - expected).abs().max()) <= _ROUNDING * max(1.0, float(expected.abs().max())):
        tied = any(part in name for name in stored for part in ("lm_head", "embed_tokens", "wte"))
        what = "the merged model computes something else."
        if embedding is unembedding and tied:
            what = "they change an embedding that is tied to the unembedding. Merge them yourself and give the folder."
        raise XatlasError(f"the LoRA weights in {place} cannot be merged: {what}")
    return merged


def _tokens_to_compare(settings: Mapping[str, Any], n_tokens: int) -> list[int]:
    """Return the first tokens, and those whose embeddings were trained one by one."""
    trained = settings.get("trainable_token_indices")
    lists = trained.values() if isinstance(trained, dict) else [trained]
    own = [token for entry in lists if isinstance(entry, list) for token in entry if isinstance(token, int)]
    return [token for token in (*range(_COMPARED_TOKENS), *own) if 0 <= token < n_tokens]


def _refuse_endless(settings: Mapping[str, Any], names: list[str], place: Path) -> None:
    """Match the patterns in another process: Python can't break off a match, and threads wait for it."""
    fields = [settings.get(field) for field in _PATTERNS]
    entries = [entry for value in fields for entry in (value if isinstance(value, list | dict) else [value])]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) > _MOST_PATTERNS or any(len(text) > _LONGEST_PATTERN for text in texts):
        raise XatlasError(f"{place / LORA_CONFIG} holds too many or too long patterns; name the modules instead.")
    patterns = [text for text in texts if re.search(r"[*+?{(|\[\\]", text)]
    if not patterns:
        return
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    asked = json.dumps([patterns, names]).encode()
    try:
        subprocess.run(command, input=asked, capture_output=True, timeout=_PATTERN_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:  # too slow, or out of memory
        pattern = patterns[int(((error.stdout or b"").split() or [b"0"])[-1])][:80]
        what = f"the pattern {pattern!r} in {place / LORA_CONFIG} takes too long to match"
        raise XatlasError(f"{what}; name the modules instead.") from error
