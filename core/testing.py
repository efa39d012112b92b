"""Tiny random models, a tokenizer and suites, made on the spot: what plugins are checked and tested on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xatlas.contracts.adapter import Adapter, PreNormAdapter
from xatlas.contracts.probe import Checkpoint
from xatlas.errors import XatlasError
from xatlas.manager import adapters
from xatlas.model import HookedModel
from xatlas.model.hooks import exclusive
from xatlas.suites import Prompt, Suite

#: Sizes, under the names that configs of Hugging Face models have for them.
_SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
#: Kinds of layers tried beside a hybrid config's own, to have as many of an adapter's operators as can be.
_LAYER_TYPES = ("conv", "linear_attention", "mamba", "full_attention")
#: Answers to choose from.
_LETTERS = "bcdefghijklmnopqrstuvwxyzBCDEFGHIJKLMNOPQRSTUVWXYZ"
#: Wordings by family; those in one column are of equal length, so that donors can be found.
_WORDINGS = {
    "sums": ("{a} plus {b} makes", "the sum of {a} and {b} is"),
    "echo": ("{a} then {b} again", "now {a} and then {b} next"),
    "order": ("{a} from {b} leads", "it went {a} to {b} and to"),
}


def tiny_hf_model(name: str, *, seed: int = 0, attention: str | None = None, **config: Any) -> Any:
    """Return a tiny random model of a class in transformers, with weights so large that every layer matters.

    ``config`` holds fields of the model's config that differ from the tiny sizes and the class's own defaults.
    """
    import transformers

    cls = getattr(transformers, name)
    default = cls.config_class()
    derived = {field for field in _SIZES if isinstance(getattr(cls.config_class, field, None), property)}
    sizes = {field: size for field, size in _SIZES.items() if hasattr(default, field) and field not in derived}
    if "kv_lora_rank" in sizes:  # latent attention has keys and values for each head
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    made = cls.config_class(**sizes | config)
    if attention is not None:
        made._attn_implementation = attention
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = cls(made).eval().requires_grad_(False)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
            else:  # norms stay about 1, biases about 0
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def tiny_model(
    adapter: type[Adapter], name: str | None = None, *, seed: int = 0, attention: str | None = None
) -> HookedModel:
    """Return a tiny random model of one of an adapter's architectures, the first if none is named; it reads bytes.

    A config that gives each layer a type is made to alternate, so that both kinds of layers are there.

    Raises
    ------
    XatlasError
        transformers does not know the class, it can't be made tiny, or the adapter is wrong.
    """
    import transformers

    name = name or adapter.architectures[0]
    if not hasattr(transformers, name):
        raise XatlasError(f"transformers has no class {name}: check the adapter on a loaded model instead.")
    first = getattr(getattr(transformers, name).config_class(), "layer_types", None) or []
    layer_types = [[other, first[0]] * 2 for other in (first[0], *_LAYER_TYPES)] if first else [None]
    found: list[HookedModel] = []
    for types in layer_types:
        try:
            hf = tiny_hf_model(name, seed=seed, attention=attention, **({"layer_types": types} if types else {}))
            hf(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
        except Exception as error:
            if found:  # this architecture has no such layers
                continue
            why = f"{type(error).__name__}: {error}"
            raise XatlasError(f"{name} can't be made small ({why}): check on a loaded model instead.") from None
        fitted = adapter(hf)
        norm = getattr(fitted.module(fitted.final_norm_path), "weight", None)
        if norm is not None:
            norm.add_(3.0)  # stretches the logits as training does: random weights prefer nothing by much
        found.append(HookedModel(hf, byte_tokenizer(), slug="small", adapter=fitted))
    return max(found, key=lambda model: len(set(model.operator_types)))


def model_with(kinds: Iterable[str], *, seed: int = 0) -> HookedModel:
    """Return a tiny model of a registered architecture that has all the site kinds asked for.

    Raises
    ------
    XatlasError
        No registered architecture has them all.
    """
    wanted = set(kinds)
    found: list[HookedModel] = []
    # Whose layers may differ come first, and the first such model that has the sites will do.
    for adapter in sorted(dict.fromkeys(adapters().values()), key=_alike):
        if found and _alike(adapter):
            break
        try:
            model = tiny_model(adapter, seed=seed)
        except XatlasError:  # the adapter's own check names the fault; here another architecture may do
            continue
        if all(model.sites(kind) for kind in wanted):
            found.append(model)
    if not found:
        kinds = ", ".join(sorted(wanted)) or "(any)"
        raise XatlasError(f"no registered architecture has the sites {kinds}: pass a HookedModel that has them.")
    return max(found, key=lambda model: len(set(model.operator_types)))


def _alike(adapter: type[Adapter]) -> bool:
    """Say whether every layer of an architecture attends."""
    return adapter.operator_type is PreNormAdapter.operator_type


def byte_tokenizer() -> Any:
    """Return a fast tokenizer with a token for every byte and one for each end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<begin>", eos_token="<end>")


def write_tiny_model(folder: Path, name: str = "LlamaForCausalLM", *, seed: int = 0, **config: Any) -> Path:
    """Write a tiny model and its tokenizer, without a beginning token, and return the folder: a model by its path."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    tiny_hf_model(name, seed=seed, **{"bos_token_id": None} | config).save_pretrained(folder)
    return folder


def tiny_suite(name: str = "small", digits: str = "123") -> Suite:
    """Return short prompts of three families, two templates each, with targets, foils and twins."""
    prompts = []
    for family, wordings in _WORDINGS.items():
        for (w, wording), (a, b) in itertools.product(enumerate(wordings), itertools.pairwise(digits)):
            start, answer = wording.index("{a}"), 3 * int(a) + int(b)
            prompts.append(
                Prompt(
                    id=f"{name}-{family}-{w}-{a}{b}",
                    family=family,
                    text=wording.format(a=a, b=b),
                    target=f" {answer % 10}",
                    foil=f" {(answer + 3) % 10}",
                    corrupt_text=wording.format(a=(int(a) + 1) % 10, b=b),
                    subject=(start, start + 1),
                    template=f"{family}-{w}",
                )
            )
    return Suite(name, tuple(prompts))


def tiny_reference() -> Suite:
    """Return a reference for means and donors: the same families, other digits, more than 500 tokens."""
    return tiny_suite("small-reference", "56789046857")


def answered_suite(model: HookedModel) -> Suite:
    """Return the tiny suite with letters for answers: the model prefers the target, after the twin the foil."""
    prompts = []
    for prompt in tiny_suite():
        texts = (prompt.text, prompt.corrupt_text or prompt.text)
        clean, corrupt = (_letter_logits(model, replace(prompt, text=text)) for text in texts)
        pairs = itertools.permutations(sorted(clean.keys() & corrupt.keys()), 2)
        margins = {(a, b): min(clean[a] - clean[b], corrupt[b] - corrupt[a]) for a, b in pairs}
        if margins:
            target, foil = max(margins, key=margins.__getitem__)
            prompt = replace(prompt, target=f" {target}", foil=f" {foil}")
        prompts.append(prompt)
    return Suite("small", tuple(prompts))


@exclusive
@torch.inference_mode()
def _letter_logits(model: HookedModel, prompt: Prompt) -> dict[str, float]:
    """Return the logits of the letters that a model can give after a prompt's text, all at one position."""
    assert model.reader is not None
    read = {letter: model.reader.prompt(replace(prompt, target=f" {letter}", foil=" a")) for letter in _LETTERS}
    usable = {letter: tokens for letter, tokens in read.items() if not isinstance(tokens, str)}
    if not usable:
        return {}
    first = next(iter(usable.values()))
    logits = model.model(input_ids=model.tokens([first]), use_cache=False).logits[0, first.readout]
    return {letter: float(logits[t.answer]) for letter, t in usable.items() if t.readout == first.readout}


@dataclass
class CountingCheckpoint(Checkpoint):
    """A checkpoint in memory that counts what was found."""

    parts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return a part, and count it as found."""
        self.found += [key] if key in self.parts else []
        return self.parts.get(key)

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a copy of a part."""
        self.parts[key] = {name: np.array(array) for name, array in arrays.items()}
