"""The miniatures' tokenizer, and the training file as arrays of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xatlas.errors import XatlasError
from xatlas.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
CHUNK = 20_000  # lines tokenised at a time
TOKENIZER_LINES = 30_000  # of the training file
TEXT, TARGET = 1, 2  # kinds of token; 0 is padding
BOS, EOS = "<|begin|>", "<|end|>"
# Words, digits and signs take a leading space along; every digit and every sign is a token of its own, and so is a
# line's indentation.
PIECES = r" ?\p{L}+| ?\p{N}|\n *| ?[^\s\p{L}\p{N}]|\s"


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Text and target of each line of a training file.

    Raises
    ------
    XatlasError
        If the file is missing.
    """
    if not path.is_file():
        raise XatlasError(f"no training file {path}; make it with: python -m xatlas.plugins.suites 1024000 {path}")
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["text"], row["target"]


def train_tokenizer(path: Path, folder: Path) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on the head of a training file, and save it in `folder`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (text + target for text, target in islice(read_lines(path), TOKENIZER_LINES)), trainer
    )
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=256
    )
    fast.save_pretrained(folder)
    return fast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    from transformers import PreTrainedTokenizerFast

    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


class TokenFile:
    """A training file as tokens: line i is BOS, text, target, EOS.

    Parameters
    ----------
    path : Path
        Training file (JSON lines with text and target).
    tokenizer : PreTrainedTokenizerFast
        What to cut the lines with.

    Attributes
    ----------
    tokens : int16 array
        All lines one after another.
    starts : int64 array
        Where each line starts in `tokens`; one more entry than lines.
    targets : int16 array
        How many tokens of each line belong to its target.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        cache = path.with_suffix(".npz")
        if not cache.is_file() or cache.stat().st_mtime < path.stat().st_mtime:
            _tokenize(path, tokenizer, cache)
        arrays = np.load(cache)
        self.tokens, self.starts, self.targets = arrays["tokens"], arrays["starts"], arrays["targets"]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def hash(self) -> str:
        """Hex sha256 of the tokens, in order."""
        return sha256(self.tokens.tobytes())

    def batches(self, step: int, size: int, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """What step `step` trains on: `size` lines in file order, cut by length into `parts` padded arrays.

        Returns
        -------
        list of (tokens, kinds)
            Both (lines, positions); kinds are 0 padding, 1 text (and EOS), 2 target.
        """
        lines = (step * size + np.arange(size)) % len(self)
        lengths = self.starts[lines + 1] - self.starts[lines]
        order = np.argsort(lengths, kind="stable")  # little padding, and still every family in every step
        return [self._padded(lines[chosen]) for chosen in np.array_split(order, parts)]

    def _padded(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.starts[lines + 1] - self.starts[lines]
        tokens = np.zeros((len(lines), int(lengths.max())), dtype=np.int64)
        kinds = np.zeros_like(tokens)
        for row, (line, length) in enumerate(zip(lines, lengths, strict=True)):
            start, target = self.starts[line], int(self.targets[line])
            tokens[row, :length] = self.tokens[start : start + length]
            kinds[row, :length] = TEXT
            kinds[row, length - 1 - target : length - 1] = TARGET
        return tokens, kinds


def _tokenize(path: Path, tokenizer: PreTrainedTokenizerFast, cache: Path) -> None:
    eos = tokenizer.eos_token_id
    tokens: list[np.ndarray] = []
    lengths: list[int] = []
    targets: list[int] = []
    lines = read_lines(path)
    while part := list(islice(lines, CHUNK)):
        whole = tokenizer([text + target for text, target in part])["input_ids"]
        alone = tokenizer([text for text, _ in part])["input_ids"]
        tokens.append(np.array([token for row in whole for token in (*row, eos)], dtype=np.int16))
        lengths += [len(row) + 1 for row in whole]
        targets += [len(row) - len(text) for row, text in zip(whole, alone, strict=True)]
    partial = cache.with_name(cache.name + ".partial.npz")
    np.savez_compressed(
        partial,
        tokens=np.concatenate(tokens),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        targets=np.array(targets, dtype=np.int16),
    )
    partial.replace(cache)
