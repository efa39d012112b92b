"""Small random models, a tokenizer and a suite, made on the spot: what plugins are checked on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from xatlas.errors import XatlasError
from xatlas.manager import adapters
from xatlas.model import HookedModel
from xatlas.model.hooks import exclusive
from xatlas.suites import Prompt, Suite

if TYPE_CHECKING:
    from xatlas.contracts.adapter import Adapter


#: Sizes, under the names that configs of Hugging Face models have for them.
_SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
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


def small_model(adapter: type[Adapter], *, seed: int = 0, attention: str = "sdpa") -> HookedModel:
    """Return a small random model of an adapter's first architecture, with a tokenizer of bytes.

    A config that gives each layer a type is made to alternate, so that both kinds of layers are there.

    Parameters
    ----------
    adapter : type of Adapter
        Names the Hugging Face class.
    seed : int
        Of the weights.
    attention : {"sdpa", "eager"}
        Attention implementation.

    Raises
    ------
    XatlasError
        transformers does not know the class, its config can't be made small, or the adapter is wrong.
    """
    import transformers

    name = adapter.architectures[0]
    cls = getattr(transformers, name, None)
    if cls is None:
        raise XatlasError(f"transformers has no class {name}: check the adapter on a loaded model instead.")
    try:
        models = [_randomised(cls, config, seed, attention) for config in _configs(cls.config_class)]
    except Exception as error:
        raise XatlasError(
            f"{name} can't be made small ({type(error).__name__}: {error}): check on a loaded model instead."
        ) from None
    tokenizer = byte_tokenizer()
    hooked = [HookedModel(hf, tokenizer, slug="small", adapter=_decided(adapter(hf))) for hf in models]
    return max(hooked, key=lambda model: len(set(model.operator_types)))


def _decided(adapter: Adapter) -> Adapter:
    """Stretch the logits as training does: random weights prefer nothing by much."""
    weight = getattr(adapter.module(adapter.final_norm_path), "weight", None)
    if weight is not None:
        weight.add_(3.0)
    return adapter


def model_with(kinds: Iterable[str], *, seed: int = 0) -> HookedModel:
    """Return a small model of a registered architecture that has all the site kinds asked for.

    Raises
    ------
    XatlasError
        No registered architecture has them all.
    """
    wanted = set(kinds)
    attention = "eager" if "attention_pattern" in wanted else "sdpa"
    found = []
    for adapter in dict.fromkeys(adapters().values()):
        try:
            model = small_model(adapter, seed=seed, attention=attention)
        except XatlasError:  # its own check tells; here another architecture may do
            continue
        if all(model.sites(kind) for kind in wanted):
            found.append(model)
    if not found:
        raise XatlasError(
            f"no registered architecture has the sites {', '.join(sorted(wanted)) or '(any)'} in a small model: "
            "pass a HookedModel that has them."
        )
    return max(found, key=lambda model: len(set(model.operator_types)))


def byte_tokenizer() -> Any:
    """Return a fast tokenizer with a token for every byte and one for each end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<begin>", eos_token="<end>")


def small_suite(name: str = "small", digits: str = "123") -> Suite:
    """Return short prompts of three families, two templates each, with targets, foils and twins."""
    prompts = []
    for family, wordings in _WORDINGS.items():
        for w, wording in enumerate(wordings):
            for a, b in itertools.pairwise(digits):
                text, start = wording.format(a=a, b=b), wording.index("{a}")
                prompts.append(
                    Prompt(
                        id=f"{name}-{family}-{w}-{a}{b}",
                        family=family,
                        text=text,
                        target=f" {(3 * int(a) + int(b)) % 10}",
                        foil=f" {(3 * int(a) + int(b) + 3) % 10}",
                        corrupt_text=wording.format(a=(int(a) + 1) % 10, b=b),
                        subject=(start, start + 1),
                        template=f"{family}-{w}",
                    )
                )
    return Suite(name, tuple(prompts))


def answered_suite(model: HookedModel) -> Suite:
    """Return the small suite with answers that the model gives, as a trained one would: random weights know none.

    Each text's target and foil are letters, chosen so that the model prefers the target after the text, and the
    foil after its twin, by as much as it ever does.
    """
    return Suite("small", tuple(_answered(model, prompt) for prompt in small_suite()))


@exclusive
@torch.inference_mode()
def _answered(model: HookedModel, prompt: Prompt) -> Prompt:
    assert model.reader is not None
    scores = []
    for text in (prompt.text, prompt.corrupt_text or prompt.text):
        read = {
            letter: model.reader.prompt(replace(prompt, text=text, target=f" {letter}", foil=" a"))
            for letter in _LETTERS
        }
        usable = {letter: tokens for letter, tokens in read.items() if not isinstance(tokens, str)}
        first = next(iter(usable.values()), None)
        if first is None:
            return prompt
        logits = model.model(input_ids=model.tokens([first]), use_cache=False).logits[0, first.readout]
        alike = {letter: tokens for letter, tokens in usable.items() if tokens.readout == first.readout}
        scores.append({letter: float(logits[tokens.answer]) for letter, tokens in alike.items()})
    clean, corrupt = scores
    pairs = itertools.permutations(sorted(set(clean) & set(corrupt)), 2)
    target, foil = max(pairs, key=lambda p: min(clean[p[0]] - clean[p[1]], corrupt[p[1]] - corrupt[p[0]]))
    return replace(prompt, target=f" {target}", foil=f" {foil}")


def small_reference() -> Suite:
    """Return a reference for means and donors: the same families, other digits, more than 500 tokens."""
    return small_suite("small-reference", "56789046857")


def _configs(config_class: Any) -> list[Any]:
    """Return small configs: as the class would have it, and one per further type that layers can have."""
    default = config_class()
    sizes = {name: size for name, size in _SIZES.items() if hasattr(default, name)}
    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    types = list(getattr(default, "layer_types", None) or ())
    if not types:
        return [config_class(**sizes, **ends)]
    found = [config_class(**sizes, **ends, layer_types=[types[0]] * 4)]
    for other in _LAYER_TYPES:
        try:
            config = config_class(**sizes, **ends, layer_types=[other, types[0]] * 2)
            _randomised(_model_class(config), config, 0, "sdpa")
        except Exception:  # this architecture has no such layers
            continue
        found.append(config)
    return found


def _model_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(config)]


def _randomised(cls: Any, config: Any, seed: int, attention: str) -> Any:
    """Return a model with weights so large that every layer matters, once it has run."""
    config._attn_implementation = attention
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d) and weight is not None:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    return model.requires_grad_(False)
