"""Before a run: what it needs is found, and what does not exist is refused before anything is loaded."""

from __future__ import annotations

import dataclasses

import pytest
from running import Counting, another, plugged

from xatlas.contracts.probe import Requirement
from xatlas.errors import XatlasError
from xatlas.run.plan import Plan


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
    assert "did you mean 'LlamaForCausalLM'" in str(caught.value)
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
        ({"seed": 10**16}, "whole number up to"),
        ({"seed": "1"}, "whole number up to"),
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
