"""Stored results found again as one tree."""

from __future__ import annotations

import dataclasses
import logging
import shutil

import pytest
from storing import JOB, result

from xatlas import files
from xatlas.errors import XatlasError
from xatlas.results.atlas import open_atlas
from xatlas.results.jobs import Job
from xatlas.results.store import Store


def filled(tmp_path):
    store = Store(tmp_path / "atlas")
    store.write(JOB, result(1), {"suite": {"name": "quick"}})
    store.write(dataclasses.replace(JOB, model="lfm2-mini"), result(2), {"suite": {"name": "quick"}})
    store.write(Job(model="qwen-mini", weights="abc123", probe="only_card"), result(3), {})
    return store


def test_an_atlas_opens_as_a_tree(tmp_path):
    filled(tmp_path)
    tree = open_atlas(tmp_path)
    assert sorted(node.path for node in tree.leaves) == [
        "/lfm2-mini/layers",
        "/qwen-mini/layers",
        "/qwen-mini/only_card",
    ]
    assert float(tree["lfm2-mini/layers/kl"][0, 0]) == 2
    assert "layer" not in tree.coords
    assert list(open_atlas(tmp_path / "atlas", models="lfm2-mini").children) == ["lfm2-mini"]
    assert len(open_atlas(tmp_path, models=None, probes=None, suite=None, seed=None).leaves) == 3  # None is no choice


def test_two_jobs_of_one_probe_must_be_chosen_between(tmp_path):
    store = filled(tmp_path)
    more = dataclasses.replace(JOB, suite="8" * 64)
    store.write(more, result(4), {"suite": {"name": "standard"}})
    with pytest.raises(XatlasError, match="2 jobs of qwen-mini/layers fit") as caught:
        open_atlas(tmp_path)
    assert f"[key={JOB.key} suite=quick]" in str(caught.value)
    assert f"[key={more.key} suite=standard]" in str(caught.value)
    chosen = open_atlas(tmp_path, suite="standard")
    assert float(chosen["qwen-mini/layers/kl"][0, 0]) == 4
    # A probe of the model alone rests on no suite, and so fits any.
    assert "only_card" in chosen["qwen-mini"]
    assert "layers" in open_atlas(tmp_path, suite="8" * 12)["qwen-mini"]


def test_damaged_and_foreign_files_are_passed_over_with_a_line_each(tmp_path, caplog):
    store = filled(tmp_path)
    broken = store.file(JOB)
    broken.write_bytes(broken.read_bytes()[:1000])
    foreign = tmp_path / "atlas" / "qwen-mini" / "weather.nc"
    result().to_netcdf(foreign)
    signed = foreign.with_name("signed.nc")
    files.write_hashed(signed, foreign.read_bytes())
    garbage = foreign.with_name("garbage.nc")
    files.write_hashed(garbage, b"not netCDF")
    shutil.copytree(foreign.parent, tmp_path / "atlas" / ".trash")
    with caplog.at_level(logging.WARNING, logger="xatlas"):
        tree = open_atlas(tmp_path)
    assert "layers" not in tree["qwen-mini"]
    assert "only_card" in tree["qwen-mini"]
    assert len(caplog.records) == 4
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert foreign.exists()


def test_an_empty_or_missing_atlas_says_so(tmp_path):
    with pytest.raises(XatlasError, match="not a folder"):
        open_atlas(tmp_path / "nowhere")
    filled(tmp_path)
    with pytest.raises(XatlasError, match="no result for suite=none-such"):
        open_atlas(tmp_path, suite="none-such", probes="layers")
    with pytest.raises(XatlasError, match="unknown choice 'sute'; did you mean 'suite'"):
        open_atlas(tmp_path, sute="quick")


def test_an_atlas_is_found_beside_the_figures_made_of_it(tmp_path):
    filled(tmp_path)
    (tmp_path / "figures").mkdir()
    result().to_netcdf(tmp_path / "figures" / "hub.nc")
    assert len(open_atlas(tmp_path).leaves) == 3
    # A model may be called atlas, too.
    Store(tmp_path / "other").write(dataclasses.replace(JOB, model="atlas"), result(), {})
    assert [node.path for node in open_atlas(tmp_path / "other").leaves] == ["/atlas/layers"]


def test_a_parameter_chooses_among_those_that_know_it(tmp_path):
    filled(tmp_path)
    tree = open_atlas(tmp_path, models="qwen-mini", parameters={"top": 3})
    assert sorted(tree["qwen-mini"].children) == ["layers", "only_card"]
    assert sorted(open_atlas(tmp_path, models="qwen-mini", parameters={"top": 4})["qwen-mini"].children) == [
        "only_card"
    ]


def test_a_few_digits_are_no_hash(tmp_path):
    filled(tmp_path)
    with pytest.raises(XatlasError, match="no result for suite=555"):
        open_atlas(tmp_path, suite="555", probes="layers")
