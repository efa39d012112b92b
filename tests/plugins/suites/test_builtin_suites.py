"""The built-in suites: what they promise, checked on every prompt."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from suite_solvers import SOLVERS

from xatlas import XatlasError, manager
from xatlas.plugins.suites import FAMILIES, TRANSFER
from xatlas.plugins.suites.masking import mask, overlap
from xatlas.plugins.suites.mixture import LESSONS, SLIPS, proportions, training_stream
from xatlas.plugins.suites.wording import differing_span
from xatlas.suites import read_suite, write_suite

NAMES = ("quick", "standard", "train", "transfer", "transfer-train")
SUITES = {name: manager.suites()[name].load() for name in NAMES}
ALL = FAMILIES | TRANSFER | LESSONS


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_is_complete(name):
    for prompt in SUITES[name]:
        assert prompt.text == prompt.text.rstrip()
        assert prompt.target.startswith(" ")
        assert prompt.target != prompt.foil
        start, end = prompt.subject
        assert prompt.text[start:end].strip()
        assert prompt.text[:start] == prompt.corrupt_text[:start]  # they differ inside the span only
        assert prompt.text[end:] == prompt.corrupt_text[len(prompt.corrupt_text) - len(prompt.text[end:]) :]
        assert prompt.text[start:end] != prompt.corrupt_text[start : len(prompt.corrupt_text) - len(prompt.text[end:])]
        assert len(prompt.text.split()) == len(prompt.corrupt_text.split())


def test_sizes():
    assert {name: len(suite) for name, suite in SUITES.items()} == {
        "quick": 60,
        "standard": 480,
        "train": 600,
        "transfer": 100,
        "transfer-train": 100,
    }
    assert len(SUITES["standard"].families) == 12
    assert not set(SUITES["transfer"].families) & set(FAMILIES | LESSONS)
    assert not set(SUITES["standard"].families) & set(LESSONS)


def test_defaults():
    assert {name: spec.default_for for name, spec in manager.suites().items() if name in NAMES} == {
        "quick": "measure",
        "standard": None,
        "train": "reference",
        "transfer": None,
        "transfer-train": None,
    }


def test_quick_stays_what_results_were_measured_on():
    """Results name their suite by its hash: another one means that all of them are measured again."""
    assert SUITES["quick"].hash == "b6fc4f91808d21e2d6be0222d9979de6a30374b4a8371a6eba840cb6938b8ea5"


@pytest.mark.parametrize("family", ALL)
def test_balanced_over_templates(family):
    """`quick` has one prompt per frame; `standard` twenty templates, two prompts each, and `quick` is its beginning."""
    quick, standard = ALL[family].generate("test", 5), ALL[family].generate("test", 40)
    assert standard[:5] == quick
    assert len({prompt.template.split("-")[0] for prompt in quick}) == 5
    templates = [prompt.template for prompt in standard]
    assert templates[:20] == templates[20:]
    assert len(set(templates)) == 20


@pytest.mark.parametrize("family", ALL)
def test_templates_are_other_wordings(family):
    """Every frame stands after four leads of each split, every lead in both; a template's name stands for one text."""
    test, train = (set(ALL[family].wordings(split)) for split in ("test", "train"))
    assert not test & train
    frames, leads = ALL[family].frames, ALL[family].leads
    assert test | train == {(frame, lead) for frame in frames for lead in range(len(leads))}
    assert {frame: sum(one is frame for one, _ in test) for frame in frames} == dict.fromkeys(frames, 4)
    assert {lead for _, lead in test} == {lead for _, lead in train} == set(range(8))
    assert len({lead.strip().casefold() for lead in leads}) == len(leads)
    assert len({frame.text for frame in frames}) == len({frame.name for frame in frames}) == len(frames)


@pytest.mark.parametrize("family", ALL)
def test_independent_answers(family):
    """Target and foil are what a second way of solving finds in the text and in the twin."""
    prompts = ALL[family].generate("test", 40) + ALL[family].generate("train", 60, seed=3)
    for prompt in prompts:
        assert SOLVERS[family](prompt.text) == prompt.target.strip(), prompt.text
        assert SOLVERS[family](prompt.corrupt_text) == prompt.foil.strip(), prompt.corrupt_text


def test_same_in_every_process():
    """Suites come out the same whatever PYTHONHASHSEED says."""
    script = (
        "from xatlas.plugins.suites import xatlas_suites\n"
        "from xatlas.plugins.suites.mixture import training_stream\n"
        "import itertools\n"
        "print(*[s.load().hash for s in xatlas_suites()], [p.text for p in itertools.islice(training_stream(0), 99)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_seeds_differ():
    family = FAMILIES["copying"]
    assert family.generate("test", 20, seed=1) != family.generate("test", 20, seed=2)


@pytest.mark.parametrize("family", ALL)
def test_train_and_test_share_nothing(family):
    """No prompt in common, also after masking numbers and names; texts are unique within a suite."""
    test = ALL[family].generate("test", 40)
    train = [prompt.text for prompt in ALL[family].generate("train", 60, seed=5)]
    stream = ALL[family].stream("train", 1)
    train += [next(stream).text for _ in range(2000)]
    assert len({prompt.text for prompt in test}) == 40
    assert overlap(test, train) == {family: 0.0}
    assert overlap(test, [prompt.text for prompt in test]) == {family: 1.0}  # the measure itself can be 1


def test_no_family_shares_another_ones_wording():
    """Overlap is nil across families too, in the very mixture that trains the miniatures."""
    stream = training_stream(0)
    texts = [next(stream).text for _ in range(20_000)]
    assert set(overlap(SUITES["standard"], texts).values()) == {0.0}


def test_held_out_contents():
    """Sums of the test split don't occur in training in any wording."""
    test = {tuple(p.text.split()[-4:]) for p in FAMILIES["arithmetic"].generate("test", 40) if "plus-" in p.template}
    stream = FAMILIES["arithmetic"].stream("train", 1)
    seen = {tuple(prompt.text.split()[-4:]) for _, prompt in zip(range(20_000), stream, strict=False)}
    assert test
    assert not test & seen


def test_mask():
    assert mask("The capital of France is 12 and cat") == "The capital of _ is 0 and _"


def test_the_mixture_follows_its_weights():
    stream = training_stream(0)
    counts = Counter(next(stream).family for _ in range(8_000))
    for name, share in proportions().items():
        assert counts[name] == pytest.approx(8_000 * share, abs=110), name  # more than three deviations


def test_slips_say_what_the_twin_would():
    """A tenth of the training lines has the twin's answer, all others their own."""
    stream = training_stream(0)
    prompts = [next(stream) for _ in range(3_000)]
    right = [SOLVERS[prompt.family](prompt.text) == prompt.target.strip() for prompt in prompts]
    slipped = [prompt for prompt, is_right in zip(prompts, right, strict=True) if not is_right]
    assert len(slipped) == pytest.approx(3_000 * SLIPS, abs=55)  # more than three deviations
    for prompt in slipped:
        assert SOLVERS[prompt.family](prompt.corrupt_text) == prompt.target.strip()


def test_proportions():
    shares = proportions({"copying": 3.0, "pairs": 0.0, "others": 1.0})
    assert shares["copying"] == pytest.approx(3 / 14)
    assert shares["dead_code"] == pytest.approx(1 / 14)
    assert shares["pairs"] == 0


def test_round_trip(tmp_path):
    write_suite(SUITES["standard"], tmp_path / "standard.jsonl")
    assert read_suite(tmp_path / "standard.jsonl").hash == SUITES["standard"].hash


def test_span_covers_whole_words():
    assert differing_span("a bat is", "a cat is") == (2, 5)
    assert differing_span("x = 12", "x = 13") == (4, 6)
    assert differing_span("if True:", "if not True:") == (3, 7)
    with pytest.raises(XatlasError, match="equal"):
        differing_span("a", "a")


@pytest.mark.slow
def test_too_many_prompts_asked_for():
    with pytest.raises(XatlasError, match="factual_recall"):
        FAMILIES["factual_recall"].generate("test", 2000)


def test_unknown_split():
    with pytest.raises(XatlasError, match="train, test"):
        FAMILIES["copying"].generate("dev", 5)
