import math

import pytest

from xatlas.contracts.comparison import Finding
from xatlas.findings.readings import Setting
from xatlas.findings.sentences import Row, closing, decide, in_short, ranked, robustness
from xatlas.findings.verdict import Claim, Evidence, adjusted, verdict

CLEAR = Evidence(number=(2.0, 1.5, 2.5), p=0.001, side=1, answer=1)
SAME = Evidence(answer=1, number=(1.8, math.nan, math.nan))
OTHER = Evidence(answer=-1, number=(0.8, math.nan, math.nan))


def test_a_clear_effect_on_which_all_kinds_agree_is_supported():
    assert verdict(CLEAR, 0.001, {"zero": SAME, "resample": SAME}) == ("supported", "")
    assert verdict(CLEAR, 0.001, None) == ("supported", "")


@pytest.mark.parametrize(
    ("changes", "p", "kinds", "said"),
    [
        ({}, 0.001, {"zero": OTHER}, ("undecided", "kinds disagree: zero")),
        ({}, 0.001, {}, ("undecided", "one kind")),
        ({}, 0.17, None, ("undecided", "p = 0.17")),
        ({"side": 0}, 0.0048, None, ("undecided", "the interval includes chance")),
        ({"side": 0, "control": (1.0, 0.5, 2.0)}, 0.0048, None, ("undecided", "no more than its control")),
        (
            {"side": 0, "own": 0, "control": (5.0, 4.0, 6.0)},
            0.2,
            None,
            ("undecided", "the interval includes no difference"),
        ),
        ({"side": -1}, 0.001, None, ("refuted", "the interval lies on the other side")),
        ({"side": -1, "own": 1}, 0.001, None, ("refuted", "its control does so even more")),
        ({"side": 0, "least_p": 0.1}, 0.2, None, ("undecided", "too few templates")),
        ({"blocked": "it ties with layer 3"}, 0.001, None, ("undecided", "it ties with layer 3")),
        ({"equal": True, "near": True}, 0.001, {"zero": SAME}, ("undecided", "kinds disagree: zero")),
        ({"equal": True, "margin": 0.1}, 0.001, None, ("refuted", "equal within the margin of ±0.100")),
        ({"equal": True, "margin": (0.8, 1.25)}, 0.1, None, ("refuted", "equal within the margin of 0.80 to 1.25")),
        ({"side": 0, "artefact": "it is algebra"}, 0.5, None, ("artefact", "it is algebra")),
        ({"answer": None}, 0.001, None, ("undecided", "nothing was measured")),
    ],
)
def test_what_is_not_supported_has_its_reason(changes, p, kinds, said):
    evidence = Evidence(**{**CLEAR.__dict__, **changes})
    if changes.get("near"):  # of a claim about a pair, equality is what may be supported
        assert verdict(evidence, p, kinds, about="pair") == said
        assert verdict(evidence, p, {"zero": Evidence(near=True, answer=-1)}, about="pair") == ("supported", "")
    else:
        assert verdict(evidence, p, kinds) == said


@pytest.mark.parametrize(
    ("own", "control", "reason"),
    [
        (1, (1.5, 1.2, 2.0), "no more than its control"),
        (0, (1.5, 1.2, 2.0), "the interval includes no difference"),
        (None, (1.0, math.nan, math.nan), "the interval includes no difference"),
    ],
)
def test_a_pair_that_the_control_tells_apart_as_well_is_undecided_for_that(own, control, reason):
    evidence = Evidence(**{**CLEAR.__dict__, "side": 0, "own": own, "control": control})
    assert verdict(evidence, 0.2, None, about="pair") == ("undecided", reason)


@pytest.mark.parametrize(
    ("units", "others", "cells"),
    [
        ("1", (1.9, 2.2), ("robust 2 of 2", "robust 2/2")),
        ("1", (1.9, 7.0), ("same answer 2 of 2", "same 2/2")),  # a size outside the interval is not robust
        ("nats", (1.9, 7.0), ("robust 2 of 2", "robust 2/2")),
        ("1", (1.9, 0.5), ("1 of 2: depends on scope", "1/2: scope")),
    ],
)
def test_robust_is_what_has_the_same_answer_and_size(units, others, cells):
    main, *rest = (Setting("mean", "last", "always", "quick"), Setting("zero", "last", "always", "quick"))
    rest.append(Setting("mean", "all", "always", "quick"))
    settings = {main: CLEAR} | {
        setting: Evidence(number=(value, math.nan, math.nan), answer=1 if value > 1 else -1)
        for setting, value in zip(rest, others, strict=True)
    }
    claim = Claim("more", "Is it more?", "It is {number}", units=units)
    (finding,) = decide([Row(claim, ("a",), CLEAR, None, settings)])
    assert (robustness(finding), in_short(finding)["sensitivity"]) == cells


@pytest.mark.parametrize(
    ("twins", "learnt"),
    [
        ([(1.0, 0.8, 1.2), (1.1, 0.9, 1.4)], True),
        ([(3.0, 2.6, 3.2), (3.1, 2.9, 3.4)], True),
        ([(1.0, 0.8, 1.2), (1.4, 1.2, 1.6)], False),  # one reaches into the interval
        ([(1.0, 0.8, 1.2), (3.0, 2.6, 3.2)], False),  # it lies among them
        ([(1.0, 0.8, 1.2), (1.0, math.nan, math.nan)], None),  # of one nothing is known
        ([(2.0, 1.8, 2.6), (1.0, math.nan, math.nan)], False),  # nor does it matter
        ([], None),
    ],
)
def test_learnt_is_what_lies_beyond_all_untrained_twins_on_one_side(twins, learnt):
    claim = Claim("more", "Is it more?", "It is {number}")
    (finding,) = decide([Row(claim, ("a",), CLEAR, twins=[Evidence(number=each) for each in twins])])
    assert finding.learnt is learnt
    assert ("learnt" in finding.sentence, "no more than in" in finding.sentence) == (learnt is True, learnt is False)


def test_the_sample_that_is_too_small_is_named():
    evidence = Evidence(**{**CLEAR.__dict__, "side": 0, "least_p": 0.1})
    assert verdict(evidence, 0.1, None, unit="architecture")[1] == "too few training seeds"


def test_the_adjusted_p_decides():
    weak = Evidence(**{**CLEAR.__dict__, "p": 0.03})
    p = adjusted([weak, weak])
    assert p == [0.06, 0.06]
    assert verdict(weak, p[0], None)[0] == "undecided"
    assert verdict(weak, adjusted([weak])[0], None)[0] == "supported"


def test_what_cannot_be_decided_costs_the_others_nothing():
    blocked = Evidence(blocked="one kind", p=0.001)
    assert adjusted([Evidence(p=0.03), blocked])[0] == 0.03
    assert math.isnan(adjusted([Evidence(p=0.03), blocked])[1])


@pytest.mark.parametrize(("equal", "p", "against"), [(True, 0.01, "a larger difference"), (False, 0.9, "chance")])
def test_equality_is_shown_and_adjusted_by_its_own_p(equal, p, against):
    evidence = Evidence(**{**CLEAR.__dict__, "p": 0.9, "against": "chance", "equal": equal, "equal_p": 0.01})
    assert adjusted([evidence]) == [p]
    (found,) = decide([Row(Claim("more", "Is it?", "It is {number}", pair="the size"), ("a", "b"), evidence)])
    assert (found.p, found.p_adjusted, found.against) == (p, p, against)


def finding(model, short, verdict="supported", **more):
    return Finding("It is so.", 1, 0, 2, 0, 0.01, verdict, model=model, short=short, **more)


def test_the_closing_lines_say_once_what_models_share_and_what_rests_on_layer_0():
    found = [finding(model, "the hub is layer 0", depends_on="scope, layer 0") for model in "abc"]
    found += [finding(model, "it falls") for model in "abc"]
    found += [finding("b", "it rises"), finding("a", "the depth is the same", model_other="c")]
    found += [finding("a", "early / late", "refuted")]
    found += [finding("c", "heads", "undecided", reason=f"p = {p}") for p in (0.2, 0.3)]
    assert closing(found, ["a", "b", "c"]).split("\n") == [
        "All three models: the hub is layer 0*; it falls.",
        "b: it rises.",
        "a and c: alike in the depth.",
        "* Not so without layer 0.",
        "Of 11 claims 1 is refuted or artefacts; 2 can't be decided from these data: p above 0.05 (2).",
    ]


def closed(found, models):
    return closing(found, list(models)).split("\n")


def test_of_many_models_those_that_differ_are_named_and_of_many_pairs_how_many():
    models = "abcdefg"
    found = [finding(model, "it falls") for model in models[:-1]]
    assert closed(found, models) == ["All 7 models but g: it falls."]
    assert closed(found[:4], models) == ["a, b, c and d: it falls."]
    assert closed([finding(model, "it falls") for model in models], models) == ["All 7 models: it falls."]
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("a", "d")]
    found = [
        finding(one, f"the depth {said}", model_other=two)
        for (one, two), said in zip(pairs, ["differs", "differs", "is the same", "differs"], strict=True)
    ]
    assert closed(found, "abcd") == ["Of 4 pairs of models: different in the depth (3); alike in the depth (1)."]
    three = [finding(one, "the depth differs", model_other=two) for one, two in pairs[:3]]
    assert closed(three, "abc") == ["Every pair of models: different in the depth."]


def test_reasons_are_counted_the_commonest_first_and_the_rest_together():
    counts = {"a tie": 5, "one kind": 4, "too few layers": 3, "kinds disagree": 2, "no jump": 2, "one layer": 1}
    reasons = {"a tie": "it ties with layer 3", "kinds disagree": "kinds disagree: zero"}
    found = [
        finding("a", "x", "undecided", reason=reasons.get(kind, kind))
        for kind, count in counts.items()
        for _ in range(count)
    ]
    told = "a tie (5), one kind (4), too few layers (3), kinds disagree (2), other reasons (3)"
    assert closed(found, "a") == [
        "Nothing is supported.",
        f"Of 17 claims 17 can't be decided from these data: {told}.",
    ]
    assert closed([finding("a", "x", "refuted"), finding("a", "x", "artefact")], "a")[1:] == [
        "Of 2 claims 2 are refuted or artefacts."
    ]


def test_what_is_learnt_is_said_beside_what_is_not():
    found = [finding("a", "it falls", learnt=learnt) for learnt in (True, False, None)]
    assert closed(found, "a") == ["a: it falls (learnt); it falls (as in untrained networks of its kind); it falls."]


def test_findings_are_shown_by_verdict_what_differs_first_and_architectures_before_all():
    found = [
        finding("a", "", "refuted"),
        finding("a", "one"),
        finding("a", "x is the same", model_other="b"),
        finding("a", "x differs", model_other="b"),
        finding("a", "", "artefact", model_other="b"),
        finding("a", "", "undecided", unit="architecture"),
    ]
    assert [found.index(each) for each in ranked(found)] == [5, 3, 2, 1, 4, 0]


def rows(*about):
    """Return rows of claims about models, each with what its evidence is changed by."""
    return [
        Row(Claim(f"c{i}", "Is it?", "It is {number}"), tuple(models), Evidence(**{**CLEAR.__dict__, **changes}))
        for i, (models, changes) in enumerate(about)
    ]


def test_p_values_are_adjusted_over_the_claims_about_the_same_models():
    found = decide(rows(("a", {"p": 0.03}), ("a", {"p": 0.04}), ("b", {"p": 0.03}), ("ab", {"p": 0.04})))
    assert [each.p_adjusted for each in found] == pytest.approx([0.06, 0.06, 0.03, 0.04])


def test_what_a_small_sample_can_reach_is_adjusted_as_well():
    """Alone it could reach 0.03; as one of two claims it can't."""
    few = {"p": 0.2, "least_p": 0.03, "side": 0}
    assert [each.reason for each in decide(rows(("a", few)))] == ["the interval includes chance"]
    assert [each.reason for each in decide(rows(("a", few), ("a", few)))] == ["too few templates"] * 2


@pytest.mark.parametrize(
    ("differing", "said"),
    [
        ([("mean", "all"), ("zero", "all")], "scope"),
        ([("zero", "all")], "ablation kind, scope"),
        ([("zero", "last"), ("mean", "all"), ("zero", "all")], "ablation kind, scope"),
    ],
)
def test_an_answer_depends_on_what_changes_it_alone_where_anything_does(differing, said):
    kinds = [(kind, scope) for kind in ("mean", "zero") for scope in ("last", "all")]
    settings = {
        Setting(*kind, "always", "quick"): Evidence(answer=-1 if kind in differing else 1, number=CLEAR.number)
        for kind in kinds
    }
    (found,) = decide([Row(Claim("more", "Is it?", "It is {number}"), ("a",), CLEAR, None, settings)])
    assert found.depends_on == said
