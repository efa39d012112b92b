"""Every check is attacked: what must fail fails, and right answers in an unusual form pass."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from xatlas import XatlasError
from xatlas.plugins.skills.checks import passes
from xatlas.plugins.skills.sandbox import holds
from xatlas.plugins.skills.tests import CATEGORIES, built_in, parse, read_tests

TESTS = built_in()
BY_ID = {test.id: test for test in TESTS}


def target_of(test):
    """Return an answer that passes, as plain as can be."""
    if test.right:
        return test.right[0]
    target = test.target[0] if isinstance(test.target, list) else test.target
    return target if isinstance(target, str) else json.dumps(target)


def bare_target(test):
    """Return the target itself where it is a text; else an answer that passes."""
    bare = {"phrase", "number", "exact", "choice"} & test.check.keys()
    return (min(test.targets, key=len) if test.target is not None else "") if bare else target_of(test)


def longer(answer):
    """Yield an answer with its last word or number grown into another."""
    end = max(i for i, letter in enumerate(answer) if letter.isalnum())
    start = next(i for i, letter in enumerate(answer) if letter.isalnum())
    more = "7" if answer[end].isdigit() else "ling"
    yield answer[: end + 1] + more + answer[end + 1 :]
    if answer[start].isdigit() or len(answer.split()) == 1:
        yield answer[:start] + ("3" if answer[start].isdigit() else "un") + answer[start:]


def options(test):
    """Yield all answers to choose from, listed."""
    short = [each for each in test.wrong if "\n" not in each]
    right = bare_target(test)
    if short and "\n" not in right:
        for order in ([right, *short], [*short, right], [short[0], right, *short[1:]]):
            for between in (", ", " or ", "\n", " / "):
                yield between.join(order)
            yield f"It could be {', '.join(order[:-1])} or {order[-1]}."
    if "choice" in test.check:
        yield ", ".join(test.check["choice"])
        yield "\n".join(f"{letter}) {words}" for letter, words in test.check["choice"].items())


def refusals(test):
    right = bare_target(test)
    yield f"I can't say that the answer is {right}"
    yield f"I'm sorry, but I cannot help with that: {right}"
    yield f"I don't know whether it is {right}"
    yield f"As an AI, I am unable to answer.\n\n{right}"
    if {"phrase", "number", "choice", "exact"} & test.check.keys():
        yield f"It is not {right}"
        yield f"The answer isn't {right}"
        yield f"Anything but {right}."
        yield f"{right} is wrong."
        yield f"No, never {right}" if right != "no" else ""
    if "json" in test.check:
        yield f"It is not {right}"
        yield f"x{right}x" if right[0] in "{[" else ""


def attacks(test):
    yield from test.wrong
    yield from ("", " \n", "...", "I cannot answer that.", "Sure! I'd be happy to help.", "```\n```")
    yield test.asked
    yield f"{test.asked}\n\n{test.asked}"
    for turn in test.messages:
        yield turn["content"]
        lines = [] if "choice" in test.check else turn["content"].split("\n")  # an option's line may be the answer
        yield from (line for line in lines if len(line.split()) > 3)
    if "declines" in test.check:
        return
    yield from refusals(test)
    if not {"all", "python"} & test.check.keys():
        yield from longer(bare_target(test))
        if "items" not in test.check:
            yield from options(test)
    if {"phrase", "number", "choice", "exact"} & test.check.keys():
        yield " ".join(map(str, range(101)))


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_attack_passes(category):
    got = [(test.id, answer) for test in built_in((category,)) for answer in attacks(test) if passes(test, answer)]
    assert not got, "\n".join(f"{name}: {answer!r}" for name, answer in got)


@pytest.mark.parametrize("category", CATEGORIES)
def test_right_answers_pass_in_whatever_form(category):
    lost = []
    for test in built_in((category,)):
        plain = target_of(test)
        forms = [*test.right, plain, f"  {plain}\n\n", f"\n{plain}"]
        if {"phrase", "number", "exact", "choice"} & test.check.keys():
            short = "length" in test.check
            forms += [] if short else [f"The answer is {plain}" if plain[0].isalnum() and " " not in plain else plain]
            forms += [f"**{plain}**", f"```\n{plain}\n```"] if "\n" not in plain and "`" not in plain else []
        lost += [(test.id, answer) for answer in forms if not passes(test, answer)]
    assert not lost, "\n".join(f"{name}: {answer!r}" for name, answer in lost)


def test_there_are_twenty_tests_of_each_category_and_many_right_answers():
    counts = Counter(test.category for test in TESTS)
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) >= 20
    assert sum(counts.values()) >= 280
    assert len({test.messages[-1]["content"] for test in TESTS}) > 280
    assert all(len(test.wrong) >= 2 for test in TESTS)
    assert sum(len(test.right) for test in TESTS) >= 300
    assert len(BY_ID) == len(TESTS)


def test_code_is_run_only_where_it_is_asked_for():
    test = next(test for test in TESTS if "cases" in test.check)  # is_even
    wrong = "def is_even(n):\n    return n % 2 == 1"
    assert passes(test, wrong)
    assert not passes(test, wrong, run_code=True)
    for each in TESTS:
        if "cases" in each.check:
            assert all(passes(each, answer, run_code=True) for answer in each.right), each.id


@pytest.mark.parametrize(
    "body",
    [
        "return open('/etc/passwd').read()",
        "import socket\n    return socket.socket()",
        "import os\n    return os.getpid()",
        "return ().__class__.__base__.__subclasses__()",
        "return '{0.__class__}'.format(n)",
        "while True:\n        pass",
        "return len([0] * 10 ** 9)",
        "return str(eval('1'))",
    ],
)
def test_code_can_do_nothing_but_compute(body):
    assert holds("def f(n):\n    return n * 2", "f", [[[2], 4]])
    assert not holds(f"def f(n):\n    {body}", "f", [[[2], 4]])


def test_a_process_that_gets_past_the_words_still_opens_nothing(monkeypatch):
    from xatlas.plugins.skills import sandbox

    monkeypatch.setattr(sandbox, "harmless", lambda tree: True)
    monkeypatch.setattr(sandbox, "MODULES", (*sandbox.MODULES, "socket", "os", "io"))
    for line in ("io.open('/etc/hostname').read()", "socket.socket()", "os.fork()"):
        source = (
            f"import io, os, socket\ndef f(n):\n    try:\n        {line}\n    except Exception:\n        return 'no'\n"
        )
        if "fork" not in line:  # the limit on processes does not bind every user
            assert holds(source, "f", [[[2], "no"]]), line


def test_tests_of_users_are_read_and_faults_named_by_line(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "category": "c", "prompt": "2 + 2?", "check": {"number": {}}, "target": 4}\n')
    (test,) = read_tests(path)
    assert passes(test, "2 + 2 = 4")
    for line, fault in (
        ('{"id": "b"', "line 2"),
        ('{"id": "a", "category": "c", "prompt": "x", "check": {"number": {}}, "target": 4}', "twice"),
        ('{"id": "b", "category": "c", "prompt": "x", "check": {"numbre": {}}, "target": 4}', "number"),
        ('{"id": "b", "category": "c", "prompt": "x", "check": {"phrase": {}}}', "target"),
        ('{"id": "b", "category": "c", "check": {"phrase": {}}, "target": "x"}', "prompt"),
        ('{"id": "b", "category": "c", "prompt": "x", "check": {"phrase": {}}, "target": "x", "more": 1}', "more"),
    ):
        path.write_text('{"id": "a", "category": "c", "prompt": "x", "check": {"number": {}}, "target": 4}\n' + line)
        with pytest.raises(XatlasError, match=fault):
            read_tests(path)


@pytest.mark.parametrize(
    ("check", "target", "answer", "right"),
    [
        ({"phrase": {}}, "Paris", "The capital of France is Paris.", True),
        ({"phrase": {}}, "Paris", "It is not Rome but Paris.", True),
        ({"phrase": {}}, "Paris", "<think>Rome? No.</think>Paris", True),
        ({"phrase": {}}, "Paris", "<think>It is Paris, or", False),
        ({"phrase": {}}, "Paris", "Anywhere but Paris-like towns", False),
        ({"phrase": {}}, "s", "The word contains the letter s? No idea, perhaps such as this.", False),
        ({"number": {}}, 1234, "1,234", True),
        ({"number": {}}, 0.75, "3/4", True),
        ({"number": {}}, 7, "7.5", False),
        ({"number": {}}, 7, "5, 6, 7", False),
        ({"number": {}}, 7, "17", False),
        ({"number": {"within": 0.01}}, 3.14, "3.1416", True),
        ({"json": {}}, {"a": 1}, '{"a": 1} or {"a": 2}', False),
        ({"json": {}}, {"a": 1}, '{"a": true}', False),
        ({"json": {}}, {"a": 1}, '{"a": 1, "a": 1}', False),
    ],
)
def test_checks_by_hand(check, target, answer, right):
    test = parse({"id": "x", "category": "c", "prompt": "Which one is it?", "check": check, "target": target})
    assert passes(test, answer) == right
