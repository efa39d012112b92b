"""What the keys of GGUF files mean: llama.cpp's words for a Llama-like decoder and for its tokenizer.

An architecture whose files need no more gives its adapter ``gguf = DecoderGguf(name)``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from xatlas.contracts.adapter import GgufLayout
from xatlas.loading.gguf import GgufError, GgufFile, short

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

#: Keys that say nothing new when they hold this value; those of the model stand behind the architecture's name.
_NEUTRAL = {
    "general.type": "model",
    "split.count": 1,
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
}
_NEUTRAL_OF_MODEL = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
#: Keys that no token and no logit depends on: who made the file and how, and tokens with names of their own.
_IRRELEVANT = re.compile(
    r"general\.(?!type$).+|quantize\..+|mradermacher\..+|split\.(no|tensors\.count)"
    r"|[^.]+\.(rope\.scaling\.finetuned|tensor_data_layout)"
    r"|tokenizer\.(chat_templates|chat_template\..+)"
    r"|tokenizer\.ggml\.(eot|eom|seperator|mask|cls|prefix|suffix|middle|fim_(pre|suf|mid|pad|rep|sep))_token_id"
)
#: Yarn's bounds, in turns over the original context.
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
_PREFIX = "tokenizer.ggml."
#: Kinds of token, as ``tokenizer.ggml.token_type`` numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
#: Splitting a piece is quadratic in its length; real pieces have fewer than 300 characters.
_LONGEST_PIECE = 512


class _PreTokenizer(NamedTuple):
    """How a byte-level tokenizer cuts a text before it merges."""

    patterns: tuple[str, ...]  # regular expressions; each cuts what the one before it left
    whole_words: bool = False  # words that are tokens are never cut, whatever the merges say
    begins: bool = False  # a beginning-of-text token is added unless the file says otherwise


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_LLAMA3 = _PreTokenizer((_WORDS % "{1,3}",), whole_words=True, begins=True)
_TEKKEN = _PreTokenizer((_CASED % ("", "", ""),), whole_words=True, begins=True)
_GPT4O = _PreTokenizer((_CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?", "{1,3}"),))

#: By ``tokenizer.ggml.pre``; ``default`` is for files that name none.
_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    "default": _DEFAULT,
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert"), _PreTokenizer((_GPT2,))
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _PreTokenizer((_DIGIT, _GPT2)),
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _PreTokenizer((_WORDS % "{1,3}",))),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), _PreTokenizer((_WORDS % "",))
    ),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
}


@dataclass(frozen=True)
class DecoderGguf(GgufLayout):
    """How GGUF files write a Llama-like decoder, with llama.cpp's own values for keys that may be missing."""

    architecture: str
    interleaved: bool = False  # rows of queries and keys are stored with the halves of each head interleaved
    epsilon: str = "rms_norm_eps"  # the config's name for the epsilon of RMS norms
    # pops the keys that only this architecture has, and returns the config's fields that they mean
    fields: Callable[[GgufFile], dict[str, Any]] = lambda file: {}

    def says_nothing(self, key: str, value: object) -> bool:
        """Say whether a key that was not taken bears on nothing."""
        neutral = _NEUTRAL | {f"{self.architecture}.{name}": plain for name, plain in _NEUTRAL_OF_MODEL.items()}
        return bool(_IRRELEVANT.fullmatch(key)) or (key in neutral and value == neutral[key])

    def tensor(self, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
        """Return a tensor as the model holds it: each head's first half stands before its second."""
        if not self.interleaved or not re.search(r"\.attn_[qk]\.", name):
            return value
        halves = value.reshape(-1, config.head_dim // 2, 2, *value.shape[1:])  # (heads, pairs, 2 halves, ...)
        return halves.transpose(1, 2).reshape(value.shape)

    def config(self, file: GgufFile) -> Any:
        """Return the config that the metadata mean."""
        from transformers import AutoConfig

        def count(key: str, default: int | None = None) -> int:
            return _count(file, f"{self.architecture}.{key}", default)

        if "token_embd.weight" not in file.tensors:
            raise GgufError("it lacks the tensor 'token_embd.weight'")
        rows = file.tensors["token_embd.weight"].shape[0]
        layers = count("block_count")
        if layers > len(file.tensors):
            raise GgufError(f"it holds {len(file.tensors)} tensors for {layers} layers")
        for key, value in file.metadata.items():
            if key.startswith(f"{self.architecture}.") and isinstance(value, list) and len(value) != layers:
                raise GgufError(f"its {short(key)} holds {len(value)} values for {layers} layers")
        fields = self.fields(file)
        width, heads, context = count("embedding_length"), count("attention.head_count"), count("context_length")
        head = count("attention.key_length", width // heads)
        same = {"attention.value_length": (width // heads, head), "rope.dimension_count": (head, head)}
        for key, (default, needed) in (same | {"vocab_size": (rows, rows)}).items():
            if (stated := count(key, default)) != needed:
                raise GgufError(f"its '{self.architecture}.{key}' is {stated}; {needed} is what fits its other sizes")
        fields |= {
            self.epsilon: file.pop(f"{self.architecture}.attention.layer_norm_rms_epsilon", float),
            "vocab_size": rows,
            "hidden_size": width,
            "intermediate_size": count("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": count("attention.head_count_kv", heads),
            "head_dim": head,
            "max_position_embeddings": context,
            "rope_parameters": _rope(file, f"{self.architecture}.rope", head, context),
            "tie_word_embeddings": "output.weight" not in file.tensors,
        }
        return AutoConfig.for_model(self.architecture, **fields)

    def tokenizer(self, file: GgufFile, rows: int, say: Callable[[str], None]) -> Any:
        """Return a transformers tokenizer that cuts text as the file says, for an embedding of ``rows`` tokens."""
        from tokenizers import AddedToken, processors
        from transformers import PreTrainedTokenizerFast

        model = file.pop(f"{_PREFIX}model", str)
        vocabulary = _vocabulary(file, rows)
        tokens, kinds = list(vocabulary.ids), vocabulary.kinds
        ends = {}
        for end in ("bos", "eos", "unknown", "padding"):
            if f"{_PREFIX}{end}_token_id" in file.metadata:
                ends[end] = file.pop(f"{_PREFIX}{end}_token_id", int)
                if not 0 <= ends[end] < len(tokens):
                    raise GgufError(f"its '{_PREFIX}{end}_token_id' is {ends[end]}, which is beyond its vocabulary")
        if model == "gpt2":
            if f"{_PREFIX}pre" not in file.metadata:
                name = file.path.name
                say(f"{name} names no pre-tokenizer; text is cut by llama.cpp's default, maybe not as in training")
            raw, adds_bos = _byte_level(file, vocabulary, set(ends.values()))
        elif model == "llama":
            for end, token in (("bos", 1), ("eos", 2), ("unknown", 0)):  # what no key means for this kind
                if end not in ends and kinds[token : token + 1] in ([_CONTROL], [_UNKNOWN]):
                    ends[end] = token
            raw, adds_bos = _sentence_pieces(file, vocabulary, ends.get("unknown")), True
        else:
            raise GgufError(f"its '{_PREFIX}model' is {short(model)}, which is not converted")
        for wanted, add in ((_CONTROL, raw.add_special_tokens), (_USER_DEFINED, raw.add_tokens)):
            added = [token for token, kind in zip(tokens, kinds, strict=True) if token and kind == wanted]
            add([AddedToken(token, normalized=False, special=wanted == _CONTROL) for token in added])
        # The ends are named by a word, since a token may hold a colon.
        adds = {"bos": file.pop(f"{_PREFIX}add_bos_token", bool, adds_bos)}
        adds["eos"] = file.pop(f"{_PREFIX}add_eos_token", bool, False)
        words = [end for end in ("bos", "eos") if adds[end] and end in ends]
        if words:
            first, last = [word for word in words if word == "bos"], [word for word in words if word == "eos"]
            second = [*(f"{word}:1" for word in first), "$B:1", *(f"{word}:1" for word in last)]
            raw.post_processor = processors.TemplateProcessing(
                single=[*first, "$A", *last],
                pair=[*first, "$A", *last, *second],
                special_tokens=[{"id": word, "ids": [ends[word]], "tokens": [tokens[ends[word]]]} for word in words],
            )
        names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
        named = {names[end]: tokens[token] for end, token in ends.items()}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **named)
        if "tokenizer.chat_template" in file.metadata:
            tokenizer.chat_template = file.pop("tokenizer.chat_template", str)
        if len(tokenizer) > len(tokens):
            raise GgufError("its vocabulary does not hold all of its special tokens")
        return tokenizer


def _count(file: GgufFile, key: str, default: int | None = None) -> int:
    """Take a number above 0; one number for each layer is as good, if they are equal."""
    value = file.metadata.get(key)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        file.metadata[key] = value[0]
    number = file.pop(key, int, default)
    if number < 1:
        raise GgufError(f"its {short(key)} is {number}")
    return number


def _rope(file: GgufFile, prefix: str, head: int, context: int) -> dict[str, Any]:
    """Return the config's ``rope_parameters``.

    Factors for each frequency, as Llama 3's scaling is written, are transformers' ``longrope`` with one list
    for short and long texts.
    """
    theta = file.pop(f"{prefix}.freq_base", float, 10000.0)
    old = file.pop(f"{prefix}.scale_linear", float, 0.0)
    factor = file.pop(f"{prefix}.scaling.factor", float, old) or 1.0  # 0 stands for none
    kind = file.pop(f"{prefix}.scaling.type", str, "linear")
    original = _count(file, f"{prefix}.scaling.original_context_length", context)
    betas = {name: file.pop(f"{prefix}.scaling.yarn_{name}", float, value) for name, value in _BETAS.items()}
    stored = file.tensors.pop("rope_freqs.weight", None)
    if theta <= 0 or factor < 0 or kind not in ("none", "linear", "yarn") or (kind == "yarn" and stored):
        raise GgufError(f"its '{prefix}.scaling.type' is {short(kind)}, by {factor} of {theta}, which is not converted")
    rope: dict[str, Any] = {"rope_theta": theta}
    if kind == "yarn":
        attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        scaled = {"factor": factor, "original_max_position_embeddings": original, "attention_factor": attention}
        return rope | {"rope_type": "yarn"} | scaled | betas
    factor = factor if kind == "linear" else 1.0
    if stored is None:
        return rope | ({"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor})
    factors = [factor * float(one) for one in file.unpack(stored).reshape(-1)]
    if len(factors) != head // 2 or not all(math.isfinite(one) and one > 0 for one in factors):
        raise GgufError(f"its 'rope_freqs.weight' does not hold {head // 2} factors for heads of {head}")
    longrope = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0}
    return rope | {"rope_type": "longrope", "original_max_position_embeddings": context} | longrope


class _Vocabulary(NamedTuple):
    ids: dict[str, int]  # token → id, in the order of ids
    kinds: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]]


def _vocabulary(file: GgufFile, rows: int) -> _Vocabulary:
    tokens = file.pop(f"{_PREFIX}tokens", list)
    kinds = file.pop(f"{_PREFIX}token_type", list, [_NORMAL] * len(tokens))
    scores = file.metadata.pop(f"{_PREFIX}scores", None)
    merges = file.pop(f"{_PREFIX}merges", list, [])
    if not all(type(token) is str for token in [*tokens, *merges]):
        raise GgufError("its tokens or merges are no text")
    if len(tokens) > rows:
        raise GgufError(f"its '{_PREFIX}tokens' holds {len(tokens)} tokens, its embedding {rows}")
    if len(kinds) != len(tokens) or not (scores is None or len(scores) == len(tokens)):
        raise GgufError(f"its '{_PREFIX}token_type' or '{_PREFIX}scores' is not as long as its vocabulary")
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise GgufError(f"its '{_PREFIX}tokens' holds {short(twice[0])} twice")
    cuts = [merge.find(" ", 1) for merge in merges]  # from 1: a merge may begin with a space
    if -1 in cuts:
        raise GgufError(f"its '{_PREFIX}merges' holds {short(merges[cuts.index(-1)])}, which is no pair")
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    return _Vocabulary({token: index for index, token in enumerate(tokens)}, kinds, scores, pairs)


def _byte_level(file: GgufFile, vocabulary: _Vocabulary, ends: set[int]) -> tuple[Tokenizer, bool]:
    """Return a byte-level BPE, and whether its pre-tokenizer's name asks for a beginning-of-text token."""
    from tokenizers import Regex, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    name = file.pop(f"{_PREFIX}pre", str, "default")
    cut = _PRE_TOKENIZERS.get(name)
    if cut is None:
        raise GgufError(f"its '{_PREFIX}pre' is {short(name)}, a pre-tokenizer that is not converted")
    if file.pop(f"{_PREFIX}add_space_prefix", bool, False):
        raise GgufError(f"its '{_PREFIX}add_space_prefix' is true, which is not converted for byte-level tokens")
    words = [token for token, index in vocabulary.ids.items() if len(token) > 1 and index not in ends]
    if not vocabulary.merges and any(vocabulary.kinds[vocabulary.ids[word]] == _NORMAL for word in words):
        raise GgufError(f"it lacks the key '{_PREFIX}merges'")
    try:
        raw = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=vocabulary.merges, ignore_merges=cut.whole_words))
    except Exception as error:  # tokenizers raises plain Exceptions
        raise GgufError(f"its '{_PREFIX}merges' do not fit its vocabulary: {error}") from error
    splits: list[Any] = [Split(Regex(pattern), behavior="isolated") for pattern in cut.patterns]
    raw.pre_tokenizer = Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    return raw, cut.begins


def _sentence_pieces(file: GgufFile, vocabulary: _Vocabulary, unknown: int | None) -> Tokenizer:
    """Return a BPE over pieces whose score says which of two neighbours are joined first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = file.pop(f"{_PREFIX}pre", str, "default")
    if name != "default":
        raise GgufError(f"its '{_PREFIX}pre' is {short(name)}, a pre-tokenizer that is not converted for pieces")
    spaced = file.pop(f"{_PREFIX}add_space_prefix", bool, True)
    scores = vocabulary.scores or [0.0] * len(vocabulary.ids)
    pieces = {
        token: (scores[index], index)
        for token, index in vocabulary.ids.items()
        if vocabulary.kinds[index] in (_NORMAL, _USER_DEFINED)
    }
    if any(len(piece) > _LONGEST_PIECE for piece in pieces):
        raise GgufError(f"a piece of its vocabulary is longer than {_LONGEST_PIECE} characters")
    merges = []
    for piece in sorted(pieces, key=lambda piece: (-pieces[piece][0], pieces[piece][1])):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        fitting = [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]
        merges += sorted(fitting, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]), reverse=True)
    if merges and vocabulary.scores is None:
        raise GgufError(f"it lacks the key '{_PREFIX}scores'")
    outside = None if unknown is None else list(vocabulary.ids)[unknown]
    raw = Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, unk_token=outside, fuse_unk=True, byte_fallback=True)
    )
    marks: list[Any] = [normalizers.Replace(" ", "▁")]
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marks] if spaced else marks)
    undone: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*undone, decoders.Strip(" ", 1, 0)] if spaced else undone)
    return raw
