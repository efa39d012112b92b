"""The tokenizer that a GGUF file's vocabulary, merges and pre-tokenizer describe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from xatlas.loading.gguf_file import GgufError, GgufFile, short

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from xatlas.contracts.adapter import PreTokenizer

_PREFIX = "tokenizer.ggml."
#: Kinds of token, as ``tokenizer.ggml.token_type`` numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
#: Splitting a piece is quadratic in its length; real pieces have fewer than 300 characters.
_LONGEST_PIECE = 512


class _Vocabulary(NamedTuple):
    ids: dict[str, int]  # token → id, in the order of ids
    kinds: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]]


def build_tokenizer(file: GgufFile, rows: int, pre_tokenizers: Mapping[str, PreTokenizer]) -> Any:
    """Return a transformers tokenizer that cuts text as the file says, for an embedding of ``rows`` tokens.

    The keys that are converted are taken out of the file's metadata.
    """
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
        raw, adds_bos = _byte_level(file, vocabulary, set(ends.values()), pre_tokenizers)
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


def _byte_level(
    file: GgufFile, vocabulary: _Vocabulary, ends: set[int], pre_tokenizers: Mapping[str, PreTokenizer]
) -> tuple[Tokenizer, bool]:
    """Return a byte-level BPE, and whether its pre-tokenizer's name asks for a beginning-of-text token."""
    from tokenizers import Regex, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    name = file.pop(f"{_PREFIX}pre", str, "default")
    cut = pre_tokenizers.get(name)
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
