"""A probe cannot spoil the next: what it leaves changed is its failure by name, and the others' numbers are right."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import Counting, another, go, plugged, seeds

from xatlas import check_probe
from xatlas.api import load, measure
from xatlas.config import MeasureConfig
from xatlas.contracts.probe import ReadingProbe
from xatlas.errors import XatlasError
from xatlas.results.store import Store
from xatlas.run.isolation import State


def rotary(m):
    m.model.model.rotary_emb.inv_freq.mul_(1.1)


def forward(m):
    mlp = m.model.model.layers[0].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def class_forward(m):
    cls = type(m.model.model.layers[0].mlp)
    original = cls.forward
    cls.forward = lambda self, x: 2 * original(self, x)


def class_call(m):
    cls = type(m.model.model.norm)
    cls.__call__ = lambda self, x: 2 * torch.nn.Module.__call__(self, x)


def hook(m):
    m.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)


def engine(m):
    import xatlas.engine.sweep

    xatlas.engine.sweep.sweep = lambda *args, **kwargs: 0


def parameter(m):
    m.model.model.norm.weight = torch.nn.Parameter(m.model.model.norm.weight * 2)


def wrapped(m):
    m.model.model.layers[0].mlp = torch.nn.Sequential(m.model.model.layers[0].mlp)


LAYER = "model.layers.0"
#: Spoiler → what it does, and what is said of it.
SPOILERS = {
    "weight": (lambda m: m.model.model.norm.weight.data.add_(1), r"changed the model's weights \(model.norm.weight\)"),
    "new weight": (parameter, r"changed the model's weights \(model.norm.weight"),
    "rotary buffer": (rotary, "changed the buffer model.rotary_emb.inv_freq"),
    "forward hook": (hook, f"leaves hooks on the model \\({LAYER}.mlp, forward_hooks"),
    "pre-hook": (lambda m: m.model.register_forward_pre_hook(lambda *_: None), "leaves hooks on the model"),
    "backward hook": (lambda m: m.model.register_full_backward_hook(lambda *_: None), "leaves hooks on the model"),
    "state-dict hook": (
        lambda m: m.model.lm_head.register_state_dict_post_hook(lambda *_: None), r"hooks .*\(lm_head, state_dict_hooks"
    ),
    "global hook": (
        lambda m: torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None),
        r"leaves hooks on all modules \(global_forward_hooks\)",
    ),
    "forward": (forward, f"changed {LAYER}.mlp.forward"),
    "forward of a class": (class_forward, "patched LlamaMLP.forward"),
    "call of a class": (class_call, "patched LlamaRMSNorm.__call__"),
    "logits of the adapter": (lambda m: setattr(m.adapter, "logits", lambda h: h), "changed adapter.logits"),
    "the engine": (engine, "patched xatlas.engine.sweep.sweep"),
    "softmax": (lambda m: setattr(torch.nn.functional, "silu", torch.nn.functional.relu), "torch.nn.functional.silu"),
    "a module": (wrapped, f"changed the module {LAYER}.mlp"),
    "an attribute": (lambda m: setattr(m.model.model.layers[0].self_attn, "scaling", 0.1), "self_attn.scaling"),
    "train mode": (lambda m: m.model.train(), r"changed model.training and \d+ more"),
    "gradients": (lambda m: m.model.requires_grad_(True), "changed the requires_grad of model.embed_tokens"),
    "attention": (lambda m: m.model.set_attn_implementation("eager"), "config._attn_implementation"),
    "tokens": (lambda m: m.tokenizer.add_tokens(["is to"]), "changed the tokenizer's size"),
    "special tokens": (lambda m: m.tokenizer.add_special_tokens({"bos_token": "a"}), "tokenizer's special_tokens_map"),
    "chat template": (lambda m: setattr(m.tokenizer, "chat_template", "x"), "changed the tokenizer's chat_template"),
    "reader": (lambda m: setattr(m.reader, "first_token", 5), "changed reader.first_token"),
    "dtype": (lambda m: torch.set_default_dtype(torch.float64), "changed torch's default dtype"),
    "grad mode": (lambda m: torch.set_grad_enabled(False), "changed torch's grad mode"),
    "deterministic": (lambda m: torch.use_deterministic_algorithms(True), "changed torch's deterministic algorithms"),
    "threads": (lambda m: torch.set_num_threads(torch.get_num_threads() + 1), "changed torch's number of threads"),
}  # fmt: skip


def logits(self, model, suite, inputs):
    ids = model.tokens([model.read(suite).prompts[0]])
    result = seeds(self.variables, suite, inputs)
    result["value"][:] = float(model.model(input_ids=ids).logits[0, -1, 7]) + float(torch.rand(1)) + random.random()
    return result


@pytest.fixture(scope="module")
def right(folder, tmp_path_factory):
    from xatlas.loading.model_names import resolve

    settings = MeasureConfig.make(
        suite=str(folder / "suite.jsonl"), reference=str(folder / "reference.jsonl"), device="cpu"
    )
    return value(resolve(str(folder / "tiny")), settings, tmp_path_factory.mktemp("right"), [])


def value(model, settings, path, before, failures=0):
    """Return what is measured after other probes; those that fail are counted."""
    store = Store(path)
    with plugged(xatlas_probes=[*before, another("after", logits)]):
        outcome = go(model, settings, store, *(probe.name for probe in before), "after")
    assert [failure.what for failure in outcome.failures] == [f"spoils on {model.slug}"] * failures
    return store.read(outcome.measured[-1].job)["value"].values


@pytest.mark.parametrize("case", SPOILERS)
def test_what_a_probe_leaves_changed_is_its_failure_and_nobody_elses(case, folder, settings, model, right, tmp_path):
    spoil, told = SPOILERS[case]

    def spoiling(self, hooked, suite, inputs):
        spoil(hooked)
        return seeds(self.variables, suite, inputs)

    store = Store(tmp_path)
    with plugged(xatlas_probes=[another("spoils", spoiling), another("after", logits)]):
        outcome = go(model, settings, store, "spoils", "after")
    assert [failure.what for failure in outcome.failures] == [f"spoils on {model.slug}"]
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(outcome.failures[0].reason)
    assert not list(tmp_path.glob("*/spoils-*.nc"))
    np.testing.assert_array_equal(store.read(outcome.measured[0].job)["value"].values, right)


def test_a_probe_that_crashes_spoils_nothing_either(settings, model, right, tmp_path):
    def crash(self, hooked, suite, inputs):
        rotary(hooked)
        raise ValueError("no")

    np.testing.assert_array_equal(value(model, settings, tmp_path, [another("spoils", crash)], failures=1), right)


def test_suite_and_global_seeds_are_each_probes_own(settings, model, right, tmp_path):
    def change(self, hooked, suite, inputs):
        object.__setattr__(suite.prompts[0], "text", "another text")
        return seeds(self.variables, suite, inputs)

    def draw(self, hooked, suite, inputs):
        torch.rand(3), random.random(), np.random.random()
        return seeds(self.variables, suite, inputs)

    before = settings.suite.prompts[0].text
    states = torch.get_rng_state(), random.getstate()
    probes = [another("draws", draw), another("spoils", change)]
    np.testing.assert_array_equal(value(model, settings, tmp_path, probes, failures=1), right)
    assert settings.suite.prompts[0].text == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_what_a_probe_draws_by_a_global_generator_is_its_seeds_whatever_was_drawn_before(settings, model, tmp_path):
    def draw():
        return torch.rand(1).item(), random.random(), np.random.random()

    def drawing(self, hooked, suite, inputs):
        result = seeds(self.variables, suite, inputs)
        result["value"][:3] = list(draw())
        return result

    def run(name, seed=0):
        store = Store(tmp_path / name)
        (step,) = go(model, replace(settings, seed=seed), store, "draws").measured
        draw()
        return store.read(step.job)["value"].values[:3]

    with plugged(xatlas_probes=[another("draws", drawing)]):
        first, again, other = run("first"), run("again"), run("other", seed=1)
    assert np.array_equal(first, again)
    assert (first != other).all()


def reading(name, finish, update=lambda self, capture: None):
    def start(self, model, suite, inputs):
        self.model, self.suite, self.inputs, self.sum = model, suite, inputs, 0.0

    attributes = {
        "name": name, "sites": ("resid_post",), "variables": Counting.variables,
        "start": start, "update": update, "finish": finish,
    }  # fmt: skip
    return type(name, (ReadingProbe,), attributes)


def total(self):
    result = seeds(self.variables, self.suite, self.inputs)
    result["value"][:] = self.sum
    return result


def adding(self, capture):
    self.sum += sum(float(value.double().sum()) for value in capture.values.values())


def test_of_probes_that_read_together_the_one_that_spoils_is_named(settings, model, tmp_path):
    def spoil(self):
        rotary(self.model)
        return total(self)

    @torch.inference_mode()
    def clobber(self, capture):
        for each in capture.values.values():
            each.zero_()

    store = Store(tmp_path)
    with plugged(xatlas_probes=[reading("sums", total, adding)]):
        alone = store.read(go(model, settings, store, "sums").measured[0].job)["value"]
    together = [reading("clobbers", total, clobber), reading("sums", total, adding), reading("spoils", spoil)]
    store = Store(tmp_path / "together")
    with plugged(xatlas_probes=together):
        outcome = go(model, settings, store, "clobbers", "spoils", "sums")
    assert [failure.what for failure in outcome.failures] == [f"spoils on {model.slug}"]
    assert sorted(step.job.probe for step in outcome.measured) == ["clobbers", "sums"]
    np.testing.assert_array_equal(store.read(outcome.measured[-1].job)["value"], alone)


def test_hooks_of_the_users_own_stay_and_are_nobodys_fault(folder):
    hooked = load(str(folder / "tiny"), device="cpu")
    seen = []
    handles = [
        hooked.model.model.layers[0].register_forward_hook(lambda *_: seen.append(1)),
        hooked.model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output),
    ]
    arguments = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl")}
    with_hooks = measure(hooked, "residual_norms", **arguments)
    assert seen
    seen.clear()
    hooked.model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert seen
    handles[1].remove()
    assert not np.allclose(with_hooks.norm, measure(hooked, "residual_norms", **arguments).norm, equal_nan=True)


def test_a_loaded_model_that_a_probe_spoiled_must_be_loaded_anew(folder):
    hooked = load(str(folder / "tiny"), device="cpu")
    told = "probe 'spoils' failed: it changed the buffer .* must be loaded anew"
    spoiling = another("spoils", lambda self, m, suite, inputs: rotary(m))
    with plugged(xatlas_probes=[spoiling]), pytest.raises(XatlasError, match=told):
        measure(hooked, "spoils", suite=str(folder / "suite.jsonl"))


def test_what_lasts_only_for_the_process_is_set_right_for_a_loaded_model(folder):
    hooked = load(str(folder / "tiny"), device="cpu")
    spoiling = another("spoils", lambda self, *_: torch.set_default_dtype(torch.float64))
    with plugged(xatlas_probes=[spoiling]), pytest.raises(XatlasError, match="default dtype") as caught:
        measure(hooked, "spoils", suite=str(folder / "suite.jsonl"))
    assert "anew" not in str(caught.value)
    assert torch.get_default_dtype() == torch.float32


def test_running_and_generating_change_nothing(folder):
    """Caches that a forward makes, padding, other lengths, gradients that are asked for and dropped."""
    hooked = load("lfm2-mini", device="cpu")
    state = State(hooked)
    ids = hooked.tokenizer(["a text", "a longer text that is padded"], padding=True, return_tensors="pt")
    hooked.model.generate(**ids, max_new_tokens=3, do_sample=False)
    embedded = hooked.model.get_input_embeddings()(ids["input_ids"]).requires_grad_()
    torch.autograd.grad(hooked.model(inputs_embeds=embedded).logits.sum(), embedded)
    state.look()
    assert (state.changed, state.lost) == ([], False)


def test_a_patch_that_outlives_the_model_is_told(settings, model, tmp_path):
    """What can't be undone is met when the model is loaded again: no number is measured on it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    original = functions["sdpa"]

    def patched(*args, **kwargs):
        output, weights = original(*args, **kwargs)
        return 2 * output, weights

    def spoil(self, *_):
        functions["sdpa"] = patched

    try:
        with plugged(xatlas_probes=[another("spoils", spoil), another("after", logits)]):
            outcome = go(model, settings, Store(tmp_path), "spoils", "after")
    finally:
        functions["sdpa"] = original
    assert [failure.what.split()[0] for failure in outcome.failures] == ["spoils", "after"]
    assert "only a new process can set right" in outcome.failures[1].reason


# -- what plugins raise and print ------------------------------------------------------------------


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [SystemExit(3), Odd("x"), GeneratorExit(), StopIteration("x"), RuntimeError("two\nlines")]
)
def test_whatever_a_probe_raises_is_its_failure_with_file_and_line(error, settings, model, right, tmp_path):
    def leave(self, hooked, suite, inputs):
        raise error

    store = Store(tmp_path)
    with plugged(xatlas_probes=[another("leaves", leave), another("after", logits)]):
        outcome = go(model, settings, store, "leaves", "after")
    reason = outcome.failures[0].reason
    assert reason.startswith(type(error).__name__)
    assert reason.endswith(f"({__file__}, line {leave.__code__.co_firstlineno + 1})")
    np.testing.assert_array_equal(store.read(outcome.measured[0].job)["value"].values, right)


def test_the_line_is_the_plugins_where_a_library_raised(settings, model, tmp_path):
    def crash(self, hooked, suite, inputs):
        return torch.zeros(2) @ torch.zeros(3)

    with plugged(xatlas_probes=[another("crashes", crash)]):
        outcome = go(model, settings, Store(tmp_path), "crashes")
    assert outcome.failures[0].reason.endswith(f"({__file__}, line {crash.__code__.co_firstlineno + 1})")


def test_ctrl_c_stops_the_run(settings, model, tmp_path):
    def interrupt(self, *_):
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    with plugged(xatlas_probes=[another("interrupted", interrupt)]), pytest.raises(KeyboardInterrupt):
        go(model, settings, Store(tmp_path), "interrupted")
    assert torch.get_default_dtype() == torch.float32


def test_suites_that_leave_are_told(folder):
    from xatlas.suites import SuiteSpec

    def leave():
        sys.exit("no")

    with plugged(xatlas_suites=[SuiteSpec("leaves", "", leave)]), pytest.raises(XatlasError, match="SystemExit: no"):
        MeasureConfig.make(suite="leaves")


def test_check_probe_tells_a_probe_that_leaves():
    with pytest.raises(XatlasError, match="SystemExit: 3"):
        check_probe(another("leaves", lambda *_: sys.exit(3), __doc__="Unit, control, source."))


def test_what_a_probe_prints_goes_to_stderr_and_files_stay_where_they_were(
    settings, model, tmp_path, capsys, monkeypatch
):
    def print_and_move(self, hooked, suite, inputs):
        print("from the probe")
        sys.stdout.write("and more\n")
        inputs.checkpoint.save("part", {"x": np.zeros(1)})
        os.chdir("/")
        inputs.checkpoint.save("part", {"x": np.zeros(1)})
        return seeds(self.variables, suite, inputs)

    monkeypatch.chdir(tmp_path)
    with plugged(xatlas_probes=[another("prints", print_and_move)]):
        outcome = go(model, settings, Store("atlas"), "prints")
    assert not outcome.failures
    assert list((tmp_path / "atlas").glob("*/prints-*.nc"))
    assert os.getcwd() == str(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "from the probe\nand more" in err


def test_descriptor_1_is_for_results_once_a_program_asks():
    code = (
        "import os, sys; from xatlas.manager import calling, keep_stdout_for_results; keep_stdout_for_results()\n"
        "with calling(None):\n    print('a'); os.write(1, b'b\\n'); os.system('echo c')\n"
        "    print('d', file=sys.__stdout__)\n"
        "print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert sorted(done.stderr.split()) == ["a", "b", "c", "d"]


def test_threads_that_call_plugins_give_stdout_back():
    from xatlas.manager import calling

    before, one, other = sys.stdout, calling(None), calling(None)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert sys.stdout is sys.stderr
    other.__exit__(None, None, None)
    assert sys.stdout is before
