"""Tiny random models, a tokenizer and suites, made on the spot: what plugins are checked and tested on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
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
from xatlas.text import one_line

#: Sizes, under the names that configs of Hugging Face models have for them.
_SIZES = {
    "vocab_size": 260, "hidden_size": 32, "embedding_dim": 32, "num_hidden_layers": 4, "num_blocks": 4,
    "intermediate_size": 48, "intermediate_size_mlp": 48, "ffn_dim": 48, "max_position_embeddings": 256,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    # state spaces and linear attention: 8 heads of 8, in 2 groups, and chunks that end within a prompt
    "num_heads": 8, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_ssm": 64,
    "n_groups": 2, "mamba_n_groups": 2, "mamba_ngroups": 2,
    "linear_num_heads": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "chunk_size": 4, "mamba_chunk_size": 4,
    "qk_dim_factor": 2.0, "v_dim_factor": 2.0,  # of which xLSTM's cache takes multiples of 64
    # which layers attend, and which have experts
    "attention_types": [[["global", "local"], 2]], "attn_layer_indices": [1, 3], "attn_layer_period": 2,
    "attn_layer_offset": 1, "interleave_moe_layer_step": 2,
}  # fmt: skip
#: Endings of the names of other sizes, and the most that such a size may be.
_MOST = {
    "experts": 4, "experts_per_tok": 2, "experts_per_token": 2, "_head_dim": 8, "_rank": 8, "_state": 8,
    "state_size": 8, "_d_head": 8, "_size": 32, "_dim": 32, "_width": 32,
}  # fmt: skip
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


def model_class(name: str) -> Any:
    """Return a class of transformers, or one that a plugin adds to it, by its name.

    A plugin does so in its ``xatlas_adapters``, by ``AutoModelForCausalLM.register``.

    Raises
    ------
    XatlasError
        There is no such class of models.
    """
    import transformers

    adapters()
    added = transformers.AutoModelForCausalLM._model_mapping._extra_content.values()
    found = next((cls for cls in added if cls.__name__ == name), None) or getattr(transformers, name, None)
    if (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and getattr(found, "config_class", None)
    ):
        return found
    advice = "check an adapter on a loaded model, or register the class as docs/adapters.md shows"
    raise XatlasError(f"transformers has no model class {name}: {advice}.")


def tiny_hf_model(name: str, *, seed: int = 0, attention: str | None = None, **config: Any) -> Any:
    """Return a tiny random model of a class in transformers, with weights so large that every layer matters.

    ``config`` holds fields of the model's config that differ from the tiny sizes and the class's own defaults. Where a
    config lists a type for each layer, the types take turns.
    """
    cls = model_class(name)
    made = _tiny_config(cls.config_class, config)
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


def _tiny_config(cls: Any, config: Mapping[str, Any]) -> Any:
    """Return a config of a class with tiny sizes; where it holds that of a text model, ``config`` is about that one."""
    default = cls()
    if "text_config" in cls.sub_configs:
        parts = {part: type(getattr(default, part)) for part in cls.sub_configs if getattr(default, part) is not None}
        return cls(**{part: _tiny_config(one, config if part == "text_config" else {}) for part, one in parts.items()})
    own = {each.name: each.default for each in fields(cls)} if is_dataclass(cls) else vars(default)
    aliases = getattr(cls, "attribute_map", {})
    derived = {name for name in _SIZES if isinstance(getattr(cls, name, None), property)}
    # what the class derives from other fields where it is left out stays out, if only an alias names it
    derived |= {name for name in _SIZES if name in aliases and own.get(aliases[name], 0) is None}
    sizes: dict[str, Any] = {name: size for name, size in _SIZES.items() if hasattr(default, name)}
    sizes = {name: size for name, size in sizes.items() if name not in derived}
    for name, value in own.items():
        most = next((most for ending, most in _MOST.items() if name.endswith(ending)), None)
        if name not in sizes and most is not None and type(value) is int and not name.startswith("image"):
            sizes[name] = min(value, most)
    if "kv_lora_rank" in own:  # latent keys and values are of all heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    n = int(config.get("num_hidden_layers", 4))
    for name, value in vars(default).items():
        typed = isinstance(value, list) and name in own and all(isinstance(kind, str) for kind in value)
        kinds = list(dict.fromkeys(value)) if typed else []
        if len(kinds) > 1 and len(value) == default.num_hidden_layers:
            sizes[name] = [kinds[layer % len(kinds)] for layer in range(n)]
    return cls(**sizes | dict(config))


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
    found: list[HookedModel] = []
    for hf in running_models(name or adapter.architectures[0], seed=seed, attention=attention):
        fitted = adapter(hf)
        norm = getattr(fitted.module(fitted.final_norm_path), "weight", None)
        if norm is not None:
            norm.add_(3.0)  # stretches the logits as training does: random weights prefer nothing by much
        found.append(HookedModel(hf, byte_tokenizer(), slug="small", adapter=fitted))
    return max(found, key=lambda model: len(set(model.operator_types)))


def running_models(name: str, *, seed: int = 0, attention: str | None = None, **config: Any) -> Iterator[Any]:
    """Yield tiny random models of a class, :func:`tiny_hf_model`'s, that run on a text: with one type of layers or two.

    Raises
    ------
    XatlasError
        transformers does not know the class, or it can't be made tiny.
    """
    cls = model_class(name)
    tries: list[dict[str, Any]] = [{}]
    faults: list[str] = []
    with suppress(Exception):  # a config that can't be made fails below, too, and is named there
        text = _tiny_config(cls.config_class, {}).get_text_config()
        own = getattr(text, "layer_types", None) or ["full_attention"]
        typed = is_dataclass(text) and "layer_types" in {each.name for each in fields(text)}
        if len(set(own)) == 1 and typed and "layer_types" not in config:
            tries += [{"layer_types": [other, own[0]] * 2} for other in _LAYER_TYPES]
    for more in tries:
        try:
            hf = tiny_hf_model(name, seed=seed, attention=attention, **more | config)
            hf(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
        except Exception as error:  # most architectures have no such layers
            faults.append(f"{type(error).__name__}: {error}")
        else:
            yield hf
    if len(faults) == len(tries):
        advice = "check its adapter on a loaded model instead"
        raise XatlasError(f"{name} can't be made small and run on a text ({one_line(faults[0])}): {advice}.")


def model_with(kinds: Iterable[str], *, seed: int = 0) -> HookedModel:
    """Return a tiny model of a registered architecture that has all the site kinds asked for.

    Raises
    ------
    XatlasError
        No registered architecture has them all.
    """
    wanted = set(kinds)

    def order(adapter: type[Adapter]) -> tuple[bool, bool]:
        return adapter.operator_type is PreNormAdapter.operator_type, "gguf" not in vars(adapter)

    # Whose layers may differ come first, of these such as are read from GGUF files; the first with the sites will do.
    for adapter in sorted(dict.fromkeys(adapters().values()), key=order):
        try:
            model = tiny_model(adapter, seed=seed)
        except XatlasError:  # the adapter's own check names the fault; here another architecture may do
            continue
        if all(model.sites(kind) for kind in wanted):
            return model
    kinds = ", ".join(sorted(wanted)) or "(any)"
    raise XatlasError(f"no registered architecture has the sites {kinds}: pass a HookedModel that has them.")


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
