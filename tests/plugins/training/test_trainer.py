"""Fine-tuning through TRL: what is trained, how it goes on, how it stops, and that nothing is left of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import xatlas
from xatlas import XatlasError, manager, testing
from xatlas.model import HookedModel
from xatlas.plugins.training import trainer
from xatlas.plugins.training.data import of_prompts, split
from xatlas.plugins.training.measure import HeldOut
from xatlas.plugins.training.targets import target_modules
from xatlas.plugins.training.trainer import BETA, METHODS, Run, in_four_bits, lora, train


@pytest.fixture(scope="module")
def lfm2():
    return xatlas.load("lfm2-mini")


@pytest.fixture(scope="module")
def taught(lfm2):
    return split(lfm2, "letter_doubling")


@pytest.fixture(scope="module")
def held(lfm2, taught):
    return HeldOut(lfm2, taught[1])


@pytest.fixture(scope="module")
def targets(lfm2):
    return target_modules(lfm2, ["mlp"])


@pytest.fixture(scope="module")
def tiny():
    """Return a tiny hybrid, its targets and examples: for what goes on around a step, whatever it learns."""
    model = testing.tiny_model(manager.adapters()["Lfm2ForCausalLM"])
    return model, target_modules(model, ["mlp"]), split(model, "letter_doubling")[0]


def weights(tuned):
    return {name: w.detach().clone() for name, w in tuned.peft.named_parameters() if w.requires_grad}


def trained(model, targets, examples, run, **options):
    with lora(model, targets, run) as tuned:
        train(tuned, examples, run, **options)
        return weights(tuned)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_leaves_the_model_as_it_was(lfm2, taught, held, targets, method):
    before, state = held.measure(lfm2), copy.deepcopy(lfm2.model.state_dict())
    run, seen = Run(method, steps=8, learning_rate=1e-2, batch=4), []
    with lora(lfm2, targets, run) as tuned:
        start = held.measure(tuned.model)
        train(tuned, taught[0], run, progress=seen.append)
        after = held.measure(tuned.model)
        assert all(weight.dtype == torch.float32 for weight in weights(tuned).values())
    assert [each.step for each in seen] == list(range(1, 9))
    assert seen[5].tokens_per_second > 0
    if method != "qlora":  # whose weights are rounded before any training
        assert start["kl_shift"] == pytest.approx([0.0], abs=1e-9)
    assert after["kl_shift"][0] > start["kl_shift"][0] + 1e-3
    assert after["reward"][0] > before["reward"][0]
    if method in ("sft", "qlora"):
        assert after["heldout_loss"][0] < 0.8 * before["heldout_loss"][0]
    if method == "dpo":
        assert after["preference"][0] > before["preference"][0]
    now = lfm2.model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert "forward" not in vars(lfm2.model)
    assert held.measure(lfm2)["heldout_loss"] == before["heldout_loss"]


def test_the_loss_is_that_of_response_tokens(lfm2, taught, targets):
    """Prompts are of unequal lengths: with their tokens, or with padding, it would be another number."""
    examples = taught[0][:4]
    assert len({len(example.prompt) for example in examples}) > 1
    run, seen = Run(steps=1, batch=4), []
    with lora(lfm2, targets, run) as tuned:
        train(tuned, examples, run, progress=seen.append)
    expected = HeldOut(lfm2, examples).measure(lfm2)["heldout_loss"][0]
    assert seen[0].loss == pytest.approx(expected, rel=1e-3)


def test_the_shift_is_from_the_base_to_what_it_became(lfm2, taught):
    hf = copy.deepcopy(lfm2.model)
    with torch.no_grad():
        hf.model.layers[3].feed_forward.w2.weight.zero_()
        longer = [replace(each, response=each.response * 2) for each in taught[1][:8]]
        found = HeldOut(lfm2, longer).measure(HookedModel(hf, lfm2.tokenizer, prove=False), ["kl_shift", "reward"])
        shifts, rewards = [], []
        for each in longer:
            ids = torch.tensor([[*each.prompt, *each.response[:-1]]])
            own, new = (m(ids).logits[0, len(each.prompt) - 1 :].log_softmax(-1) for m in (lfm2.model, hf))
            shifts += (own.exp() * (own - new)).sum(-1).tolist()
            rewards.append(float(new.gather(1, torch.tensor(each.response)[:, None]).sum().exp()))
    assert found["kl_shift"] == pytest.approx([sum(shifts) / len(shifts)], rel=1e-3)
    assert found["reward"] == pytest.approx([sum(rewards) / len(rewards)], rel=1e-3)


def test_preferences_are_those_of_examples_with_a_rejected_response(lfm2, taught):
    """Each example as a family of its own, the better response in turn first and second; then some without another."""
    examples = [replace(each, family=str(number)) for number, each in enumerate(taught[1][:8])]
    examples[::2] = [replace(each, response=each.rejected, rejected=each.response) for each in examples[::2]]
    whole = HeldOut(lfm2, examples).measure(lfm2, ["preference"])["preference"]
    assert set(whole) == {0.0, 1.0}
    examples[0] = replace(examples[0], rejected=())
    found = HeldOut(lfm2, examples).measure(lfm2, ["preference"])["preference"]
    assert found == pytest.approx([float("nan"), *whole[1:]], nan_ok=True)


def test_a_seed_draws_the_order_of_examples_and_the_first_matrices(tiny):
    model, targets, examples = tiny

    def drawn(seed):
        run = Run(seed=seed)
        with lora(model, targets, run) as tuned:
            return trainer._rows(examples, run), torch.cat([each.flatten() for each in weights(tuned).values()])

    (rows, start), (same, again), (others, other) = map(drawn, (0, 0, 1))
    assert rows == same != others
    assert torch.equal(start, again)
    assert not torch.equal(start, other)


def test_the_newest_checkpoint_that_is_whole_is_gone_on_from(tmp_path):
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 11:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert trainer._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_run_that_was_killed_ends_like_one_that_was_not(tiny, tmp_path, monkeypatch, method):
    if method == "grpo":  # of a model that answers nothing
        monkeypatch.setattr(trainer, "_reward", lambda completions, **_: [float(len(text)) for text in completions])
    run = Run(method, steps=5, batch=2, learning_rate=3e-3)
    expected = trained(*tiny, run)
    assert all(bool(weight.any()) for weight in expected.values())

    def kill(step):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(*tiny, run, folder=tmp_path, every=3, watch=kill)
    seen = []
    found = trained(*tiny, run, folder=tmp_path, every=3, watch=seen.append)
    assert seen == [4, 5]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_out_of_memory_halves_the_batch_and_accumulates(tiny, capsys):
    run, tries = Run(steps=3, batch=8, learning_rate=3e-3), []
    expected = trained(*tiny, run)

    def full(step):
        tries.append(step)
        if len(tries) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = trained(*tiny, run, watch=full)
    assert tries == [1, 2, 1, 2, 3]
    assert "batches of 4, 2 to a step" in capsys.readouterr().err
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-4, rtol=0)

    def never(step):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(XatlasError, match="memory does not suffice for a batch of one"):
        trained(*tiny, Run(steps=1, batch=2), watch=never)


def test_a_loss_that_is_no_number_ends_the_run(tiny):
    model, targets, taught = tiny
    run = Run(steps=3)
    with lora(model, targets, run) as tuned:
        with torch.no_grad():
            next(w for name, w in tuned.peft.named_parameters() if "lora_B" in name).fill_(float("nan"))
        with pytest.raises(XatlasError, match=r"is not finite at step 1: lower the learning rate, 0\.001"):
            train(tuned, taught, run)


def test_gradients_through_four_bits_are_those_of_the_weights(lfm2):
    """A forward without gradients before must not spoil them, as it does where weights are then repacked."""
    import bitsandbytes

    texts = manager.suites()["train"].load().first_templates(1)
    known = [(*e.prompt, *e.response) for e in of_prompts(lfm2, texts)[::4]]
    every = target_modules(lfm2, ["all"])

    def gradient(model):
        with lora(model, every, Run(seed=1)) as tuned:
            for ids in (torch.tensor([each]) for each in known):
                with torch.no_grad():
                    tuned.peft.eval()(input_ids=ids)
                tuned.peft.train()(input_ids=ids, labels=ids).loss.backward()
            return torch.cat([weight.grad.flatten() for weight in tuned.peft.parameters() if weight.grad is not None])

    small = in_four_bits(lfm2)
    linear = {path: each for path, each in small.model.named_modules() if type(each).__name__ == "Linear4bit"}
    assert set(linear) == set(every.modules)
    assert not any(module.support_avx512bf16_for_cpu for module in linear.values())
    exact, rounded = gradient(lfm2), gradient(small)
    alike = torch.nn.functional.cosine_similarity
    assert 0.95 < float(alike(exact, rounded, dim=0)) < 0.9999
    unpacked = copy.deepcopy(lfm2.model)
    for path, module in linear.items():
        weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        unpacked.get_submodule(path).weight.data = weight
    assert float(alike(gradient(HookedModel(unpacked, None, prove=False)), rounded, dim=0)) > 0.9999


def test_settings_that_trl_would_choose_otherwise(lfm2, taught, targets):
    def settings(method):
        run = Run(method)
        with lora(lfm2, targets, run) as tuned:
            return trainer._settings(tuned.model, trainer._rows(taught[0], run), run, 8, 1)

    plain = settings("sft")
    assert not plain["bf16"]
    assert not plain["packing"]  # which a convolution would read across
    assert settings("grpo")["beta"] == BETA["grpo"] > 0


def test_what_a_method_needs_of_the_data_is_said(lfm2, targets):
    from xatlas.plugins.training.data import Example

    plain = [Example("f", (1, 2), (3,))]
    for method, what in (("dpo", "a rejected response"), ("grpo", "an answer")):
        run = Run(method, steps=1)
        with lora(lfm2, targets, run) as tuned, pytest.raises(XatlasError, match=what):
            train(tuned, plain, run)
    with pytest.raises(XatlasError, match="rank = 0 does not fit"):
        Run(rank=0)


def test_a_missing_package_is_said_in_one_line(monkeypatch):
    import sys

    from xatlas.plugins.training.data import needed

    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(XatlasError, match=r"training needs trl: pip install 'xatlas-lm\[train\]'"):
        needed("trl")
