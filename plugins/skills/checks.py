"""The checks: pure functions of an answer; all that a test names must hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from xatlas.plugins.skills import answers
from xatlas.plugins.skills.answers import affirmed, bare, declines, folded, matches, same

if TYPE_CHECKING:
    from xatlas.plugins.skills.tests import Test

#: A wrong answer of more words is no phrase that a right answer must not hold.
_PHRASE_WORDS = 6


def passes(test: Test, answer: str, *, run_code: bool = False) -> bool:
    """Tell whether an answer passes a test: every check that the test names holds for what the answer says.

    An answer that is empty, repeats the prompt or declines passes none (a test of declining says ``declines``).
    """
    if "verbatim" in test.check:  # the raw continuation of a text, in which nothing is to be parsed
        return answer == str(test.target)
    text = answers.said(answer, test.asked)
    if not any(letter.isalnum() for letter in text):
        return False
    if not _STRUCTURED & test.check.keys() and "declines" not in test.check and declines(_without(text, test)):
        return False
    return all(_CHECKS[name](text, value, test) for name, value in test.check.items() if name != "cases") and (
        not run_code or "cases" not in test.check or _cases_hold(text, test)
    )


def _without(text: str, test: Test) -> str:
    """Return an answer without the target where that is a text of several words: what it says is not the model's."""
    text = folded(text)
    for target in test.targets if "exact" in test.check else ():
        text = text.replace(folded(target), " ") if " " in target else text
    return text


def _alternatives(item: str | Sequence[str]) -> list[str]:
    return [folded(each) for each in ([item] if isinstance(item, str) else item)]


def _phrase(text: str, _: Any, test: Test) -> bool:
    """The target stands in the answer as words, not denied, and no wrong answer beside it."""
    return _all(text, [test.targets], test) and _no_wrong(text, test)


def _no_wrong(text: str, test: Test) -> bool:
    text = folded(text)
    for target in sorted(_alternatives(test.targets), key=len, reverse=True):
        for start, end in reversed(matches(text, target)):
            text = text[:start] + "§" + text[end:]
    wrong = [folded(each) for each in test.wrong if 0 < len(each.split()) <= _PHRASE_WORDS]
    wrong = [
        each.rstrip(".") for each in wrong if not any(matches(each, target) for target in map(folded, test.targets))
    ]
    return not any(affirmed(text, each) for each in wrong if each)


def _all(text: str, items: Sequence[str | Sequence[str]], _: Test) -> bool:
    """Of every item one of the alternatives stands in the answer as words, not denied."""
    text = folded(text)
    return all(any(affirmed(text, each) for each in _alternatives(item)) for item in items)


def _none(text: str, items: Sequence[str], _: Test) -> bool:
    """None of the phrases stands in the answer as words."""
    text = folded(text)
    return not any(matches(text, folded(each)) for each in items)


def _choice(text: str, options: Mapping[str, str], test: Test) -> bool:
    """The answer chooses the target's letter, or names what stands behind it; no other."""
    target, plain = test.targets[0], folded(text, case=True)
    letters = "".join(options)
    found = set(re.findall(rf"(?<![\w'])([{letters}])(?=[).:,;\]]|\s*$|\s+(?:is|or|and|-)\b)", plain, re.MULTILINE))
    found |= set(re.findall(rf"(?i:answer|option|choice)(?i: is)?:?\s*\(?([{letters}])\b", plain))
    low = folded(text)
    named = {letter for letter, words in options.items() if affirmed(low, folded(words))}
    no = re.search(rf"(?:\b(?:not|never|but)|n't)\s+(?:option |choice )?\(?{target.lower()}\b", low)
    no = no or re.search(rf"\b{target.lower()}\)? (?:is|was) (?:not|wrong|incorrect|false)\b", low)
    return bool(found | named) and found <= {target} and named <= {target} and not no


def _number(text: str, about: Mapping[str, float], test: Test) -> bool:
    """The number that the answer comes to is the target."""
    found = answers.final_number(text, test.asked)
    target = Fraction(str(test.target))
    return found is not None and abs(found - target) <= Fraction(str(about.get("within", 0)))


def _exact(text: str, about: Mapping[str, bool], test: Test) -> bool:
    """The answer proper is the target, letter by letter; without ``case``, in whatever case."""
    case = about.get("case", False)
    wanted = {bare(each, case=case) for each in test.targets}
    return any(bare(each, case=case) in wanted for each in answers.unwrapped(text))


def _regex(text: str, pattern: str, _: Test) -> bool:
    """The answer proper matches as a whole."""
    forms = [form for each in answers.unwrapped(text) for form in (each.strip(), re.sub(r"\*\*|`", "", each).strip())]
    return any(re.fullmatch(pattern, form) for form in forms)


def _items(text: str, about: Mapping[str, bool], test: Test) -> bool:
    """The answer lists the target's items and no others, in their order if ``ordered``."""
    wanted = [bare(each) for each in test.targets]
    for part in answers.unwrapped(text):
        lines = [line for line in part.split("\n") if line.strip()]
        split = lines if len(lines) > 1 else re.split(r",\s*(?:and\s+)?|\s+and\s+|;\s*", part)
        found = [bare(re.sub(r"^\s*(?:[-*•]|\(?\d+[.)])\s+", "", each)) for each in split]
        if found == wanted if about.get("ordered") else sorted(found) == sorted(wanted):
            return True
    return False


def _length(text: str, limits: Mapping[str, Sequence[int]], _: Test) -> bool:
    """How many words, sentences, lines or characters the answer has lies within the limits."""
    counts = {
        "words": len(re.findall(r"\w+(?:['’.,-]\w+)*", text)),
        "sentences": len(re.findall(r"[^.!?\s][^.!?]*(?:[.!?]+(?=\s|$|[\"')])|$)", text.strip())),
        "lines": sum(bool(line.strip()) for line in text.split("\n")),
        "characters": len(text),
    }
    return all(low <= counts[what] <= high for what, (low, high) in limits.items())


def _json(text: str, schema: Any, test: Test) -> bool:
    """The answer holds one JSON document: the target, or one that fits the schema; with ``only``, nothing else."""
    found = answers.documents(text)
    if len(found) != 1 or declines(found[0][1]):
        return False
    (value, around), wanted = found[0], schema if isinstance(schema, Mapping) else {}
    if wanted.get("only") and re.sub(r"```(?:json)?|\s", "", around):
        return False
    fits = same(value, test.target) if test.target is not None else True
    return fits and fits_schema(value, wanted.get("schema", {}))


_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip


def fits_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Tell whether a value fits a JSON schema of the keywords that the tests use."""
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if "enum" in schema and not any(same(value, each) for each in schema["enum"]):
        return False
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, str):
        return bool(value.strip()) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        within = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        apart = not schema.get("uniqueItems") or len({bare(str(each)) for each in value}) == len(value)
        return within and apart and all(fits_schema(each, schema.get("items", {})) for each in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        whole = set(schema.get("required", ())) <= value.keys()
        closed = schema.get("additionalProperties", True) or value.keys() <= known.keys()
        return whole and closed and all(fits_schema(value[name], known[name]) for name in known if name in value)
    return True


def _yaml(text: str, _: Any, test: Test) -> bool:
    """The answer holds the target as YAML."""
    return any(
        same(answers.yaml_of(part), test.target) and not declines(around) for part, around in answers.blocks(text)
    )


def _csv(text: str, _: Any, test: Test) -> bool:
    """The answer holds the target's rows as CSV."""
    return any(
        same(answers.rows_of(part), [list(map(str, row)) for row in test.target]) and not declines(around)
        for part, around in answers.blocks(text)
    )


def _python(text: str, about: Mapping[str, Any], test: Test) -> bool:
    """The answer holds Python that defines what is asked for, or is the expression that is; on the syntax tree."""
    for tree, _, around in answers.code_of(text):
        if declines(around):
            return False
        if "expression" in about:
            wanted = [ast.dump(ast.parse(each, mode="eval").body) for each in about["expression"]]
            last = tree.body[-1]
            value = getattr(last, "value", None) if isinstance(last, ast.Expr | ast.Assign) else None
            return len(tree.body) == 1 and value is not None and ast.dump(value) in wanted
        return _defines(tree, about)
    return False


def _defines(tree: ast.Module, about: Mapping[str, Any]) -> bool:
    kind = ast.ClassDef if "class" in about else (ast.FunctionDef, ast.AsyncFunctionDef)
    name = about.get("class", about.get("function"))
    found = [node for node in tree.body if isinstance(node, kind) and node.name == name]
    if len(found) != 1:
        return False
    node: Any = found[0]
    used = features(node)
    if "class" not in about:
        given = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        body = ast.Module(body=node.body, type_ignores=[])
        read = {each.id for each in ast.walk(body) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
        results = [each for each in ast.walk(body) if isinstance(each, ast.Return | ast.Yield | ast.YieldFrom)]
        worth = [
            each for each in results if each.value is not None and not isinstance(each.value, ast.Name | ast.Constant)
        ]
        stored = {each.id for each in ast.walk(body) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        named = [each for each in results if isinstance(each.value, ast.Name) and each.value.id in stored]
        if len(given) != about["args"] or not set(given) <= read or not (worth or named or len(results) > 1):
            return False
    uses = all(any(each in used for each in group) for group in about.get("uses", ()))
    return uses and not any(each in used for each in about.get("avoids", ()))


def features(tree: ast.AST) -> set[str]:
    """Return what a syntax tree is made of: names of nodes and operators, ``call:NAME``, ``def:NAME``, ``const:…``."""
    found = set()
    for node in ast.walk(tree):
        found.add(type(node).__name__)
        if isinstance(node, ast.Call):
            found.add(f"call:{getattr(node.func, 'attr', getattr(node.func, 'id', ''))}")
        if isinstance(node, ast.FunctionDef):
            found.add(f"def:{node.name}")
        if isinstance(node, ast.Constant):
            found.add(f"const:{node.value!r}")
        if isinstance(node, ast.Attribute):
            found.add(f"attribute:{node.attr}")
    return found


def _cases_hold(text: str, test: Test) -> bool:
    from xatlas.plugins.skills.sandbox import holds

    return any(
        holds(source, test.check["python"]["function"], test.check["cases"]) for _, source, _ in answers.code_of(text)
    )


def _declines(text: str, words: Sequence[str], _: Test) -> bool:
    """The answer says, in words such as those given, that the question can't be answered."""
    low = folded(text)
    return any(matches(low, folded(each)) for each in words)


_CHECKS: dict[str, Callable[[str, Any, Test], bool]] = {
    "phrase": _phrase,
    "all": _all,
    "none": _none,
    "choice": _choice,
    "number": _number,
    "exact": _exact,
    "regex": _regex,
    "items": _items,
    "length": _length,
    "json": _json,
    "yaml": _yaml,
    "csv": _csv,
    "python": _python,
    "declines": _declines,
}
_STRUCTURED = {"json", "yaml", "csv", "python"}
#: Names of the checks that a test may ask for.
CHECKS = (*_CHECKS, "cases", "verbatim")
