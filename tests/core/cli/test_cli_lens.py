"""The lens command: a table that fits, files beside each other, the last row the model's own output."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

import xatlas
from xatlas import XatlasError
from xatlas.cli.output import WIDTH
from xatlas.comparisons import views

TEXT = "a 1 is to 2 as"


@pytest.fixture(scope="module")
def mini():
    return xatlas.load("lfm2-mini", device="cpu")


@pytest.mark.parametrize("target", [None, " 4"])
def test_the_last_row_is_the_models_own_output(mini, target):
    dataset = xatlas.lens(mini, "39 + 4 =", target=target)
    with torch.no_grad():
        own = mini.model(input_ids=mini.tokens("39 + 4 =")).logits[0].double().softmax(-1)
    last = dataset.isel(site=-1)
    np.testing.assert_allclose(last.top_probability, own.amax(-1), atol=1e-5)
    np.testing.assert_allclose(last.entropy, torch.special.entr(own).sum(-1), atol=1e-5)
    assert last.top_token.values.tolist() == [mini.reader.text_of(token) for token in own.argmax(-1).tolist()]
    if target:
        (token,) = mini.tokenizer(target, add_special_tokens=False).input_ids
        np.testing.assert_allclose(last.target_probability, own[:, token], atol=1e-5)
        assert last.target_rank.values.tolist() == (1 + (own > own[:, [token]]).sum(-1)).tolist()
    assert dataset.kl_to_final.isel(site=slice(-1)).min() > 1e-3


def test_the_layer_that_writes_the_answer_is_named(mini):
    """Of tokens at the last position: from where on one stays the likeliest, not where it first was."""

    def at(*tokens):
        top = ("site", "position"), np.array([["-", token] for token in tokens])
        return views.settled(xr.Dataset({"top_token": top}))

    assert at("a", "b", "a", "c", "c") == "c is the likeliest from layer 2 of 0 to 3 on"
    assert at("c", "a", "c") == "c is the likeliest from layer 1 of 0 to 1 on"
    assert at(" c", " c") == "·c is the likeliest from the embedding on"


def test_a_table_and_the_figures_files(cli, tmp_path):
    result = cli("lens", "tiny", TEXT, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-2])) <= WIDTH  # all but where the figure is
    with xr.open_dataset(next((tmp_path / "figures").glob("lens-*-a-1-is-to-2-as-*.nc"))) as dataset:
        rows = lines[1 : lines.index("")]
        assert [row.split()[0] for row in rows] == ["embedding", *map(str, range(dataset.sizes["site"] - 1))]
        last = views.visible(str(dataset.top_token.values[-1, -1]))
        assert rows[-1].rstrip(" ░▒▓█").endswith(last)
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg", ".nc", ".csv"}
    svg = next((tmp_path / "figures").glob("*.svg")).read_text()
    assert f">{last}<" in svg  # text stays text
    assert "<dc:date>" not in svg


def test_another_text_or_target_is_another_file_and_the_same_one_the_same_bytes(cli, tmp_path):
    for words in ([TEXT], [TEXT, "--target", "b"], [f"{TEXT} b"]):
        assert cli("lens", "tiny", *words, "--out", str(tmp_path)).exit_code == 0
    files = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert len(files) == 12
    assert cli("lens", "tiny", TEXT, "--out", str(tmp_path)).exit_code == 0
    assert {path: path.read_bytes() for path in files if path.suffix != ".nc"} == {
        path: data for path, data in files.items() if path.suffix != ".nc"
    }


def test_a_long_text_shows_the_last_positions_that_fit(cli, tmp_path):
    result = cli("lens", "tiny", "a b c d e f " * 4, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    table = result.stdout.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= WIDTH
    assert "Positions before" in result.stdout


def test_json_holds_the_ranks(cli, tmp_path):
    record = json.loads(cli("lens", "tiny", TEXT, "--target", "b", "--json", "--out", str(tmp_path)).stdout)
    ranks = record["data_vars"]["target_rank"]["data"]
    assert min(map(min, ranks)) >= 1
    assert record["attrs"]["target"] == "b"


def test_stored_views_are_no_comparisons_figures(cli, tmp_path):
    """``xatlas figures`` passes them by, where it draws what was compared."""
    assert cli("lens", "tiny", TEXT, "--out", str(tmp_path)).exit_code == 0
    result = cli("figures", str(tmp_path), "--out", str(tmp_path / "paper"))
    assert result.exit_code == 2
    assert "holds no data of comparisons" in result.stderr


MISTAKES = {
    "empty": (["tiny", ""], "the text is empty"),
    "several tokens": (["tiny", TEXT, "--target", " 12"], "is 3 tokens ("),
    "no target": (["tiny", TEXT, "--target", ""], "the target '' does not fit: it is empty"),
    "unknown": (["tinny", TEXT], "'tinny'"),
    "too long": (["tiny", "ab" * 400], "the text can't be read: it has"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, cli, tmp_path):
    words, told = MISTAKES[case]
    result = cli("lens", *words, "--out", str(tmp_path))
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "figures").exists()


def test_a_loaded_model_takes_no_settings(mini):
    with pytest.raises(XatlasError, match="leave out dtype"):
        xatlas.lens(mini, TEXT, dtype="float32")
