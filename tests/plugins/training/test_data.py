"""What is trained on: families, files in three forms, and the check of answers."""

from __future__ import annotations

import json

import pytest

import xatlas
from xatlas import XatlasError, manager, testing
from xatlas.plugins.training.data import HELD_OUT, TRAIN, answers, named_by_contents, split


@pytest.fixture(scope="module")
def model():
    return xatlas.load("qwen-mini")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_families_are_split_by_their_suites(model):
    taught, held = split(model, "transfer")
    assert len(held) >= 100
    assert {e.family for e in taught} == {e.family for e in held}
    assert not {e.prompt for e in taught} & {e.prompt for e in held}
    assert all(e.response and e.rejected and e.prompt[0] == model.reader.first_token for e in taught)
    assert {e.family for e in split(model, "letter_doubling")[0]} == {"letter_doubling"}
    with pytest.raises(XatlasError, match=r"unknown family 'leter_doubling'; did you mean 'letter_doubling'"):
        split(model, "leter_doubling")


def test_files_hold_completions_or_preferences(model, tmp_path):
    rows = [{"prompt": f"The number {n} is", "completion": f" {n}"} for n in range(20)]
    taught, held = split(model, write(tmp_path / "a.jsonl", rows))
    assert (len(taught), len(held)) == (18, 2)
    assert taught[0].response[-1] == model.tokenizer.eos_token_id
    assert model.tokenizer.decode(taught[3].response[:-1]) == " 3"
    better = [{"prompt": "Say", "chosen": " yes", "rejected": " no"}] * 3
    taught, held = split(model, write(tmp_path / "b.jsonl", better))
    assert (len(taught), len(held)) == (2, 1)
    assert taught[0].rejected != taught[0].response


def test_messages_become_one_example_for_each_reply(tmp_path):
    model = testing.tiny_model(manager.adapters()["LlamaForCausalLM"], "LlamaForCausalLM")
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b")) * 2]
    path = write(tmp_path / "c.jsonl", [{"messages": turns}] * 5)
    with pytest.raises(XatlasError, match="messages need a chat template"):
        split(model, path)
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    taught, held = split(model, path)
    assert (len(taught), len(held)) == (8, 2)  # no turn is trained on of which another is held out
    assert model.tokenizer.decode(taught[1].prompt) == "<user>a;<assistant>b;<user>a;<assistant>"
    assert model.tokenizer.decode(taught[1].response) == "b;"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"text": "only"}] * 3, "row 0 does not fit"),
        ([{"prompt": "a"}] * 3, "row 0 does not fit: a row holds prompt and completion"),
        ([{"prompt": "a", "completion": " b"}], "holds 1 rows"),
        ([["a"]], "line 1: one JSON object"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(model, tmp_path, rows, what):
    with pytest.raises(XatlasError, match=what):
        split(model, write(tmp_path / "d.jsonl", rows))


def test_an_answer_is_the_beginning_of_a_text_and_ends_as_a_word():
    assert answers(" good. And", " good")
    assert answers("good", " good")
    assert not answers(" goodness", " good")
    assert not answers(" not good", " good")
    assert not answers("anything", "")


def test_data_are_named_by_what_they_hold(model, tmp_path, monkeypatch):
    """Else results of a file that was edited, or of suites that another version ships, would be taken for these."""
    rows = [{"prompt": "a", "completion": " b"}] * 3
    first, same = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows)
    before, families = named_by_contents(first), named_by_contents("letter_doubling")
    assert named_by_contents(same) == before
    assert split(model, families) == split(model, "letter_doubling")  # as results and their commands name them
    write(tmp_path / "a.jsonl", rows[1:])
    assert named_by_contents(first) != before
    suites = manager.suites()
    for name in (TRAIN, HELD_OUT):
        monkeypatch.setattr(manager, "suites", lambda name=name: suites | {name: suites["quick"]})
        assert named_by_contents("letter_doubling") != families
