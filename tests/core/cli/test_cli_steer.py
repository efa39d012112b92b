"""The steer command: clean and steered text side by side, the plain loop's KL, one line per mistake."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import reference as ref
import torch
import xarray as xr
from running import suite_file, tiny
from typer.testing import CliRunner

from xatlas.cli import app
from xatlas.files import write_hashed
from xatlas.probing.directions import random_direction

TEXT = "a 1 is to 2 as"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steer")
    tiny(folder)
    suite_file(folder / "suite.jsonl")
    suite_file(folder / "reference.jsonl", "abcd", 12)
    return folder


@pytest.fixture(scope="module")
def hf(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32).eval()


@pytest.fixture
def steer(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*words, text=TEXT, **options):
        given = {"direction": "random:3", "layer": 0, "strength": 5} | options
        named = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        suites = ["--suite", "suite.jsonl", "--reference", "reference.jsonl"]
        return CliRunner().invoke(app, ["steer", "tiny", text, *named, *suites, *words])

    return call


def answer(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def kl_by_hand(folder, hf, vector, layer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    ids = [hf.config.eos_token_id, *tokenizer(TEXT, add_special_tokens=False).input_ids]

    def add(value):
        value = value.clone()
        value[:, -1] += vector
        return value

    return ref.kl(ref.logits(hf, ids)[-1], ref.logits(hf, ids, [(layer, "resid_post", add)])[-1])


def test_the_first_step_is_the_plain_loops(steer, folder, hf):
    width = hf.config.hidden_size
    record = answer(steer("--json"))
    assert ref.agree(record["kl"], kl_by_hand(folder, hf, 5 * random_direction(width, 3), 0))
    assert record["kl"] > 1e-4
    assert record["length"] == 5


def test_every_newest_token_is_steered(steer, folder, hf):
    """A push towards one token's unembedding, after the last layer, makes that token follow at every step."""
    token = 40
    np.save(folder / "push.npy", hf.lm_head.weight[token].detach().numpy())
    record = answer(steer("--json", direction="push.npy", layer=hf.config.num_hidden_layers - 1, strength=1e4))
    assert record["steered"] != record["clean"]
    again = answer(steer("--json", direction="push.npy", layer=hf.config.num_hidden_layers - 1, strength=2e4))
    assert again["steered"] == record["steered"]
    words = record["steered"].strip()
    assert words
    assert len(set(words.split())) == 1 or words == words[: len(words) // 30] * 30


def test_relative_strength_is_a_multiple_of_the_norm(steer):
    one, two = (answer(steer("--json", "--relative", strength=strength))["length"] for strength in (1, -2))
    assert two == pytest.approx(-2 * one)
    assert one != 1


def test_both_continuations_stand_side_by_side(steer):
    result = steer()
    assert result.exit_code == 0
    first = result.stdout.splitlines()[0].split()
    assert first == ["clean", "steered"]
    assert "KL(clean || steered) at the first step: " in result.stdout


def test_a_family_and_a_stored_direction_are_the_same(steer, folder, hf):
    layers, width = hf.config.num_hidden_layers, hf.config.hidden_size
    kept = np.stack([np.stack([random_direction(width, seed)] * layers) for seed in (3, 4)])
    data = xr.Dataset(
        {"direction_vector": (("direction", "layer", "d_model"), kept)}, coords={"direction": ["random:3", "other"]}
    )
    data.to_netcdf(folder / "kept.nc")
    stored = answer(steer("--json", direction="kept.nc:random:3"))
    assert stored["kl"] == pytest.approx(answer(steer("--json"))["kl"])
    family = answer(steer("--json", direction="b"))
    assert family["kl"] != pytest.approx(stored["kl"])


MISTAKES = {
    "layer": ({"layer": 99}, "layer 99 is out of range: the model has layers 0 to"),
    "negative layer": ({"layer": -1}, "layer -1 is out of range"),
    "strength": ({"strength": 0}, "strength 0 changes nothing"),
    "strength nan": ({"strength": "nan"}, "is no number"),
    "family": ({"direction": "f"}, "unknown family 'f'"),
    "no file": ({"direction": "none.npy"}, "no file 'none.npy'"),
    "no dataset": ({"direction": "none.nc:a"}, "no file 'none.nc'"),
    "width": ({"direction": "wide.npy"}, "has 7 numbers, but the model's stream is"),
    "nan": ({"direction": "nan.npy"}, "NaN or infinity in 1 of"),
    "zero": ({"direction": "zero.npy"}, "zero everywhere"),
    "text": ({"direction": "text.npy"}, "must hold real numbers"),
    "damaged": ({"direction": "damaged.npy"}, "can't be read"),
    "layers": ({"direction": "layers.npy", "layer": 1}, "holds directions for layers 0 to 0, not for 1"),
    "no name": ({"direction": "two.nc"}, "keeps 2 directions: name one"),
    "wrong name": ({"direction": "two.nc:ax"}, "unknown direction in 'two.nc' 'ax'"),
    "other than its hash": ({"direction": "edited.nc:aa"}, "edited.nc is damaged: it differs from the hash"),
    "garbage": ({"direction": "garbage.nc:aa"}, "garbage.nc cannot be read as netCDF"),
    "foreign": ({"direction": "foreign.nc:a"}, "keeps no directions"),
}


@pytest.fixture(scope="module")
def files(folder, hf):
    width = hf.config.hidden_size
    np.save(folder / "wide.npy", np.ones(7))
    np.save(folder / "nan.npy", np.r_[np.nan, np.ones(width - 1)])
    np.save(folder / "zero.npy", np.zeros(width))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.save(folder / "layers.npy", np.ones((1, width)))
    (folder / "damaged.npy").write_text("no array")
    two = xr.Dataset({"direction_vector": (("direction", "layer", "d_model"), np.ones((2, 1, 3)))})
    two.assign_coords(direction=["aa", "bb"]).to_netcdf(folder / "two.nc")
    write_hashed(folder / "edited.nc", b"as it was")
    shutil.copy(folder / "two.nc", folder / "edited.nc")
    (folder / "garbage.nc").write_bytes(b"no netCDF")
    xr.Dataset({"kl": ("x", np.ones(2))}).to_netcdf(folder / "foreign.nc")


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, steer, files):
    options, told = MISTAKES[case]
    result = steer(**options)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert told in lines[0]
    assert result.stdout == ""
