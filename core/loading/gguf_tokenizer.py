"""The tokenizer that a GGUF file's vocabulary, merges and pre-tokenizer describe."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from xatlas.loading.gguf_file import GgufError, GgufFile, short

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PREFIX = "tokenizer.ggml."
#: Kinds of token, as ``tokenizer.ggml.token_type`` numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
#: Splitting a piece is quadratic in its length; real pieces have fewer than 300 characters.
_LONGEST_PIECE = 512

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Splitting(NamedTuple):
    """How a pre-tokenizer cuts text: by each pattern in turn; and what else its name stands for."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    whole_words: bool = False  #: words that are tokens are never cut, whatever the merges say
    begins: bool = False  #: a beginning-of-text token is added unless the file says otherwise


_SPLITTINGS = (
    _Splitting(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    _Splitting(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert"), (_GPT2,)),
    _Splitting(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (_DIGIT, _GPT2)),
    _Splitting(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2"),
        (_WORDS % "{1,3}",),
        whole_words=True,
        begins=True,
    ),
    _Splitting(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_WORDS % "{1,3}",)),
    _Splitting(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), (_WORDS % "",)),
    _Splitting(("tekken",), (_CASED % ("", "", ""),), whole_words=True, begins=True),
    _Splitting(("gpt-4o", "llama4", "kanana2"), (_CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?", "{1,3}"),)),
)


class _Vocabulary(NamedTuple):
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]]


def build_tokenizer(file: GgufFile, rows: int) -> Any:
    """Return a transformers tokenizer that cuts text as the file says; its keys are taken from the metadata.

    Parameters
    ----------
    file : GgufFile
        Its metadata lose the keys that are converted.
    rows : int
        How many tokens the embedding holds.

    Raises
    ------
    GgufError
        The vocabulary is missing, damaged or of a kind that is not converted.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    model = file.pop(f"{_PREFIX}model", str)
    vocabulary = _vocabulary(file, rows)
    size = len(vocabulary.tokens)
    ends = {name: _token_id(file, f"{name}_token_id", size) for name in ("bos", "eos", "unknown", "padding")}
    if model == "gpt2":
        raw, adds_bos = _byte_level(file, vocabulary, {token for token in ends.values() if token is not None})
    elif model == "llama":
        for name, token in (("bos", 1), ("eos", 2), ("unknown", 0)):  # what no key means for this kind
            if ends[name] is None and vocabulary.kinds[token : token + 1] in ([_CONTROL], [_UNKNOWN]):
                ends[name] = token
        raw, adds_bos = _sentence_pieces(file, vocabulary, ends["unknown"]), True
    else:
        raise GgufError(f"its 'tokenizer.ggml.model' is {short(model)}, which is not converted")
    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if token and kind in (_CONTROL, _USER_DEFINED)
    ]
    raw.add_special_tokens([token for token in added if token.special])
    raw.add_tokens([token for token in added if not token.special])
    bos = ends["bos"] if file.pop(f"{_PREFIX}add_bos_token", bool, adds_bos) else None
    eos = ends["eos"] if file.pop(f"{_PREFIX}add_eos_token", bool, False) else None
    _add_ends(raw, vocabulary.tokens, bos, eos)
    words = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    named = {words[name]: vocabulary.tokens[token] for name, token in ends.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **named)
    if "tokenizer.chat_template" in file.metadata:
        tokenizer.chat_template = file.pop("tokenizer.chat_template", str)
    if len(tokenizer) > size:
        raise GgufError("its vocabulary does not hold all of its special tokens")
    return tokenizer


def _vocabulary(file: GgufFile, rows: int) -> _Vocabulary:
    tokens = file.pop(f"{_PREFIX}tokens", list)
    kinds = file.pop(f"{_PREFIX}token_type", list, [_NORMAL] * len(tokens))
    scores = file.metadata.pop(f"{_PREFIX}scores", None)
    merges = file.pop(f"{_PREFIX}merges", list, [])
    if not all(type(token) is str for token in [*tokens, *merges]):
        raise GgufError("its tokens or merges are no text")
    if len(tokens) > rows:
        raise GgufError(f"its 'tokenizer.ggml.tokens' holds {len(tokens)} tokens, its embedding {rows}")
    if len(kinds) != len(tokens) or not (scores is None or len(scores) == len(tokens)):
        raise GgufError("its 'tokenizer.ggml.token_type' or 'tokenizer.ggml.scores' is not as long as its vocabulary")
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise GgufError(f"its 'tokenizer.ggml.tokens' holds {short(twice[0])} twice")
    cuts = [merge.find(" ", 1) for merge in merges]  # from 1: a merge may begin with a space
    if -1 in cuts:
        raise GgufError(f"its 'tokenizer.ggml.merges' holds {short(merges[cuts.index(-1)])}, which is no pair")
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    return _Vocabulary(tokens, kinds, scores, pairs)


def _token_id(file: GgufFile, name: str, size: int) -> int | None:
    if f"{_PREFIX}{name}" not in file.metadata:
        return None
    token = file.pop(f"{_PREFIX}{name}", int)
    if not 0 <= token < size:
        raise GgufError(f"its '{_PREFIX}{name}' is {token}, which is beyond its vocabulary")
    return token


def _byte_level(file: GgufFile, vocabulary: _Vocabulary, ends: set[int]) -> tuple[Tokenizer, bool]:
    """Return a byte-level BPE, and whether its pre-tokenizer's name asks for a beginning-of-text token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = file.pop(f"{_PREFIX}pre", str, "default")
    splitting = next((one for one in _SPLITTINGS if name in one.names), None)
    if splitting is None:
        raise GgufError(f"its 'tokenizer.ggml.pre' is {short(name)}, a pre-tokenizer that is not converted")
    if file.pop(f"{_PREFIX}add_space_prefix", bool, False):
        raise GgufError(f"its '{_PREFIX}add_space_prefix' is true, which is not converted for byte-level tokens")
    if not vocabulary.merges and any(
        kind == _NORMAL and len(token) > 1 and index not in ends
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    ):
        raise GgufError("it lacks the key 'tokenizer.ggml.merges'")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        raw = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=splitting.whole_words))
    except Exception as error:  # tokenizers raises plain Exceptions
        raise GgufError(f"its 'tokenizer.ggml.merges' do not fit its vocabulary: {error}") from error
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splitting.patterns]
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    return raw, splitting.begins


def _sentence_pieces(file: GgufFile, vocabulary: _Vocabulary, unknown: int | None) -> Tokenizer:
    """Return a BPE over pieces whose score says which of two neighbours are joined first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = file.pop(f"{_PREFIX}pre", str, "default")
    if name != "default":
        raise GgufError(f"its 'tokenizer.ggml.pre' is {short(name)}, a pre-tokenizer that is not converted for pieces")
    spaced = file.pop(f"{_PREFIX}add_space_prefix", bool, True)
    scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
    pieces = {
        token: (score, index)
        for index, (token, score, kind) in enumerate(zip(vocabulary.tokens, scores, vocabulary.kinds, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    }
    if any(len(piece) > _LONGEST_PIECE for piece in pieces):
        raise GgufError(f"a piece of its vocabulary is longer than {_LONGEST_PIECE} characters")
    merges = []
    for piece in sorted(pieces, key=lambda piece: (-pieces[piece][0], pieces[piece][1])):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        fitting = [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]
        merges += sorted(fitting, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]), reverse=True)
    if merges and vocabulary.scores is None:
        raise GgufError("it lacks the key 'tokenizer.ggml.scores'")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    outside = None if unknown is None else vocabulary.tokens[unknown]
    raw = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=outside, fuse_unk=True, byte_fallback=True))
    marks: list[Any] = [normalizers.Replace(" ", "▁")]
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marks] if spaced else marks)
    undone: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*undone, decoders.Strip(" ", 1, 0)] if spaced else undone)
    return raw


def _add_ends(raw: Tokenizer, tokens: list[str], bos: int | None, eos: int | None) -> None:
    """Let the tokenizer put the ends around a text; both are named by a word, since a token may hold a colon."""
    from tokenizers import processors

    present = [(word, token) for word, token in (("bos", bos), ("eos", eos)) if token is not None]
    if not present:
        return
    first, last = ["bos"] * (bos is not None), ["eos"] * (eos is not None)
    raw.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{word}:1" for word in first), "$B:1", *(f"{word}:1" for word in last)],
        special_tokens=[{"id": word, "ids": [token], "tokens": [tokens[token]]} for word, token in present],
    )
