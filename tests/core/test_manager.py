"""Plugins enter through one door; what is wrong with one is told in a line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from running import Counting, another, plugged

from xatlas import Adapter, ModelSource, manager
from xatlas.errors import XatlasError
from xatlas.hookspecs import hookimpl


@pytest.fixture(autouse=True)
def forgotten():
    """Each test finds plugins anew, and leaves nothing registered."""
    manager.reset()
    yield
    manager.reset()


def with_entry_point(monkeypatch, name, load):
    own = manager.entry_points
    monkeypatch.setattr(
        manager, "entry_points", lambda group: [*own(group=group), SimpleNamespace(name=name, load=load)]
    )


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


def test_an_alias_may_end_in_a_training_seed():
    source = ModelSource("net:12", "/net", "folder", "a test")
    with plugged(xatlas_models={"net:12": source}):
        assert manager.models()["net:12"] is source


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


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    "error", [ImportError("no module named spam"), RuntimeError("broken\nover two lines"), SystemExit(3)]
)
def test_a_plugin_that_raises_on_import_is_named(monkeypatch, error):
    with_entry_point(monkeypatch, "broken-plugin", raising(error))
    with pytest.raises(XatlasError, match=rf"'broken-plugin' could not be loaded \({type(error).__name__}"):
        manager.probes()


def hook(name, function):
    function.__name__ = name
    return SimpleNamespace(**{name: hookimpl(function)})


MISSPELT = """
from xatlas import hookimpl

@hookimpl
def xatlas_probs():
    return []
"""


def test_a_misspelt_hook_of_an_installed_package_is_one_line_from_every_command(tmp_path):
    (tmp_path / "typo.py").write_text(MISSPELT)
    about = tmp_path / "xatlas_typo-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: xatlas-typo\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[xatlas]\nshort = typo\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def call(*words):
        command = [sys.executable, "-m", "xatlas.cli", *words]
        return subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    for words in (["probes"], ["compare", "-m", "lfm2-mini"], ["check"], ["models"]):
        done = call(*words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "'short of xatlas-typo'" in done.stderr
        assert "xatlas_probs" in done.stderr
    assert call("--version").returncode == call("--help").returncode == 0


def test_a_function_without_the_mark_is_not_used_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("xatlas"), "propagate", True)
    with_entry_point(monkeypatch, "unmarked", lambda: SimpleNamespace(xatlas_probes=lambda: [Counting]))
    assert "counting" not in manager.probes()
    assert "'unmarked' has a function xatlas_probes without @hookimpl" in caplog.text


Nameless = type("Nameless", (Counting,), {"name": None})
OFF = {
    "raises": ("probes", raising(KeyError("x")), "raised KeyError"),
    "exits": ("probes", raising(SystemExit(0)), "raised SystemExit"),
    "none": ("suites", lambda: None, "returned NoneType, not a list"),
    "text": ("adapters", lambda: "Llama", "returned str, not a list"),
    "generator": ("probes", lambda: (each for each in [Counting]), "returned generator"),
    "no probe": ("probes", lambda: [int], "is no Probe"),
    "instance": ("probes", lambda: [Counting()], "is no class"),
    "other kind": ("comparisons", lambda: [Counting], "is no Comparison"),
    "no name": ("probes", lambda: [Nameless], "name is None"),
    "name with a comma": ("probes", lambda: [another("a,b", None)], "name is 'a,b'"),
    "name with a path": ("probes", lambda: [another("../up", None)], "name is '../up'"),
    "a seed, of no model": ("probes", lambda: [another("a:1", None)], "name is 'a:1'"),
    "seed 0": ("models", lambda: [ModelSource("a:0", "/a", "folder", "s")], "alias is 'a:0'"),
    "no source": ("models", lambda: {"m": "org/name"}, "is no ModelSource"),
    "another key": ("models", lambda: {"m": ModelSource("n", "o/n", "hub", "s")}, "'n' under the key 'm'"),
    "letters": ("adapters", lambda: [type("A", (Adapter,), {"architectures": "Llama"})], "architectures is 'Llama'"),
}


@pytest.mark.parametrize("case", OFF)
def test_what_a_hook_gives_is_held_to_what_it_promises(case, monkeypatch):
    kind, function, told = OFF[case]
    with_entry_point(monkeypatch, "third", lambda: hook(f"xatlas_{kind}", function))
    with pytest.raises(XatlasError) as error:
        getattr(manager, kind)()
    message = str(error.value)
    assert message.startswith(f"the plugin 'third': xatlas_{kind} ")
    assert told in message


def test_an_unknown_name_suggests_its_neighbour():
    with pytest.raises(XatlasError, match=r"unknown probe 'layer_ablatoin'; did you mean 'layer_ablation'\?.*Valid:"):
        manager.pick("probe", "layer_ablatoin", manager.probes())
    with pytest.raises(XatlasError, match=r"unknown suite 'zzz'\. Valid: .*quick") as error:
        manager.pick("suite", "zzz", manager.suites())
    assert "did you mean" not in str(error.value)
