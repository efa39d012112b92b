"""LoRA weights: merged so that the model computes what peft computes with them, or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.pretrained import first_line, refuse_not_finite
from xatlas.loading.weights import LORA_CONFIG, LORA_WEIGHTS, read_json, tensor_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Fields of an adapter_config.json that peft uses as regular expressions, some of them only in some versions.
_PATTERNS = (
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_pattern",
    "modules_to_save",
    "target_parameters",
)
_PATTERN_SECONDS = 5.0
_MOST_PATTERNS, _LONGEST_PATTERN = 5000, 10_000
#: A whole embedding or unembedding beside the LoRA weights.
_EMBEDDING = re.compile(r"\.(lm_head|embed_tokens|wte|embed_in|embed_out)(\.(modules_to_save|base_layer))?\.weight$")
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
#: Tokens that the merged model and peft's are compared on.
_COMPARED_TOKENS = 12
#: Share of the largest logit by which rounding may move one when weights are merged.
_ROUNDING = 1e-3


def check_lora_folder(folder: Path) -> None:
    """Make sure that a folder holds LoRA weights that can be merged.

    Raises
    ------
    XatlasError
        It holds none, or pickles, or another kind of peft weights.
    """
    if not (folder / LORA_CONFIG).is_file():
        raise XatlasError(f"{folder} holds no LoRA weights: it has no {LORA_CONFIG}.")
    settings = read_json(folder / LORA_CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise XatlasError(f"{folder} holds {kind} weights; only LoRA weights can be added to a model.")
    if not (folder / LORA_WEIGHTS).is_file():
        pickled = ", only pickles, which are never loaded" if any(folder.glob("*.bin")) else ""
        raise XatlasError(f"{folder} has no {LORA_WEIGHTS}{pickled}; save it anew with peft's save_pretrained.")
    if settings.get("alora_invocation_tokens"):
        raise XatlasError(f"the LoRA weights in {folder} act only after certain tokens, so they cannot be merged.")


def other_base(lora: Path, names: Iterable[str]) -> str | None:
    """Return the base that LoRA weights were trained on when it is none of these names, or None.

    Only the last part of a path or hub id counts: the same model lies elsewhere on another machine.
    """
    base = read_json(lora / LORA_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return None
    asked, *known = [re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in (base, *names)]
    return None if asked in known else base


def merge(model: PreTrainedModel, folder: Path, place: Path) -> PreTrainedModel:
    """Merge LoRA weights into a float32 model; peft only warns about most of what we refuse.

    Parameters
    ----------
    model : PreTrainedModel
        The base.
    folder : Path
        Holds the LoRA weights and what peft may read beside them.
    place : Path
        The user's folder, for messages.

    Raises
    ------
    XatlasError
        Weights are left over, missing, damaged or of another shape, a pattern never ends, or merging
        would compute something else than peft does.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    wrong = f"the LoRA weights in {place} do not fit the model:"
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    settings = read_json(folder / LORA_CONFIG)
    _refuse_endless(settings, names, place)
    stored = tensor_shapes(folder / LORA_WEIGHTS)
    # Asked of the modules: transformers unties what a config calls tied when the file holds both.
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    rows = {len(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    _refuse_resized(stored, rows, wrong)
    ids = torch.tensor([_tokens_to_compare(settings, min(rows))])
    try:
        refuse_not_finite(load_file(folder / LORA_WEIGHTS), place)
        tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=False, torch_device="cpu")
        # Once more, for the report that from_pretrained keeps to itself.
        report = tuned.load_adapter(str(folder), "default", torch_device="cpu")
        biases = {name for name in get_peft_model_state_dict(tuned, save_embedding_layers=False) if "bias" in name}
        stray, gaps = sorted(report.unexpected_keys), sorted({*report.missing_keys, *(biases - stored.keys())})
        with torch.no_grad():
            expected = tuned.eval()(ids).logits
        merged: Any = tuned.merge_and_unload(safe_merge=True)
        with torch.no_grad():
            found = merged.eval()(ids).logits
    except XatlasError:
        raise
    except Exception as error:  # wrong shapes, no such modules, damaged files: peft raises many kinds
        raise XatlasError(f"{wrong} {first_line(error)}") from error
    if stray or gaps:
        what = f"it has no module for {stray[0]}" if stray else f"they lack {gaps[0]}"
        raise XatlasError(f"{wrong} {what}.")
    if not float((found - expected).abs().max()) <= _ROUNDING * max(1.0, float(expected.abs().max())):
        if tied and any(end in name for name in stored for end in ("lm_head", "embed_tokens", "wte")):
            raise XatlasError(
                f"the LoRA weights in {place} change an embedding that is tied to the unembedding; "
                f"merging them would change both. Merge them yourself and give the folder."
            )
        raise XatlasError(f"the LoRA weights in {place} cannot be merged: the merged model computes something else.")
    result: PreTrainedModel = merged
    return result


def _refuse_resized(stored: Mapping[str, tuple[int, ...]], rows: set[int], wrong: str) -> None:
    """Refuse a whole embedding of another vocabulary, which only the user can know how to fit in."""
    for name, shape in stored.items():
        if _EMBEDDING.search(name) and shape[0] not in rows:
            raise XatlasError(
                f"{wrong} {name} has {shape[0]} rows, the model {min(rows)}; "
                f"resize the embeddings, merge with peft's merge_and_unload and give the saved folder."
            )


def _tokens_to_compare(settings: Mapping[str, Any], n_tokens: int) -> list[int]:
    """Return the first tokens, and those whose embeddings were trained one by one."""
    trained = settings.get("trainable_token_indices")
    lists = trained.values() if isinstance(trained, dict) else [trained]
    own = [token for entry in lists if isinstance(entry, list) for token in entry if isinstance(token, int)]
    return [token for token in (*range(_COMPARED_TOKENS), *own) if 0 <= token < n_tokens]


def _refuse_endless(settings: Mapping[str, Any], names: list[str], place: Path) -> None:
    """Match the patterns in another process: Python can't break off a match, and threads wait for it."""
    fields = [settings.get(field) for field in _PATTERNS]
    flat = [entry for value in fields for entry in (value if isinstance(value, list | dict) else [value])]
    texts = [entry for entry in flat if isinstance(entry, str)]
    if len(texts) > _MOST_PATTERNS or any(len(text) > _LONGEST_PATTERN for text in texts):
        raise XatlasError(f"{place / LORA_CONFIG} holds too many or too long patterns; name the modules instead.")
    patterns = [text for text in texts if re.search(r"[*+?{(|\[\\]", text)]
    if not patterns:
        return
    asked = json.dumps([patterns, names])
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_PATTERN_SECONDS, check=False
        )
        printed, failed = done.stdout, done.returncode != 0
    except subprocess.TimeoutExpired as error:
        printed, failed = (error.stdout or b"").decode(), True
    if failed:
        pattern = patterns[int((printed.split() or ["0"])[-1])]
        raise XatlasError(
            f"the pattern {pattern[:80]!r} in {place / LORA_CONFIG} takes too long to match; name the modules instead."
        )
