"""The miniatures' recipe: same data for all, resumable, and no leak between lines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xatlas import XatlasError
from xatlas.architectures import minis
from xatlas.architectures.minis.card import BagOfTokens, card_text, solved, write_baseline, write_card
from xatlas.architectures.minis.configs import MLP_WIDTH, build
from xatlas.architectures.minis.muon import BatchedMuon
from xatlas.architectures.minis.recipe import export
from xatlas.architectures.minis.tokens import TARGET, TEXT, TokenFile, load_tokenizer, read_lines, train_tokenizer
from xatlas.architectures.minis.trainer import RECIPE, SEED_STEPS, Trainer, rate, weighted_loss
from xatlas.plugins.suites.__main__ import main as suites_main
from xatlas.suites import Prompt

NAMES = tuple(MLP_WIDTH)
SMALL = replace(RECIPE, lines_per_step=6, parts=2)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with a small training file and a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("minis")
    assert suites_main(["500", str(folder / "train.jsonl")]) == 0
    TokenFile(folder / "train.jsonl", train_tokenizer(folder / "train.jsonl", folder / "tokenizer"))
    return folder


def test_all_three_see_the_same_tokens_in_the_same_order(out):
    trainers = [Trainer(name, out, recipe=SMALL) for name in NAMES]
    for trainer in trainers:
        trainer.next_step = 3  # the order follows from the step, so the fifth step is the same wherever one starts
        trainer.step()
    assert len({trainer.tokens_seen for trainer in trainers}) == 1
    assert len({trainer.data.hash for trainer in trainers}) == 1
    first, second = (trainer.data.batches(4, 64, 2) for trainer in trainers[:2])
    for (tokens, kinds), (other_tokens, other_kinds) in zip(first, second, strict=True):
        assert np.array_equal(tokens, other_tokens)
        assert np.array_equal(kinds, other_kinds)


def test_another_seed_begins_elsewhere_and_from_other_weights(out):
    trainers = [Trainer("qwen-mini", out, recipe=replace(SMALL, seed=seed)) for seed in range(3)]
    assert len({trainer.checkpoint for trainer in trainers}) == 3
    assert len({float(trainer.model.lm_head.weight.detach().sum()) for trainer in trainers}) == 3
    seen = []
    for trainer in trainers:
        batches = trainer.data.batches
        trainer.data.batches = lambda step, *rest, batches=batches: seen.append(step) or batches(step, *rest)
        trainer.step()
    assert seen == [seed * SEED_STEPS for seed in range(3)]


def test_a_step_holds_its_lines_once_each(out):
    """Every row is one line: BOS, text, target, EOS, then nothing."""
    tokenizer = load_tokenizer(out / "tokenizer")
    lines = list(read_lines(out / "train.jsonl"))[128:192]
    rows = []
    for tokens, kinds in TokenFile(out / "train.jsonl", tokenizer).batches(2, 64, 3):
        for row, kind in zip(tokens, kinds, strict=True):
            real = row[kind > 0]
            assert real[0] == tokenizer.bos_token_id
            assert real[-1] == tokenizer.eos_token_id
            assert (kind[len(real) :] == 0).all()
            rows.append((tokenizer.decode(real[1 : -1 - (kind == 2).sum()]), tokenizer.decode(row[kind == 2])))
    assert sorted(rows) == sorted(lines)


def test_the_file_is_read_again_from_its_start(out):
    data = TokenFile(out / "train.jsonl", load_tokenizer(out / "tokenizer"))
    again = data.batches(500, 64, 1)[0][0]  # 500 steps of 64 lines are 64 times the file
    assert np.array_equal(again, data.batches(0, 64, 1)[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    model = build(name, 300, 0, 1, seed=0)
    tokens = np.random.default_rng(0).integers(2, 300, (3, 9))
    kinds = np.array([[TEXT] * 6 + [TARGET, TEXT]] * 3)
    padding = np.zeros((3, 4), dtype=np.int64)
    loss, targets = weighted_loss(model, tokens, kinds, 0.05)
    padded = np.concatenate([tokens, padding], 1), np.concatenate([kinds, padding], 1)
    loss_padded, targets_padded = weighted_loss(model, *padded, 0.05)
    assert loss_padded.item() == pytest.approx(loss.item(), rel=1e-5)
    assert targets_padded.item() == pytest.approx(targets.item(), rel=1e-5)
    log_p = model(input_ids=torch.from_numpy(tokens)).logits.log_softmax(-1)
    nll = -log_p[:, :-1].gather(-1, torch.from_numpy(tokens)[:, 1:, None])[..., 0]  # (line, predicted token)
    assert targets.item() == pytest.approx(nll[:, 6].sum().item(), rel=1e-5)
    rest = nll.sum() - nll[:, 6].sum()
    assert loss.item() == pytest.approx((nll[:, 6].sum() + 0.05 * rest).item(), rel=1e-5)  # text counts, but little


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_cuda_device_learns_what_the_cpu_learns(out):
    there, here = (Trainer("lfm2-mini", out, device, SMALL) for device in ("cuda", "cpu"))
    losses = [(float(there.step()), float(here.step())) for _ in range(3)]
    there.save()
    there.resume()
    losses.append((float(there.step()), float(here.step())))
    for on_cuda, on_cpu in losses:
        assert on_cuda == pytest.approx(on_cpu, rel=0.02)  # what rounding makes of three steps


def test_matrices_take_the_steps_of_muon():
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (3, 3)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}
    one = BatchedMuon(ours, **options)
    other = torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, its in zip(ours[:-1], theirs[:-1], strict=True):  # the last has no gradient
            mine.grad = torch.randn(mine.shape)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0.005)  # torch's rounds to bfloat16
    assert torch.equal(one.state[ours[0]]["momentum_buffer"], other.state[theirs[0]]["momentum_buffer"])


def test_resuming_gives_the_same_weights(out):
    straight = Trainer("lfm2-mini", out, recipe=SMALL)
    for _ in range(3):
        straight.step()
    broken = Trainer("lfm2-mini", out, recipe=SMALL)
    broken.step()
    broken.save()
    resumed = Trainer("lfm2-mini", out, recipe=SMALL)
    resumed.resume()
    for _ in range(2):
        resumed.step()
    assert resumed.tokens_seen == straight.tokens_seen
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(straight.average, resumed.average, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("decay_steps", [0, 1])
def test_export_leaves_the_checkpoint_alone(out, tmp_path, decay_steps):
    trainer = Trainer("smollm2-mini", out, recipe=SMALL)
    trainer.step()
    trainer.step()
    trainer.save()
    before = trainer.checkpoint.read_bytes()
    export("smollm2-mini", out, 0, tmp_path, decay_steps)
    assert trainer.checkpoint.read_bytes() == before
    facts = json.loads((tmp_path / "card.json").read_text())["training"]
    assert facts["steps"] == 2 + decay_steps
    assert facts["data_sha256"] == trainer.data.hash
    assert (tmp_path / "model.safetensors").stat().st_size <= 2_500_000


def test_the_card_states_tasks_widths_and_steps(out, tmp_path, capsys):
    trainer = Trainer("lfm2-mini", out, recipe=replace(SMALL, seed=1))
    trainer.step()
    trainer.save()
    export("lfm2-mini", out, 1, tmp_path, 0)
    assert suites_main(["facts", str(out / "train.jsonl")]) == 0
    (out / "facts.json").write_text(capsys.readouterr().out)
    write_baseline(out)
    write_card(tmp_path, "lfm2-mini", out)
    card, text = json.loads((tmp_path / "card.json").read_text()), (tmp_path / "CARD.md").read_text()
    assert card["name"] == "lfm2-mini:1"
    assert "14 layers of width 64, MLPs of width 148, 4 query heads on 2 key-value heads" in text
    assert "Layers with attention: 2, 4, 6, 8, 10, 12." in text
    assert f"1 steps of {RECIPE.lines_per_step} lines ({card['training']['tokens_seen']:,} tokens), seed 1" in text
    assert "corrupt twin in 10 % of the lines" in text
    assert "whose wordings training lacks" in text
    families = card["evaluation"]["families"]
    assert families["arithmetic"]["share_of_training"] == pytest.approx(1 / 6, abs=1e-4)


def test_aliases_of_the_seeds_that_lie_there(tmp_path, monkeypatch):
    for name in ("lfm2-mini-1", "lfm2-mini-4", "qwen-mini-2", "lfm2-mini-x", "lfm2-mini-0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(minis, "FOLDER", tmp_path)
    found = minis.xatlas_models()
    assert sorted(found) == sorted((*NAMES, "lfm2-mini:1", "lfm2-mini:4", "qwen-mini:2"))
    assert found["lfm2-mini:4"].location == str(tmp_path / "lfm2-mini-4")
    assert {alias: source.alias for alias, source in found.items()} == {alias: alias for alias in found}


def test_rates():
    assert rate(0) < rate(100) < rate(RECIPE.warmup_steps) == rate(10_000) == RECIPE.learning_rate
    assert rate(5000, (5000, 5300)) == pytest.approx(RECIPE.learning_rate)
    assert rate(5150, (5000, 5300)) == pytest.approx(0.51 * RECIPE.learning_rate)
    assert rate(5300, (5000, 5300)) == pytest.approx(0.02 * RECIPE.learning_rate)


def test_shapes():
    """One size within 5 %, at most 2.5 MB in bfloat16; LFM2 builds what its config says, in LFM2.5-230M's pattern."""
    models = {name: build(name, 1024, 0, 1, seed=0) for name in NAMES}
    counts = [model.num_parameters() for model in models.values()]
    assert max(counts) <= min(1.05 * min(counts), 2_500_000 / 2)
    lfm2 = models["lfm2-mini"].model.layers
    assert "".join("A" if hasattr(layer, "self_attn") else "c" for layer in lfm2) == "ccAcAcAcAcAcAc"
    assert {len(model.model.layers) for model in models.values()} == {14}
    assert lfm2[0].feed_forward.w1.out_features == MLP_WIDTH["lfm2-mini"]
    with pytest.raises(XatlasError, match="lfm2-mini"):
        build("lfm-mini", 1024, 0, 1, seed=0)


def test_seed_decides_the_weights():
    first, again, other = (build("qwen-mini", 300, 0, 1, seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_missing_training_file(tmp_path):
    with pytest.raises(XatlasError, match=r"plugins\.suites"):
        next(read_lines(tmp_path / "train.jsonl"))


def test_bag_of_tokens_cannot_see_order(out):
    """Right where one token gives the answer away, blind to order."""
    lines = [{"family": "f", "text": "cat dog", "target": " a"}, {"family": "f", "text": "cow fox", "target": " b"}]
    guess = BagOfTokens(lines, load_tokenizer(out / "tokenizer"))
    assert guess.right(Prompt("1", "f", "cat", " a"))
    assert guess.right(Prompt("2", "f", "fox cow", " b"))
    assert not guess.right(Prompt("3", "f", "fox cow", " a"))


def test_a_target_is_solved_as_a_whole(out):
    """A model that always says the same token solves one-token targets of it, and no longer ones."""
    tokenizer = load_tokenizer(out / "tokenizer")
    token = tokenizer(" x")["input_ids"][-1]

    class Same:
        def __call__(self, input_ids):
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            logits[..., token] = 1
            return type("Output", (), {"logits": logits})

    prompts = [Prompt("1", "f", "a b", " x"), Prompt("2", "f", "a b", " x y"), Prompt("3", "f", "b", " y")]
    assert solved(Same(), tokenizer, prompts) == {"1": True, "2": False, "3": False}


def test_card_says_how_many_families_are_solved():
    row = {"bag_of_tokens": 0.1, "share_of_training": 0.5}
    families = {
        "one": row | {"accuracy": 0.9, "overlap_after_masking": 0.0},
        "two": row | {"accuracy": 0.88, "overlap_after_masking": 0.25},
    }
    card = {
        "name": "m",
        "class": "C",
        "parameters": 1,
        "layers": ["full_attention"],
        "widths": {"stream": 8, "mlp": 16},
        "heads": {"query": 2, "key_value": 1},
        "weights_sha256": "w",
        "training": {"seed": 0, "steps": 1, "lines_per_step": 2, "tokens_seen": 3, "slips": 0.0},
        "evaluation": {"suite_sha256": "s", "families": families},
    }
    text = card_text(card)
    assert "in 1 of 2 families; mean accuracy 0.890" in text
    assert "training has some of its wordings" in text
    assert "Layers with attention: all." in text
