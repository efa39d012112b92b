"""Plugins enter through one door; what is wrong with one is told in a line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from running import Counting, another, plugged

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.hookspecs import hookimpl


@pytest.fixture(autouse=True)
def forgotten():
    """Each test finds plugins anew, and leaves nothing registered."""
    manager.reset()
    yield
    manager.reset()


def with_entry_point(monkeypatch, name, load):
    monkeypatch.setattr(manager, "entry_points", lambda group: [SimpleNamespace(name=name, load=load)])


def test_built_ins_come_through_the_hooks():
    assert {"layer_ablation", "head_ablation", "residual_norms"} <= set(manager.probes())
    assert {"Lfm2ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"} <= set(manager.adapters())
    assert {"hub", "mlp_ratio", "early_late", "head_specialisation"} <= set(manager.comparisons())
    assert {"quick", "standard", "train"} <= set(manager.suites())
    assert {"lfm2", "qwen", "smollm2"} <= set(manager.models())


def test_an_installed_plugin_is_found(monkeypatch):
    @hookimpl
    def xatlas_probes():
        return [Counting]

    with_entry_point(monkeypatch, "third", lambda: SimpleNamespace(xatlas_probes=xatlas_probes))
    assert manager.probes()["counting"] is Counting


def test_a_name_given_twice_names_both_givers():
    twin = another("layer_ablation", lambda *_: None)
    told = r"the probe 'layer_ablation' is registered twice: by .*layer_ablation.* and by .*tests\.running"
    with plugged(xatlas_probes=[twin]), pytest.raises(XatlasError) as error:
        manager.probes()
    message = str(error.value)
    assert "the probe 'layer_ablation' is registered twice" in message
    assert "xatlas.plugins.layer_ablation" in message, told
    assert "tests.running" in message


def test_an_architecture_given_twice_is_refused_too():
    adapter = manager.adapters()["LlamaForCausalLM"]
    with plugged(xatlas_adapters=[adapter]), pytest.raises(XatlasError, match="architecture 'LlamaForCausalLM' is"):
        manager.adapters()


@pytest.mark.parametrize("error", [ImportError("no module named spam"), RuntimeError("broken\nover two lines")])
def test_a_plugin_that_raises_on_import_is_named(monkeypatch, error):
    def load():
        raise error

    with_entry_point(monkeypatch, "broken-plugin", load)
    with pytest.raises(XatlasError, match=rf"'broken-plugin' could not be loaded \({type(error).__name__}"):
        manager.probes()


def test_a_plugin_with_an_unknown_hook_is_named(monkeypatch):
    @hookimpl
    def xatlas_probez():
        return []

    with_entry_point(monkeypatch, "typo", lambda: SimpleNamespace(xatlas_probez=xatlas_probez))
    with pytest.raises(Exception, match="xatlas_probez"):
        manager.manager()


def test_an_unknown_name_suggests_its_neighbour():
    with pytest.raises(XatlasError, match=r"unknown probe 'layer_ablatoin'; did you mean 'layer_ablation'\?.*Valid:"):
        manager.pick("probe", "layer_ablatoin", manager.probes())
    with pytest.raises(XatlasError, match=r"unknown suite 'zzz'\. Valid: .*quick.* Do this\.") as error:
        manager.pick("suite", "zzz", manager.suites(), "Do this.")
    assert "did you mean" not in str(error.value)
