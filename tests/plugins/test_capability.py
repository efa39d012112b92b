"""The probes that ask: answers are kept, judged and resumed; what is removed is removed at every step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref
import torch
from tokenizers.processors import TemplateProcessing

from xatlas import XatlasError, load, manager
from xatlas.architectures import minis
from xatlas.contracts.probe import Inputs
from xatlas.plugins.ablated_capability import AblatedCapability
from xatlas.plugins.capability import Capability
from xatlas.plugins.qualitative import Qualitative, numbers, prompts
from xatlas.plugins.skills.asking import Asked, answer_all, asked, plain
from xatlas.plugins.speed import GenerationSpeed
from xatlas.schema import notes, validate
from xatlas.testing import CountingCheckpoint, byte_tokenizer, tiny_model, tiny_suite

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TESTS = [
    {"id": "a", "category": "one", "prompt": "2 + 2?", "check": {"number": {}}, "target": 4, "tokens": 5},
    {"id": "b", "category": "one", "prompt": "Say it.", "check": {"regex": "(?s).*"}, "tokens": 6},
    {"id": "c", "category": "two", "prompt": "x" * 400, "check": {"phrase": {}}, "target": "x", "tokens": 5},
]


@pytest.fixture(scope="module")
def model():
    found = tiny_model(manager.adapters()["Lfm2ForCausalLM"])
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, TESTS)))
    return str(path)


def measured(probe, model, checkpoint=None):
    found = probe.measure(model, tiny_suite(), Inputs(**({"checkpoint": checkpoint} if checkpoint else {})))
    validate(found, probe, model)
    return found


def test_answers_are_kept_with_the_prompt_as_run(model, own):
    found = measured(Capability(tests=own, chat="both"), model)
    assert found["passed"].dims == ("test",)
    assert list(found["test"].values[:2]) == ["a (template)", "b (template)"]
    assert found["text"].values[0] == "<user>2 + 2?</><assistant>"
    assert found["text"].values[3] == "User: 2 + 2?\nAssistant:"
    assert list(found["category"].values) == ["one", "one", "two"] * 2
    assert np.isnan(found["passed"].values[[2, 5]]).all()
    assert set(notes(found, "absent")) == {"test=c (template)", "test=c (plain)"}
    ids = model.tokenizer(str(found["text"].values[0]), add_special_tokens=False)["input_ids"]
    tokens = list(ids)
    for _ in range(5):
        tokens.append(int(ref.logits(model.model, tokens)[-1].argmax()))
    wanted = model.tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True)
    if found["stop_reason"].values[0] == "length":
        assert found["answer"].values[0] == wanted


def test_a_question_is_asked_where_its_answer_fits_the_context(model):
    most = model.reader.context
    questions = [Asked(f"{n}", "x", (5,) * (most - n), 3, "plain") for n in (2, 3)]
    assert [each.stop_reason == "context" for each in answer_all(model, questions, Inputs())] == [True, False]


def test_a_template_writes_the_first_token_itself():
    tokenizer = byte_tokenizer()
    first = [(tokenizer.bos_token, tokenizer.bos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=first)
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    held = SimpleNamespace(tokenizer=tokenizer, reader=SimpleNamespace(bos="native", first_token=None))
    for chat in ("template", "plain"):
        (one,) = asked(held, [("a", [{"role": "user", "content": "Hi"}], 5)], chat)
        assert one.ids.count(tokenizer.bos_token_id) == 1


def test_a_run_goes_on_after_the_last_test(model, own, monkeypatch):
    kept = CountingCheckpoint()
    whole = measured(Capability(tests=own), model, kept)
    assert len(kept.parts) == 2  # the third is too long to be asked
    del kept.parts[next(iter(kept.parts))]
    seen = []
    from xatlas.model import generation

    plainly = generation.continue_batch
    monkeypatch.setattr(generation, "continue_batch", lambda m, p, n: seen.extend(p) or plainly(m, p, n))
    again = measured(Capability(tests=own), model, kept)
    assert len(seen) == 1
    assert again.equals(whole)


def test_the_key_depends_on_what_the_tests_hold(own, tmp_path):
    first = Capability(tests=own).canonical_parameters()["tests"]
    other = tmp_path / "moved.jsonl"
    other.write_text("\n".join(map(json.dumps, TESTS)))
    assert Capability(tests=str(other)).canonical_parameters()["tests"] == first
    for rows in (TESTS[:2], [TESTS[0] | {"target": 5}, *TESTS[1:]]):
        other.write_text("\n".join(map(json.dumps, rows)))
        assert Capability(tests=str(other)).canonical_parameters()["tests"] != first
    with pytest.raises(XatlasError, match="category"):
        Capability(tests=own, categories=("three",)).canonical_parameters()


@pytest.mark.parametrize("name", ["lfm2-mini", "qwen-mini", "smollm2-mini"])
def test_a_miniature_passes_of_a_suite_what_its_card_says(name):
    card = json.loads((Path(minis.__file__).parent / name / "card.json").read_text())
    found = measured(Capability(tests="standard"), load(name, dtype="float32"))
    shares = found["passed"].groupby("category").mean()
    wanted = {family: row["accuracy"] for family, row in card["evaluation"]["families"].items()}
    # one prompt of forty may flip between machines
    assert dict(zip(shares["category"].values, shares.values, strict=True)) == pytest.approx(wanted, abs=0.026)


def test_what_is_removed_is_removed_at_every_step(model, own):
    kept = CountingCheckpoint()
    found = measured(AblatedCapability(tests=own, per_category=0, layers=(0, 1), heads=("1.0",)), model, kept)
    assert kept.found == []  # no condition takes another's answers
    assert list(found["condition"].values)[:3] == ["none", "layer 0", "layer 0 (random)"]
    assert list(found["condition"].values)[-2:] == ["layer 1 head 0", "layer 1 head 0 (random)"]
    clean = measured(Capability(tests=own), model)
    assert list(found["answer"].sel(condition="none").values) == list(clean["answer"].values)
    edits = [(0, kind, torch.zeros_like) for kind in ("operator_out", "mlp_out")]
    ids = model.tokenizer(str(found["text"].values[1]), add_special_tokens=False)["input_ids"]
    tokens = list(ids)
    for _ in range(6):
        tokens.append(int(ref.logits(model.model, tokens, edits)[-1].argmax()))
    wanted = model.tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True)
    assert wanted.startswith(str(found["answer"].sel(condition="layer 0").values[1]))
    for layer in ("9.0", "x", "0.99"):
        with pytest.raises(XatlasError):
            measured(AblatedCapability(tests=own, heads=(layer,)), model)


@pytest.mark.parametrize(("kind", "heads"), [("mlp_out", None), ("heads", (1,))])
def test_random_controls_change_as_much_as_removing(model, kind, heads):
    from xatlas.contracts.adapter import Site
    from xatlas.interventions import Intervention, Zero
    from xatlas.plugins.ablated_capability import AddEqual

    ids, site = model.tokens("abc"), Site(1, kind)
    values = []
    for change in (None, Zero(), AddEqual(0)):
        held = [Intervention(site, change, heads=heads)] if change else []
        with model.intervene(held):
            values.append(model.capture(ids, [site])[site].flatten(2))
    removed, added = ((each - values[0]).norm(dim=-1) for each in values[1:])
    torch.testing.assert_close(removed, added, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(values[1], values[2])


def test_texts_are_kept_and_turns_follow_the_models_own_answers(model):
    found = measured(Qualitative(tokens=4, groups=("multi-turn", "edge"), chat="both"), model)
    for mode, user, assistant in (("template", "<user>", "<assistant>"), ("plain", "User:", "Assistant:")):
        last = str(found.sel(prompt=f"multi-turn-01 ({mode})")["text"].values)
        assert (last.count(user), last.count(assistant)) == (3, 3)
    assert found["length"].max() == 4  # tokens, in words it is one or two
    rows = prompts()
    assert len(rows) >= 46
    assert len({row["group"] for row in rows}) == 9
    assert numbers("a b c d a b c d") == (pytest.approx(0.2), pytest.approx(4 / 7))
    assert numbers("one two three four") == (0.0, 1.0)


def test_speeds_are_those_of_a_clock(model, monkeypatch):
    from xatlas.plugins import speed

    now = iter(range(10_000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(now)))
    found = measured(GenerationSpeed(lengths=(8, 4), batches=(2, 1, 2), new_tokens=3, repeats=2), model)
    rate = found["tokens_per_second"]  # the smallest first, by which comparisons judge
    assert rate.dims == ("phase", "length", "batch", "repeat")
    np.testing.assert_allclose(rate.sel(phase="prefill", repeat=0), [[4, 8], [8, 16]])
    np.testing.assert_allclose(rate.sel(phase="decode", repeat=1), [[1, 2], [1, 2]])  # three steps after the first
    assert (found["peak_memory"] > 0).all()


def test_without_a_template_turns_are_named():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert plain(turns) == "Be brief.\n\nUser: Hi\nAssistant:"
