"""Before a run: what it needs is found, and what does not exist is refused before anything is loaded."""

from __future__ import annotations

import dataclasses

import pytest
from running import Counting, another, plugged

from xatlas import manager
from xatlas.contracts.parameters import Parameterised
from xatlas.contracts.probe import Requirement
from xatlas.errors import XatlasError
from xatlas.run.plan import Plan, part_parameters, pick_comparisons
from xatlas.suites import Suite


def test_probes_in_a_circle_are_an_error(model, settings):
    def needs(name):
        return property(lambda self: (Requirement(name),))

    probes = [
        another("left", Counting.measure, requires=needs("right")),
        another("right", Counting.measure, requires=needs("left")),
    ]
    with plugged(xatlas_probes=probes), pytest.raises(XatlasError, match="left → right → left"):
        Plan([model], settings, probes=["left"])


def test_an_architecture_without_adapter_is_refused_before_loading(model, settings):
    strange = dataclasses.replace(model, architecture="LlamaForCausalLMs")
    with plugged(xatlas_probes=[Counting]), pytest.raises(XatlasError) as caught:
        Plan([strange], settings, probes=["counting"])
    assert "The nearest is LlamaForCausalLM." in str(caught.value)
    assert "docs/adapters.md" in str(caught.value)


def test_a_chat_template_that_is_not_there_is_refused_before_loading(model, settings):
    with pytest.raises(XatlasError, match="has no chat template"):
        Plan([model], dataclasses.replace(settings, chat_template=True), probes=["layer_ablation"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float31"}, "unknown dtype 'float31'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"bos": "never"}, "unknown BOS habit 'never'"),
        ({"attention": "flash"}, "unknown attention implementation 'flash'"),
        ({"draws": 0}, "whole number from 1"),
        ({"draws": 1.5}, "whole number from 1"),
        ({"draws": True}, "whole number from 1"),
        ({"seed": 10**15 + 1}, "whole number up to"),
        ({"seed": -(10**15) - 1}, "whole number up to"),
        ({"seed": "1"}, "whole number up to"),
        ({"template_date": "yesterday"}, "is no date"),
        ({"parameters": {"layer_ablation": {"scopes": ["last", "last"]}}}, "none twice"),
        ({"parameters": {"layer_ablatoin": {}}}, "did you mean 'layer_ablation'"),
        ({"parameters": {"layer_ablation": {"scope": "all"}}}, "did you mean 'scopes'"),
    ],
)
def test_settings_refuse_what_does_not_exist(settings, change, message):
    with pytest.raises(XatlasError, match=message):
        dataclasses.replace(settings, **change)


@dataclasses.dataclass(frozen=True)
class Sized:
    size: int = 1


def test_the_users_own_parameters_go_before_what_is_required(model, settings):
    needs = property(lambda self: (Requirement("sized", {"size": 2}),))
    sized = another("sized", Counting.measure, Parameters=Sized)
    with plugged(xatlas_probes=[sized, another("upper", Counting.measure, requires=needs)]):
        plan = Plan([model], settings, probes=["upper"])
        assert plan.steps[0].job.parameters == {"size": 2}
        asked = dataclasses.replace(settings, parameters={"sized": {"size": 3}})
        assert Plan([model], asked, probes=["upper"]).steps[0].job.parameters == {"size": 3}


class Wide(Parameterised):
    name = "both"

    @dataclasses.dataclass(frozen=True)
    class Parameters:
        size: int = 1
        width: int = 1


@pytest.mark.parametrize(
    ("given", "asked", "probes", "comparisons"),
    [
        ({"size": 2}, ["both"], {"size": 2}, {"size": 2}),
        ({"size": 2}, [], {"size": 2}, None),
        ({"size": 2, "width": 3}, ["both"], {"size": 2}, {"size": 2, "width": 3}),
        ({"width": 3}, ["both"], None, {"width": 3}),
        ({"depth": 3}, ["both"], {"depth": 3}, None),  # the probe says that it has none
    ],
)
def test_a_name_of_a_probe_and_a_comparison_takes_what_each_knows(monkeypatch, given, asked, probes, comparisons):
    monkeypatch.setattr(manager, "probes", lambda: {"both": another("both", Counting.measure, Parameters=Sized)})
    monkeypatch.setattr(manager, "comparisons", lambda: {"both": Wide})
    expected = tuple({} if values is None else {"both": values} for values in (probes, comparisons))
    assert part_parameters({"both": given}, asked) == expected


def test_parameters_of_a_comparison_that_is_not_asked_for_are_refused(monkeypatch):
    monkeypatch.setattr(manager, "comparisons", lambda: {"both": Wide})
    with pytest.raises(XatlasError, match="'both' is a comparison that is not asked for"):
        part_parameters({"both": {"width": 3}}, [])


def test_a_comparison_named_twice_is_made_once():
    assert pick_comparisons(["hub", "early_late", "hub"]) == ["hub", "early_late"]


def test_what_requires_a_probe_with_other_parameters_rests_on_another_job(model, settings):
    def needs(size):
        return property(lambda self: (Requirement("sized", {"size": size}),))

    probes = [another(f"upper{size}", Counting.measure, requires=needs(size)) for size in (2, 3)]
    with plugged(xatlas_probes=[another("sized", Counting.measure, Parameters=Sized), *probes]):
        steps = Plan([model], settings, probes=["upper2", "upper3"]).steps
    assert [step.job.parameters for step in steps] == [{"size": 2}, {}, {"size": 3}, {}]
    assert [steps[n].job.inputs for n in (1, 3)] == [{"sized": steps[n].job.key} for n in (0, 2)]


def test_all_that_numbers_depend_on_enters_the_key(model, settings, monkeypatch):
    needs = property(lambda self: (Requirement("lower"),))

    def key(model=model, version=1, lower=1, parameters=None, **change):
        probes = [another("lower", Counting.measure, version=lower)]
        own = {"version": version, "requires": needs, "uses_reference": True, "Parameters": Sized}
        with plugged(xatlas_probes=[*probes, another("upper", Counting.measure, **own)]):
            given = dataclasses.replace(settings, parameters={"upper": parameters or {}}, **change)
            return Plan([model], given, probes=["upper"]).steps[-1].job.key

    templated = dataclasses.replace(model, chat_template=True)
    less = Suite("less", settings.suite.prompts[1:])
    keys = [
        key(),
        key(dataclasses.replace(model, slug="other")),
        key(dataclasses.replace(model, weights_hash="0")),
        key(dataclasses.replace(model, lora_hash="0")),
        key(version=2),
        key(lower=2),
        key(parameters={"size": 2}),
        *(key(**{name: less}) for name in ("suite", "reference")),
        *(key(seed=1), key(draws=3), key(dtype="bfloat16"), key(bos="native"), key(attention="eager")),
        *(key(templated, chat_template=True, template_date=date) for date in ("2024-01-01", "2024-01-02")),
    ]
    monkeypatch.setattr(manager.adapters()[model.architecture], "version", 99)
    assert len({*keys, key()}) == len(keys) + 1


def test_what_a_probe_does_not_depend_on_stays_out_of_its_key(model, settings):
    probes = [another("reads", Counting.measure), another("alone", Counting.measure, measures_on="model")]
    less = Suite("less", settings.suite.prompts[1:])

    def keys(**change):
        with plugged(xatlas_probes=probes):
            plan = Plan([model], dataclasses.replace(settings, **change), probes=["reads", "alone"])
        return [step.job.key for step in plan.steps]

    reads, alone = keys()
    assert keys(reference=less) == keys(device="auto") == [reads, alone]
    assert keys(suite=dataclasses.replace(settings.suite, name="called otherwise")) == [reads, alone]
    assert keys(suite=less)[0] != reads
    assert keys(suite=less)[1] == alone
