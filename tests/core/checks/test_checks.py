"""The public checks refuse plugins that break their contract, each with one line."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from models import build
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from xatlas import Comparison, Finding, Probe, Requirement, Variable, check_adapter, check_comparison, check_probe
from xatlas.architectures.llama import LlamaAdapter
from xatlas.contracts.adapter import HeadLayout
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, Zero
from xatlas.metrics import KL
from xatlas.probing.means import choose_donors
from xatlas.schema import label, suite_coords
from xatlas.sweep import sweep
from xatlas.testing import byte_tokenizer, model_with, tiny_model, tiny_reference, tiny_suite


def refused(check, thing, told, **more):
    with pytest.raises(XatlasError, match=told) as error:
        check(thing, **more)
    assert "\n" not in str(error.value)


# -- what things are checked on ----------------------------------------------------------------------


def test_the_small_model_has_every_kind_of_operator():
    assert set(model_with(("conv_gate", "heads")).operator_types) == {"conv", "attention"}
    with pytest.raises(XatlasError, match="no registered architecture has the sites nowhere"):
        model_with(("nowhere",))


def test_the_small_suite_has_what_a_suite_can_have():
    model = tiny_model(LlamaAdapter)
    tokens, reference = model.read(tiny_suite()), model.read(tiny_reference())
    assert not tokens.dropped
    assert not {prompt.text for prompt in tiny_suite()} & {prompt.text for prompt in tiny_reference()}
    assert sum(prompt.n_tokens - 1 for prompt in reference.prompts) >= 500
    assert None not in choose_donors(tokens.prompts, reference, 0)
    assert all(p.foil_answer is not None and p.subject and p.appended == 1 for p in tokens.prompts)


# -- adapters ----------------------------------------------------------------------------------------


def bad_adapter(**members):
    return type("Bad", (LlamaAdapter,), members)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (bad_adapter(architectures="LlamaForCausalLM"), "must be a tuple of Hugging Face class names"),
        (bad_adapter(architectures=("NoSuchForCausalLM",)), "transformers has no model class NoSuchForCausalLM"),
        (bad_adapter(mlp_name="ffn"), r"looks for the module 'model\.layers\.0\.ffn\.gate_proj'"),
        (bad_adapter(operator_type=lambda self, layer: "attention" if layer else ""), "it must be a word"),
        (
            bad_adapter(roles=lambda self, layer: {"mlp.down": f"model.layers.{layer}.input_layernorm"}),
            "role 'mlp.down' of layer 0 names model.layers.0.input_layernorm, which is no linear module",
        ),
        (
            bad_adapter(roles=lambda self, layer: dict.fromkeys(("mlp.up", "mlp.gate"), "model.layers.0.mlp.up_proj")),
            "roles 'mlp.up' and 'mlp.gate' of layer 0 name the same module",
        ),
        (bad_adapter(head_layout=lambda self, layer: HeadLayout(4, 4, 8)), "k_proj gives 16 numbers"),
        (
            bad_adapter(window=lambda self, layer: 4),
            r"Bad\.window\(0\) is 4, but a query of L0\.attention_pattern sees 9",
        ),
    ],
)
def test_a_wrong_adapter_is_refused(adapter, told):
    refused(check_adapter, adapter, told)


def test_a_class_that_a_plugin_adds_to_transformers_is_checked_by_its_name(monkeypatch):
    config = type("OwnConfig", (LlamaConfig,), {"model_type": "own"})
    own = type("OwnForCausalLM", (LlamaForCausalLM,), {"config_class": config})
    added = AutoModelForCausalLM._model_mapping
    monkeypatch.setattr(added, "_extra_content", dict(added._extra_content))
    AutoModelForCausalLM.register(config, own)
    check_adapter(bad_adapter(architectures=("OwnForCausalLM",)))


def test_no_adapter_at_all_is_refused():
    refused(check_adapter, int, "takes a model or an adapter class")


def test_a_layer_that_needs_more_than_it_was_called_with_is_refused():
    """A state kept between layers makes whole forwards and single layers differ."""
    hf = build("llama")

    class Remembers(torch.nn.Module):
        def __init__(self, inner, before):
            super().__init__()
            self.inner, self.before, self.last = inner, before, None

        def forward(self, *args, **kwargs):
            output = self.inner(*args, **kwargs)
            self.last = output
            return output if self.before is None else output + 0.5 * self.before.last[:1]

    layers = hf.model.layers
    for index in (0, 1):
        layers[index].mlp = Remembers(layers[index].mlp, layers[0].mlp if index else None)

    class Adapter(LlamaAdapter):
        def roles(self, layer):
            return {}

    from xatlas.checks.adapters import _check_engine
    from xatlas.model import HookedModel

    model = HookedModel(hf, None, adapter=Adapter(hf), prove=False)
    refused(_check_engine, model, "the engine gives .* nats and Hugging Face's forward")


# -- probes ------------------------------------------------------------------------------------------


class Good(Probe):
    """Tokens per prompt. Unit: tokens. Control: none. Source: none, a test."""

    name = "good"
    variables: ClassVar = {"tokens": Variable(("prompt",), "token", "tokens run")}

    def measure(self, model, suite, inputs):
        return self.labelled(model.read(suite))

    def labelled(self, tokens, values=None):
        values = [float(p.n_tokens) for p in tokens.prompts] if values is None else values
        return label(self.variables, {"tokens": np.array(values)}, suite_coords(tokens), dropped=tokens.dropped)


def bad(**members):
    return type("Bad", (Good,), {"__doc__": Good.__doc__, **members})


def spoil(self, model, suite, inputs):
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    return self.labelled(model.read(suite))


def leave_hook(self, model, suite, inputs):
    model.model.register_forward_hook(lambda *_: None)
    return self.labelled(model.read(suite))


def other_each_time(self, model, suite, inputs):
    tokens = model.read(suite)
    return self.labelled(tokens, np.random.default_rng().random(len(tokens)))


def one_key_for_two_parts(self, model, suite, inputs):
    """Keeps two parts under one key: the second is the first's wherever there is a checkpoint."""
    tokens = model.read(suite)
    values = []
    for offset in (1.0, 2.0):
        found = inputs.checkpoint.load("part")
        values.append(np.full(len(tokens), offset) if found is None else found["x"])
        inputs.checkpoint.save("part", {"x": values[-1]})
    return self.labelled(tokens, values[0] - values[1])


def parts_that_draw_in_turn(self, model, suite, inputs):
    """Draws its numbers part by part from one generator: a part that is loaded leaves the next other ones."""
    tokens, draw = model.read(suite), np.random.default_rng(0)
    values = []
    for part in range(2):
        found = inputs.checkpoint.load(f"part {part}")
        values.append(draw.random(len(tokens)) if found is None else found["x"])
        inputs.checkpoint.save(f"part {part}", {"x": values[-1]})
    return self.labelled(tokens, sum(values))


def two_sweeps_of_one_label(self, model, suite, inputs):
    """What a sweep's label does not tell its conditions do."""
    tokens = model.read(suite)
    swept = [
        sweep(model, tokens.prompts, [(Intervention(site, Zero()),)], [KL()], checkpoint=inputs.checkpoint)[0, :, 0]
        for site in model.sites("mlp_out")[:2]
    ]
    return self.labelled(tokens, swept[0] - swept[1])


@pytest.fixture
def llama():
    return tiny_model(LlamaAdapter)


def test_a_good_probe_passes(llama):
    check_probe(Good, llama)
    check_probe(bad(measure=spoil, mutates=True), llama)
    check_probe(bad(measure=two_sweeps_of_one_label), llama)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"name": "Not A Name"}, "a probe's name is lower-case words"),
        ({"version": 0}, "a whole number from 1"),
        ({"__doc__": "Tokens per prompt. Unit: tokens. Source: none."}, "does not say its control"),
        ({"variables": {}}, "declares no variables"),
        ({"variables": {"tokens": Variable(("prompt",), "", "x")}}, r"must be Variable\(dims, units, long_name\)"),
        ({"variables": {"tokens": Variable(("prompt", "prompt"), "1", "x")}}, "has a dimension twice"),
        ({"sites": ("mlp_ou",)}, "did you mean 'mlp_out'"),
        ({"requires": (Requirement("layer_ablatio"),)}, "requires what can't be measured: unknown probe"),
        ({"requires": (Requirement("layer_ablation", {"kinds": "zero"}),)}, "unknown parameter of layer_ablation"),
        ({"measure": spoil}, r"changed the model's weights \(.*\): a probe that trains declares mutates"),
        ({"measure": leave_hook}, "leaves hooks on the model"),
        ({"measure": other_each_time}, "gives other numbers for 'tokens' with the same seed"),
        (
            {"measure": one_key_for_two_parts},
            r"other numbers with a checkpoint: two of its parts have one key \(part\)",
        ),
        ({"measure": parts_that_draw_in_turn}, "gives other numbers for 'tokens' when it is resumed"),
        ({"measure": lambda self, model, suite, inputs: 3}, "it returned int, not an xarray.Dataset"),
        ({"replicate": "seed"}, "no variable with the dimension 'seed'"),
    ],
)
def test_a_wrong_probe_is_refused(llama, members, told):
    refused(check_probe, bad(**members), told, model=llama)


def test_a_probe_without_measure_is_refused():
    class Unfinished(Probe):
        """Unit, control, source."""

        name = "unfinished"
        variables: ClassVar = {"x": Variable(("prompt",), "1", "x")}

    refused(check_probe, Unfinished, "Unfinished lacks measure")


def test_a_probe_receives_what_it_requires(llama):
    def with_input(self, model, suite, inputs):
        tokens = model.read(suite)
        return self.labelled(tokens, inputs.results["residual_norms"].norm.mean(("layer", "site", "position")).values)

    check_probe(bad(requires=(Requirement("residual_norms"),), measure=with_input), llama)


# -- comparisons -------------------------------------------------------------------------------------

FOUND = Finding("a finding of 1", 1.0, 0.5, 1.5, 0.1, 0.01, "supported", "a")


class Fine(Comparison):
    """Mean over prompts."""

    name = "fine"
    summary = "Means."
    requires = (Requirement("residual_norms"),)

    def compare(self, tree):
        models = [str(name) for name in tree.children]
        means = [float(tree[f"{model}/residual_norms"]["norm"].mean()) for model in models]
        return xr.Dataset({"norm": ("model", means)}, {"model": models})

    def plot(self, dataset):
        figure = Figure()
        figure.subplots()
        return figure

    def findings(self, dataset):
        return [FOUND]

    def table(self, dataset):
        return [{"model": str(name), "norm": 1.0} for name in dataset["model"].values]


@pytest.fixture(scope="module")
def tree():
    norms = xr.Dataset({"norm": ("prompt", [1.0, 2.0])}, {"prompt": ["p", "q"]})
    return xr.DataTree.from_dict({"/a/residual_norms": norms, "/b/residual_norms": norms * 2})


def test_a_good_comparison_passes(tree):
    check_comparison(Fine, tree)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"summary": ""}, "has no summary"),
        ({"requires": ()}, "requires no probe"),
        ({"requires": (Requirement("nowhere"),)}, "requires what can't be measured: unknown probe 'nowhere'"),
        ({"compare": lambda self, tree: xr.Dataset()}, "must return an xarray.Dataset with a 'model' dimension"),
        (
            {"compare": lambda self, tree: xr.Dataset({"x": ("model", [1.0, 2.0])}, {"model": ["b", "a"]})},
            "must name the models of the tree: a, b",
        ),
        ({"plot": lambda self, dataset: None}, "must return a matplotlib Figure, not NoneType"),
        ({"plot": lambda self, dataset: Figure()}, "a figure without axes"),
        ({"findings": lambda self, dataset: []}, "at least one finding"),
        ({"findings": lambda self, dataset: ["x"]}, "Finding objects, not str"),
        ({"findings": lambda self, dataset: [replace(FOUND, verdict="sure")]}, "has the verdict 'sure'"),
        ({"findings": lambda self, dataset: [replace(FOUND, low=2.0)]}, "a value outside its interval"),
        ({"findings": lambda self, dataset: [replace(FOUND, low=np.nan)]}, "supported without a number"),
        ({"findings": lambda self, dataset: [replace(FOUND, p=1.5)]}, "has the p-value 1.5"),
        ({"table": lambda self, dataset: [{"model": "a", "x": 1}]}, "no row for the model 'b'"),
        ({"table": lambda self, dataset: [{"model": "a", "x": [1]}]}, "column 'x' holds list"),
    ],
)
def test_a_wrong_comparison_is_refused(tree, members, told):
    refused(check_comparison, type("Bad", (Fine,), members), told, tree=tree)


def test_the_byte_tokenizer_gives_every_text_back():
    tokenizer = byte_tokenizer()
    text = "Über 3 + 4 = {x}\n\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
