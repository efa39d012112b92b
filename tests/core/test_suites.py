"""Suites on disk: read back unchanged, hashed by content, refused with line numbers."""

from __future__ import annotations

import json
import os

import pytest

from xatlas.config import find_suite
from xatlas.errors import XatlasError
from xatlas.suites import Prompt, Suite, read_suite, write_suite

GOOD = {"id": "a", "family": "f", "text": "one two", "target": " three"}


def written(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_what_is_written_is_read_back_with_fields_of_its_own(tmp_path):
    full = Prompt("a", "f", "über x", " t", " u", "über y", (5, 6), "t1", {"note": [1, {"deep": None}]})
    suite = Suite("mine", (full, Prompt("b", "g", "plain")))
    write_suite(suite, tmp_path / "mine.jsonl")
    again = read_suite(tmp_path / "mine.jsonl")
    assert again == suite
    assert again.hash == suite.hash
    assert again.families == ("f", "g")


def test_the_hash_sees_every_field_and_the_order_but_not_the_name():
    base = (Prompt("a", "f", "x", target="t"), Prompt("b", "f", "y"))
    suite = Suite("one", base)
    assert Suite("two", base).hash == suite.hash
    changed = [Prompt("a", "f", "x", target="u"), Prompt("a", "f", "x", target="t", extra={"k": 1})]
    assert len({suite.hash, Suite("one", base[::-1]).hash, *(Suite("one", (p, base[1])).hash for p in changed)}) == 4


def test_empty_lines_are_passed_over_but_counted(tmp_path):
    path = written(tmp_path / "s.jsonl", GOOD, "", "not json")
    with pytest.raises(XatlasError, match=r"s\.jsonl, line 3: not JSON"):
        read_suite(path)
    assert len(read_suite(written(path, "", GOOD, ""))) == 1


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("[1]", "one JSON object per line is needed, not list"),
        ({"id": "b", "family": "f"}, "'text' must be a text"),
        (GOOD | {"id": ""}, "'id' must be a text that is not empty"),
        (GOOD | {"id": 3}, "'id' must be a text"),
        (GOOD | {"target": ""}, "'target' must be a text that is not empty, or left out"),
        (GOOD | {"text": "one "}, "'text' ends in a space; begin the target with it"),
        ({"id": "b", "family": "f", "text": "x", "foil": "y"}, "a foil needs a target"),
        (GOOD | {"foil": " three"}, "target and foil are the same"),
        (GOOD | {"subject": [3, 99]}, "0 <= start < end <= 7"),
        (GOOD | {"subject": [2, 2]}, "'subject' must be"),
        (GOOD | {"subject": [True, 2]}, "'subject' must be"),
        (GOOD | {"subject": "0-2"}, "'subject' must be"),
        (GOOD, "the id 'a' stands already in line 1"),
        (GOOD | {"family": "g"}, "the id 'a' stands already in line 1"),
        (GOOD | {"id": "a\0"}, "'id' holds a NUL character"),
        (GOOD | {"id": "b", "text": "\ud83d"}, "'text' holds half of a surrogate pair"),
        (GOOD | {"id": "b", "template": "\udc00"}, "'template' holds half of a surrogate pair"),
        (GOOD | {"id": "b", "note": ["\udc00"]}, "a field beyond the known ones can't be kept"),
        (GOOD | {"family": "f" * 2000}, "'family' has 2000 characters"),
        (GOOD | {"id": "b", "corrupt_text": "one "}, "'corrupt_text' ends in a space"),
        ('{"id": "b", "family": "f", "text": "x", "note": NaN}', "can't be kept"),
        ('{"id": "b", "family": "f", "text": "x", "note": -1e999}', "can't be kept"),
        ('{"id": "b", "family": "f", "text": "x", "text": "y"}', "the field 'text' stands twice"),
        ('{"id": "b", "family": "f", "text": "x", "note": ' + "9" * 5000 + "}", "a number has too many digits"),
        ('{"id": "b", "family": "f", "text": "x", "note": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"id": "b", "family": "f", "text": "x", "note": ' + "[" * 300 + "]" * 300 + "}", "nested more than 100 deep"),
    ],
)
def test_a_line_that_is_off_is_named_by_its_number(tmp_path, record, told):
    with pytest.raises(XatlasError, match=rf"s\.jsonl, line 2: .*{told}"):
        read_suite(written(tmp_path / "s.jsonl", GOOD, record))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\n"])
def test_only_a_newline_ends_a_line(tmp_path, character):
    suite = Suite("s", (Prompt("a", "f", f"one{character}two"), Prompt("b", "f", "x")))
    write_suite(suite, tmp_path / "s.jsonl")
    assert read_suite(tmp_path / "s.jsonl") == suite


def test_a_byte_order_mark_and_carriage_returns_are_passed_over(tmp_path):
    record = json.dumps(GOOD).encode()
    (tmp_path / "s.jsonl").write_bytes(b"\xef\xbb\xbf" + record + b"\r\n\r\n")
    assert [prompt.id for prompt in read_suite(tmp_path / "s.jsonl")] == ["a"]


def test_files_that_are_no_suite_are_one_clear_line(tmp_path):
    with pytest.raises(XatlasError, match=r"cannot read the suite .*missing"):
        read_suite(tmp_path / "missing.jsonl")
    with pytest.raises(XatlasError, match="holds no prompt"):
        read_suite(written(tmp_path / "empty.jsonl", ""))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(XatlasError, match="cannot read the suite"):
        read_suite(tmp_path / "binary.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for endless in ("/dev/zero", tmp_path / "pipe.jsonl", tmp_path):
        with pytest.raises(XatlasError, match="it is no file"):
            read_suite(endless)


def test_names_that_no_file_can_have_are_unknown_suites():
    for name in ("n" * 300, "a\0b"):
        with pytest.raises(XatlasError, match="unknown suite"):
            find_suite(name)
    with pytest.raises(XatlasError, match="cannot read the suite"):
        find_suite("n" * 300 + ".jsonl")


def test_suites_made_in_python_are_checked_too():
    with pytest.raises(XatlasError, match="suite 'none' is empty"):
        Suite("none", ())
    with pytest.raises(XatlasError, match="has the id 'a' twice"):
        Suite("s", (Prompt("a", "f", "x"), Prompt("a", "f", "y")))
    with pytest.raises(XatlasError, match="has the id 'a' twice"):
        Suite("s", (Prompt("a", "f", "x"), Prompt("b", "f", "x"), Prompt("a", "g", "y")))
    with pytest.raises(XatlasError, match=r"the suite's name 'a.*' holds a NUL"):
        Suite("a\0", (Prompt("a", "f", "x"),))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id": "a\0b"}, "'id' holds a NUL character"),
        ({"family": "f\0"}, "'family' holds a NUL character"),
        ({"corrupt_text": "\ud800"}, "'corrupt_text' holds half"),
        ({"id": 3}, "'id' must be a text"),
        ({"subject": (0, 9)}, "'subject' must be"),
        ({"foil": "y"}, "a foil needs a target"),
        ({"extra": {"id": "b"}}, "'id' is no field beyond the known ones"),
        ({"extra": {"note": float("nan")}}, "can't be kept"),
        ({"extra": {"note": {1, 2}}}, "can't be kept"),
        ({"extra": {"note": 10**5000}}, "can't be kept"),
    ],
)
def test_a_prompt_that_a_result_cannot_hold_is_refused_when_it_is_made(fields, told):
    """A result file ends texts at NUL: of two ids one would be left."""
    with pytest.raises(XatlasError, match=told):
        Prompt(**({"id": "a", "family": "f", "text": "x"} | fields))


def test_a_part_of_a_suite_is_the_first_templates_of_each_family_in_file_order(tmp_path):
    made = [
        ("a1", "a", "x"),
        ("b1", "b", None),
        ("a2", "a", "y"),
        ("a3", "a", "x"),
        ("b2", "b", None),
        ("a4", "a", "z"),
    ]
    whole = Suite("mine", tuple(Prompt(name, family, "x", template=template) for name, family, template in made))
    path = tmp_path / "mine.jsonl"
    write_suite(whole, path)
    parts = {n: find_suite(f"{path}[{n}]") for n in (1, 2, 3)}
    assert [[prompt.id for prompt in parts[n]] for n in (1, 2)] == [["a1", "b1", "a3"], ["a1", "b1", "a2", "a3", "b2"]]
    assert [part.name for part in parts.values()] == ["mine[1]", "mine[2]", "mine"]
    assert len({part.hash for part in parts.values()}) == 3
    assert parts[3] == whole
    assert find_suite("quick[2]").families == find_suite("quick").families
    for n in (0, 4, -1):
        with pytest.raises(XatlasError, match=rf"suite 'mine\[{n}\]': .* give a whole number from 1 to 3\."):
            find_suite(f"{path}[{n}]")
