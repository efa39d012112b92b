"""Answers worked out from the text alone, by other means than the generators: a second opinion on targets and foils."""

import contextlib
import io
import re

from xatlas.plugins.suites.words import COUNTRIES, OPPOSITES

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def arithmetic(text: str) -> str:
    first, second = map(int, re.findall(r"\d+", text))
    minus = "minus" in text or " - " in text
    return str(first - second if minus else first + second)


def factual_recall(text: str) -> str:
    row = next(row for row in COUNTRIES if row[0] in text)
    if "capital" in text:
        return row[1]
    return row[2] if "language" in text else row[3]


def copying(text: str) -> str:
    """The word after the last occurrence of the final word but one."""
    words = re.findall(r"[a-z]+", text)
    last = len(words) - 1
    earlier = max(i for i in range(last) if words[i] == words[last])
    return words[earlier + 1]


def delimiter_tracking(text: str) -> str:
    stack: list[str] = []
    for sign in text:
        if sign in PAIRS:
            stack.append(PAIRS[sign])
        elif sign in PAIRS.values():
            assert stack.pop() == sign
    return stack[-1]


def json_schema(text: str) -> str:
    types = dict(re.findall(r'"?(\w+)"?: "?(string|number|boolean|array|object|null)', text))
    tail = re.split(r"[}\]]|\. ", text, maxsplit=1)[1]
    (asked,) = [word for word in re.findall(r"\w+", tail) if word in types]
    return types[asked]


def code_syntax(text: str) -> str:
    """The one keyword that lets Python parse the line, given a fitting rest."""
    import ast

    rests = {"import": "import c", "as": "as c", "in": "in d", "else": "else d"}
    fits = [word for word, rest in rests.items() if any(_parses(ast, f"{text} {rest}{end}") for end in ENDS)]
    if re.search(r"with \w+$", text):  # `with x in d:` parses too, but enters a truth value
        fits.remove("in")
    assert len(fits) == 1, (text, fits)
    return fits[0]


ENDS = ("", ": pass", "]", " for e in d]")


def _parses(ast, source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def code_semantics(text: str) -> str:
    return _printed(text.removesuffix(" # prints"))


def _printed(source: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(source, {})  # our own generated text
    return out.getvalue().strip()


def dead_code(text: str) -> str:
    if text.endswith("prints"):
        return _printed(text.removesuffix(" # prints"))
    if "def " in text:
        return "dead" if "return" in text else "live"
    condition = re.search(r"(?:if|while) (.+):", text)
    assert condition
    return "live" if eval(condition[1]) else "dead"


def variable_renaming(text: str) -> str:
    names = dict(re.findall(r"(\w+) (?:to|->|renamed to) (\w+)", text))
    asked = re.search(r"(?:becomes|name of (\w+) is)", text)
    if asked and asked[1]:
        return names[asked[1]]
    if len(names) == 2:
        return names[re.findall(r": (\w+) becomes", text)[-1]]
    return next(iter(names.values()))


def constant_folding(text: str) -> str:
    source = re.split(r" folds to ", text)[0].split(": ")[-1].split("\n")[-1]
    return str(eval(re.split(r"^\w = |^\w \+ ", source)[1]))


def string_decoding(text: str) -> str:
    if "first letter" in text:
        return re.findall(r"of (\w+) is", text)[0][0]
    if "initials" in text:
        return text.split(" in initials")[0].split()[-1][0]
    if "->" in text:
        return chr(ord(re.findall(r"(\w) ->", text)[-1]) + 1)
    return re.findall(r"\b\w\b", text)[-5]


def instruction_following(text: str) -> str:
    ordinal = re.search(r"\b(first|second|third)\b", text)
    if ordinal:
        words = re.search(r"(\w+), (\w+), (\w+)", text)
        assert words
        return words[("first", "second", "third").index(ordinal[1]) + 1]
    if "It is" in text:
        answers = dict(re.findall(r"[Oo]n (\w+) say (\w+)", text))
        return answers[re.findall(r"It is (\w+)", text)[0]]
    return re.findall(r"[sS]ay (\w+)", text)[0]


def pairs(text: str) -> str:
    """The value beside the first mention of the key that is mentioned last."""
    words = re.findall(r"\w+", re.sub(r"^(Pairs:|Look up:|Table:|Given:) |\. Found$|Find | and\b", "", text))
    return words[words.index(words[-1]) + 1]


def opposite_recall(text: str) -> str:
    both = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    asked = [word for word in re.findall(r"\w+", text) if word in both]
    return both[asked[-1]]


def letter_doubling(text: str) -> str:
    return re.findall(r"\b\w\b", text)[-3]


SOLVERS = {
    solve.__name__: solve
    for solve in (
        arithmetic,
        factual_recall,
        copying,
        delimiter_tracking,
        json_schema,
        code_syntax,
        code_semantics,
        dead_code,
        variable_renaming,
        constant_folding,
        string_decoding,
        instruction_following,
        pairs,
        opposite_recall,
        letter_doubling,
    )
}
