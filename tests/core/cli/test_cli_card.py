"""xatlas card: the map of an architecture, with no more than a config."""

from __future__ import annotations

import json
import shutil

import pytest


def test_a_config_alone_gives_the_card_that_the_model_has(cli, folder, tmp_path):
    bare = folder / "bare"
    bare.mkdir()
    shutil.copy(folder / "tiny" / "config.json", bare)
    shown = []
    for name in ("tiny", "bare"):
        result = cli("card", name, "--out", str(tmp_path))
        assert result.exit_code == 0, result.stderr
        table, _, about = result.stdout.partition("\n\n")
        assert max(map(len, result.stdout.splitlines()[:-2])) <= 100
        assert "attention" in table
        shown.append(table)
        (png,) = (tmp_path / "figures").glob(f"card-{name}*.png")
        assert str(png) in about
        assert png.with_suffix(".nc").is_file()
    assert shown[0] == shown[1]
    held = json.loads(cli("card", "bare", "--out", str(tmp_path), "--json").stdout)["card"]
    assert [row["layers"] for row in held["table"]][-1] == "all"
    assert held["findings"][0]["verdict"] in ("supported", "refuted")
    assert not list(tmp_path.rglob("atlas/**/*.nc")), "nothing is measured"


@pytest.mark.parametrize("name", ["nowhere", "empty", "strange"])
def test_what_has_no_card_is_refused_in_a_line(cli, folder, tmp_path, name):
    if name != "nowhere":
        (folder / name).mkdir(exist_ok=True)
    if name == "strange":
        config = '{"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]}'
        (folder / name / "config.json").write_text(config)
    result = cli("card", name if name == "nowhere" else f"./{name}", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert {"nowhere": "nowhere", "empty": "config.json", "strange": "OpenAIGPTLMHeadModel"}[name] in result.stderr
