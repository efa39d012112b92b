"""The attention command: a table that fits, one map for each head, files beside each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

import xatlas
from xatlas import views
from xatlas.cli.output import WIDTH
from xatlas.comparisons.views import draw_attention, shortened

TEXT = "a 1 is to 2 as"


@pytest.fixture(scope="module")
def mini():
    return xatlas.load("lfm2-mini", device="cpu")


def test_a_pattern_is_the_models_own(mini):
    layer = mini.operator_types.index("attention")
    dataset = xatlas.attention(mini, "39 + 4 =", layer)
    before = mini.model.config._attn_implementation
    mini.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = mini.model(mini.tokens("39 + 4 ="), output_attentions=True).attentions
    finally:
        mini.model.set_attn_implementation(before)
    (theirs, *_) = [each for each in attentions if each is not None]
    np.testing.assert_allclose(dataset["pattern"], theirs[0], atol=1e-6)
    np.testing.assert_allclose(dataset["pattern"].sum("key"), 1, atol=1e-5)
    np.testing.assert_allclose(
        dataset["first_weight"], dataset["pattern"].sel(key=0, query=slice(2, None)).mean("query")
    )
    assert dataset["kv_group"].values.tolist() == [mini.head_layouts[layer].kv_group(h) for h in dataset["head"].values]


def test_a_table_and_the_figures_files(cli, tmp_path):
    result = cli("attention", "tiny", TEXT, "--layer", "1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= WIDTH
    with xr.open_dataset(next((tmp_path / "figures").glob("attention-*-a-1-is-to-2-as-*.nc"))) as dataset:
        assert [row.split()[0] for row in table[2:]] == [str(head) for head in dataset["head"].values]
        last = dataset["pattern"].isel(head=0, query=-1)
        assert f"({int(last.argmax('key'))}) {float(last.max()):.2f}" in table[2]
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg", ".nc", ".csv"}
    with next((tmp_path / "figures").glob("*.svg")).open() as svg:
        assert ">head 0: " in svg.read()
    assert cli("attention", "tiny", TEXT, "--layer", "0", "--out", str(tmp_path)).exit_code == 0
    assert len(list((tmp_path / "figures").iterdir())) == 8  # another layer is another file


@pytest.mark.parametrize(("length", "named"), [(4, True), (40, False)])
def test_one_map_for_each_head_with_tokens_where_they_fit(mini, length, named):
    layer = mini.operator_types.index("attention")
    dataset = xatlas.attention(mini, "3 $" * (length // 3 + 1), layer)
    figure = draw_attention(dataset)
    figure.draw_without_rendering()
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert len(maps) == dataset.sizes["head"]
    (limits,) = {mesh.get_clim() for axes in maps for mesh in axes.collections}
    assert limits == (0, 1)
    drawn = maps[1].collections[0].get_array()
    np.testing.assert_allclose(drawn[-1], dataset["pattern"].isel(head=1, query=-1))
    assert np.ma.getmaskarray(drawn)[0, 1:].all()  # no token sees a later one
    labels = [tick.get_text() for tick in maps[0].get_yticklabels()]
    assert (labels == [shortened(str(token)) for token in dataset["key_token"].values]) == named


def test_a_text_of_two_tokens_has_a_pattern_and_no_scores(cli, tmp_path):
    result = cli("attention", "tiny", "a", "--layer", "1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "the text is too short" in result.stdout


def test_json_holds_the_pattern(cli, tmp_path):
    words = ["attention", "tiny", TEXT, "--layer", "1", "--json", "--out", str(tmp_path)]
    record = json.loads(cli(*words).stdout)
    pattern = np.array(record["data_vars"]["pattern"]["data"])
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    assert record["attrs"]["layer"] == 1


MISTAKES = {
    "empty": (["tiny", "", "--layer", "1"], "the text is empty"),
    "out of range": (["tiny", TEXT, "--layer", "9"], "layer 9 is out of range: the model has layers 0 to 1"),
    "below 0": (["tiny", TEXT, "--layer", "-1"], "layer -1 is out of range"),
    "conv layer": (["lfm2-mini", TEXT, "--layer", "0"], "layer 0 of lfm2-mini is a conv layer, without attention"),
    "unknown": (["tinny", TEXT, "--layer", "1"], "'tinny'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, cli, tmp_path):
    words, told = MISTAKES[case]
    result = cli("attention", *words, "--out", str(tmp_path))
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "figures").exists()


def test_a_model_without_attention_is_one_line():
    from models import build

    from xatlas.errors import XatlasError
    from xatlas.model import HookedModel
    from xatlas.testing import byte_tokenizer

    hf = build("lfm2", vocab_size=260, layer_types=["conv"] * 3)
    with pytest.raises(XatlasError, match="small has no attention: its layers are conv"):
        views.attention(HookedModel(hf, byte_tokenizer(), slug="small"), TEXT, 0)
