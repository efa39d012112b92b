"""Each setting is declared once: jobs, options and keyword arguments follow."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import typer
from running import plugged

import xatlas
from xatlas import vocabulary
from xatlas.cli import app
from xatlas.config import KeyedSettings, MeasureConfig, larger_suite, settings
from xatlas.results.jobs import Job
from xatlas.suites import Prompt, Suite, SuiteSpec

SUITE = Suite("one", (Prompt("a", "f", "a b", " c"),))
JOB = Job(
    model="qwen-mini",
    weights="ab" * 32,
    probe="layer_ablation",
    version=3,
    adapter="xatlas.architectures.llama.LlamaAdapter 1",
    parameters={"ablations": ["zero", "mean"], "scopes": ["all"]},
    suite="cd" * 32,
    reference="ef" * 32,
    inputs={"steering": "0123456789abcdef"},
    dtype="bfloat16",
    bos="native",
    seed=3,
    draws=2,
)


def test_keys_are_what_they_always_were():
    """A change here makes every stored atlas unreadable as the same jobs."""
    dated = dataclasses.replace(JOB, chat_template=True, template_date="2025-01-01")
    assert (JOB.key, dated.key, Job("m", "w", "p", draws=2).key) == (
        "2c0cbf435fcc4b76",
        "2bff269dc48e7544",
        "0339ce6b1b1186f6",
    )


def test_a_config_gives_jobs_every_setting_that_keys_hold():
    config = MeasureConfig(suite=SUITE, dtype="bfloat16", bos="native", seed=3)
    assert set(config.keyed()) == {field.name for field in dataclasses.fields(KeyedSettings)}
    assert dataclasses.replace(JOB, **config.keyed()).dtype == "bfloat16"
    assert config.keyed()["template_date"] is None
    dated = dataclasses.replace(config, chat_template=True)
    assert dated.keyed()["template_date"] == vocabulary.TEMPLATE_DATE


@pytest.mark.parametrize("command", ["compare", "run", "plan"])
def test_every_setting_with_help_is_an_option_with_that_help_and_default(command):
    options = {item.name: item for item in typer.main.get_command(app).commands[command].params}
    for setting in settings("help"):
        option = options[setting.name]
        assert option.opts == [f"--{setting.name.replace('_', '-')}"]
        assert option.help == setting.metadata["help"]
        assert option.default == (None if setting.default is dataclasses.MISSING else setting.default)


def test_python_takes_the_same_settings():
    names = [setting.name for setting in settings("help")]
    for function in (xatlas.measure, xatlas.compare):
        assert set(names) <= set(inspect.signature(function).parameters)
    own = {setting.name for setting in settings("of_model")}
    assert set(inspect.signature(xatlas.load).parameters) == {"name", *own}
    with pytest.raises(TypeError, match="seed"):
        xatlas.load("qwen-mini", seed=3)
    with pytest.raises(TypeError, match="dtyp"):
        xatlas.measure("qwen-mini", "layer_ablation", dtyp="float16")


def test_choices_are_the_vocabularys():
    choices = {setting.name: setting.metadata["choices"] for setting in settings() if "choices" in setting.metadata}
    assert choices["dtype"] == vocabulary.DTYPES
    assert choices["attention"] == vocabulary.ATTENTIONS
    assert choices["bos"] == vocabulary.BOS_HABITS
    assert choices["device"] == vocabulary.DEVICES


def test_the_larger_suite_is_the_smallest_that_holds_all_prompts_and_more():
    prompts = [Prompt(name, "f", name) for name in "abcd"]
    made = [Suite("all", tuple(prompts)), Suite("three", tuple(prompts[:3])), Suite("others", tuple(prompts[1:]))]
    specs = [SuiteSpec(suite.name, "A suite.", lambda suite=suite: suite) for suite in made]
    reference = Suite("reference", tuple(Prompt(name, "f", name) for name in "abx"))  # is not measured on
    specs.append(SuiteSpec("reference", "A reference.", lambda: reference, default_for="reference"))
    with plugged(xatlas_suites=specs):
        assert larger_suite(Suite("two", tuple(prompts[:2]))).name == "three"
        assert larger_suite(made[0]) is None
