"""What stands in an answer: its text, its structures, its numbers; and whether it answers at all."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

#: Longest answer that is parsed.
LONGEST = 20_000

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_I = r"\b(?:i|we|it is|it's|this is|that is)(?:'m| am|'ll|'d| will| would)?(?: really| just| simply| afraid i)?"
_DECLINES = re.compile(
    rf"{_I} (?:can ?not|can't|could not|couldn't|won't|unable|not able|do not know|don't know|refuse|must decline|"
    rf"not (?:sure|certain|possible|allowed|clear)|unsure|impossible)\b|\bas an ai\b|\bi(?:'m| am) sorry\b|"
    r"\bunable to (?:answer|help|say|tell|determine)\b|\bno (?:answer|idea)\b|"
    r"\b(?:can ?not|can't) (?:say|tell|answer|help)\b|"
    r"\bje ne (?:peux|sais) pas\b|\bno (?:puedo|sé)\b|\bich (?:kann|weiß) (?:es |das )?nicht\b"
)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|unlike|except|excluding|cannot|no|false that|wrong that)\b|n't\b|"
    r"\b(?:rather than|instead of|opposed to)\b)(?:\W+[\w'-]+){0,3}\W*$"
)
_DENIED = re.compile(
    r"\W*(?:is|was|are|were|would be|'s)(?:\s+\w+ly)?\s+(?:wrong|incorrect|false|untrue|"
    r"not (?:right|correct|true|it\b|(?:the|my|an?) (?:\w+ )?answer))|"
    r"\W*(?:isn't|wasn't|aren't) (?:right|correct|true|it\b|the)"
)
_CLAUSE = re.compile(r"[.;:!?\n](?:\s|$)|\n|\bbut\b|\bhowever\b|,\s*it(?:'s| is)\b")
_OPENING = re.compile(r"(?:(?<!\w)|(?<=json))[{\[]")
_UNITS = r"(?:km|kg|cm|mm|ml|mg|kb|mb|gb|m|g|h|s|l|c|f|x|am|pm)\b"
_NUMBER = re.compile(
    r"(?<![\w.])(?<!\d,)[-+]?(?:\d{1,3}(?:[, ]\d{3})+(?![\d])|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?![\d/]))?"
    rf"(?:(?=%|°)|(?!\w)|(?={_UNITS}))(?!\.\d)"
)
_NO_NUMBER = re.compile(r"\bnot\b|n't\b|\bnever\b|\b(?:any|every)thing but\b|\b(?:wrong|incorrect|false)\b")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]


def folded(text: str, *, case: bool = False) -> str:
    """Return a text with plain quotes and spaces, without accents and emphasis, in lower case unless ``case``."""
    marks = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "−": "-", "\u2011": "-"}
    text = unicodedata.normalize("NFKC", "".join(marks.get(letter, letter) for letter in text))
    apart = unicodedata.normalize("NFD", text)
    text = unicodedata.normalize("NFC", "".join(x for x in apart if not "\u0300" <= x <= "\u036f"))
    text = re.sub(r"\*+|`+|(?<!\w)_+|_+(?!\w)", "", text)
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    return text if case else text.casefold()


def said(answer: str, prompt: str) -> str:
    """Return an answer without what the model thought before, and without the prompt where it repeats it."""
    text = _THOUGHT.sub("", answer[:LONGEST]).replace("\r\n", "\n").strip()
    for asked in (prompt, *sorted(prompt.split("\n\n"), key=len, reverse=True)):
        words = asked.split()
        if len(words) >= 4:  # spaces may have changed
            text = re.sub(r"\s+".join(map(re.escape, words)), " ", text).strip()
    return text


def declines(text: str) -> bool:
    """Whether an answer says that it gives none."""
    return _DECLINES.search(folded(text)) is not None


def fences(text: str) -> list[str]:
    """Return what stands in code fences."""
    return [found.strip("\n") for found in _FENCE.findall(text)]


def unwrapped(text: str) -> Iterator[str]:
    """Yield what may be the answer proper: all of it, a code fence's, what follows a colon or ``is``, a quotation."""
    yield text
    inside = fences(text)
    if len(inside) == 1:
        yield inside[0]
        return
    first, _, rest = text.partition("\n")
    if rest and first.rstrip().endswith(":"):
        yield rest.strip()
    if not rest:
        for mark in (": ", " is ", " are ", " becomes "):
            before, found, after = text.rpartition(mark)
            if found and len(before.split()) <= 12:
                yield after
        quoted = re.findall(r"[\"“«](.+?)[\"”»]|\*\*(.+?)\*\*|(?<!\w)'(.+?)'(?!\w)", text)
        if quoted:
            yield "".join(quoted[-1])


def bare(text: str, *, case: bool = False) -> str:
    """Return a text folded, on one line, without quotes about it or a full stop behind."""
    found = re.sub(r"\s+", " ", folded(text, case=case)).strip(" \"'«»")
    return found.removesuffix(".").strip(" \"'«»")


def matches(text: str, phrase: str) -> list[tuple[int, int]]:
    """Return where a phrase stands as whole words; both folded."""
    pattern = rf"(?<!\w)(?<!\w-)(?<!\d[.,]){re.escape(phrase)}(?!\w|-\w|[.,]\d)"
    return [found.span() for found in re.finditer(pattern, text)]


def affirmed(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as whole words, and not denied; both folded."""
    return any(not denied(text[:start], text[end:]) for start, end in matches(text, phrase))


def denied(before: str, behind: str) -> bool:
    """Whether what stands between two folded texts is denied by them."""
    before = re.sub(r"\b(?:any|every)thing but\b", "not", before).replace("no doubt", "")
    return bool(_NEGATION.search(_CLAUSE.split(before)[-1]) or _DENIED.match(behind))


def numbers(text: str) -> list[Fraction]:
    """Return the numbers in a text; those in words where there are none in digits."""
    found = [_value(each) for each in _NUMBER.findall(folded(text))]
    if found:
        return [each for each in found if each is not None]
    total, values = None, []
    for word in re.findall(r"[a-z]+", folded(text)):
        if word in _TENS:
            total = 20 + 10 * _TENS.index(word)
        elif word in _ONES:
            values.append(Fraction((total or 0) + _ONES.index(word)))
            total = None
        elif total is not None:
            values.append(Fraction(total))
            total = None
    return values + ([Fraction(total)] if total is not None else [])


def _value(text: str) -> Fraction | None:
    with suppress(ValueError, ZeroDivisionError):
        parts = [Fraction(part.strip().replace(",", "").replace(" ", "")) for part in text.split("/")]
        return parts[0] / parts[1] if len(parts) == 2 else parts[0]
    return None


def final_number(text: str, asked: str) -> Fraction | None:
    """Return the number that an answer comes to; None where it names several, or none."""
    text = re.sub(r"\\boxed\{([^}]*)\}|[$€£]", r" \1", folded(text)).replace("\\", "")
    lines = [re.sub(r"^\s*[-*•]\s+|[ .*]+$", "", line) for line in text.split("\n") if numbers(line)]
    alone = {number for line in lines if _NUMBER.fullmatch(line) for number in numbers(line)}
    if len(alone) > 1:  # a list to choose from
        return None
    sentences = [each for line in lines for each in re.split(r"[.!?;](?=\s)", line) if numbers(each)]
    if not sentences:
        return None
    last = sentences[-1]
    either = rf"{_NUMBER.pattern}(?:\s*%)?(?:,| or|, or| and|, and|/| to)\s+{_NUMBER.pattern}"
    behind = re.split(r"=|\bis\b|\bare\b|\bequals\b|\bbe\b|\banswer\b|:", last)[-1]
    if re.search(either, behind) or " or " in behind or _NO_NUMBER.search(last):
        return None
    own = set(numbers(behind))
    if not own or len(own) > 1:
        every = set(numbers(last))
        own = every - set(numbers(asked)) or every
    return own.pop() if len(own) == 1 else None


def documents(text: str) -> list[tuple[Any, str]]:
    """Return the JSON documents of a text, each with what stands around it."""
    found = []
    decoder, at = json.JSONDecoder(object_pairs_hook=_once), 0
    while (opening := _OPENING.search(text, at)) is not None:
        try:
            value, end = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            at = opening.end()
            continue
        before, behind = text[: opening.start()], text[end:]
        if not behind[:1].isalnum() and not denied(folded(before), folded(behind)):
            found.append((value, before + " " + behind))
        at = end
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield parts of a text that may be a document, each with what stands around it."""
    inside = fences(text)
    if inside:
        for one in inside if len(inside) == 1 else ():
            yield one, _FENCE.sub(" ", text)
        return
    yield text, ""
    parts = re.split(r"\n\s*\n", text)
    first, _, rest = text.partition("\n")
    if rest and first.rstrip().endswith(":"):
        yield rest, first
    if len(parts) > 1:
        for index, part in enumerate(parts):
            yield part, "\n".join([*parts[:index], *parts[index + 1 :]])


def yaml_of(text: str) -> Any:
    """Return what a YAML text holds; None where it is none."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def rows_of(text: str) -> list[list[str]]:
    """Return the rows of a CSV text."""
    with suppress(csv.Error):
        rows = csv.reader(io.StringIO(text.strip()), skipinitialspace=True, strict=True)
        return [[cell.strip() for cell in row] for row in rows if row]
    return []


def code_of(text: str) -> Iterator[tuple[ast.Module, str, str]]:
    """Yield the Python in a text as a syntax tree, with its source and what stands around it."""
    inside = fences(text) or re.findall(r"\A`([^`\n]+)`\.?\Z", text)
    tried: Iterable[tuple[str, str]]
    if inside:
        tried = [("\n".join(inside), _FENCE.sub(" ", text))]
    else:
        lines = text.split("\n")
        starts = [i for i, line in enumerate(lines) if re.match(r"(def|class|import|from|async|@|[a-z_]\w* = )", line)]
        start = starts[0] if starts else 0
        ends = range(len(lines), start, -1)
        tried = (("\n".join(lines[start:end]), "\n".join(lines[:start] + lines[end:])) for end in ends)
    for source, around in tried:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            tree = ast.parse(source.strip())
            if tree.body:
                yield tree, source.strip(), around
                return


def same(value: Any, target: Any) -> bool:
    """Whether a parsed value equals another: texts folded, numbers by value, keys exactly, in any order."""
    if isinstance(target, bool) or target is None or isinstance(value, bool):
        return value is target
    if isinstance(target, int | float):
        return isinstance(value, int | float) and abs(value - target) < 1e-9
    if isinstance(target, str):
        return bare(str(value)) == bare(target) if isinstance(value, str) or not _plain(value) else False
    if isinstance(target, list):
        fits = isinstance(value, list) and len(value) == len(target)
        return fits and all(map(same, value, target))
    return isinstance(value, dict) and value.keys() == target.keys() and all(same(value[k], target[k]) for k in target)


def _plain(value: Any) -> bool:
    """Whether a value is one that JSON has; YAML makes dates of texts."""
    return value is None or isinstance(value, bool | int | float | list | dict)
