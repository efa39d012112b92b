"""Checking a whole atlas: every file that is wrong gets a line, and nothing else does."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
from storing import JOB, result

from xatlas import files
from xatlas.errors import XatlasError
from xatlas.results.atlas import verify
from xatlas.results.store import Store


def test_every_wrong_file_gets_a_line_and_is_put_right(tmp_path):
    store = Store(tmp_path / "atlas")
    path = store.write(JOB, result(1), {})
    unfinished, finished = dataclasses.replace(JOB, seed=1), dataclasses.replace(JOB, seed=2)
    store.checkpoint(unfinished).save("aa", {})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "hub.nc").write_bytes(b"as compare leaves it")
    (path.parent / ".DS_Store").touch()
    files.write_hashed(store.path / ".comparisons" / "hub-0123456789abcdef.json", b"{}")
    assert not list(verify(tmp_path))
    wrong = {
        path.with_name(f"{path.stem} (copy).nc"): "unhashed",
        path.with_name(f"{path.name}.bak"): "not a file of xatlas",
        path.with_name(f".{path.name}.0a1b.tmp"): "left by a killed run",
        path.with_name("layers-0123456789abcdef.nc.sha256"): "a hash without its file",
        path.with_name(".layers-0123456789abcdef.lock"): "can't be a lock",
        store.checkpoint(finished).folder: "its job is finished",
        store.checkpoint(unfinished).folder / "bb.npz": "damaged, or no part",
        store.path / ".comparisons" / "hub-0123456789abcdef.json": "is damaged",
        store.path / "stray.nc": "out of place",
        store.path / "leads-nowhere": "out of place",
    }
    store.write(finished, result(2), {})
    store.checkpoint(finished).save("aa", {})
    for place in wrong:
        if place.suffix == ".lock" or place.name == "leads-nowhere":
            place.symlink_to(path if place.suffix else "nowhere")
        elif place.suffix != ".parts":
            shutil.copy(path, place)
    found = {problem.path: problem for problem in verify(tmp_path)}
    assert found.keys() == wrong.keys()
    for place, what in wrong.items():
        assert what in found[place].what
        assert str(place) in found[place].what
        assert os.path.lexists(place)
        assert not found[place].repaired
    assert all(problem.repaired for problem in verify(tmp_path / "atlas", repair=True))
    assert not list(verify(tmp_path))
    assert path.with_name(f"{path.stem} (copy).nc.damaged").read_bytes() == path.read_bytes()
    assert store.checkpoint(unfinished).load("aa") == {}
    assert float(store.read(finished).kl[0, 0]) == 2


def test_what_is_set_aside_twice_is_kept_twice(tmp_path):
    path = Store(tmp_path).write(JOB, result(1), {})
    Store(tmp_path).write(dataclasses.replace(JOB, seed=1), result(1), {})
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert [problem.path for problem in verify(tmp_path, repair=True)] == [path]  # its hash goes with it
    assert path.with_name(path.name + ".damaged").read_bytes() == b"one"
    assert path.with_name(path.name + ".damaged1").read_bytes() == b"two"


def test_what_another_run_is_at_work_on_is_left_alone(tmp_path):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    with store.lock(JOB):
        files.hash_path(path).write_text("of the result that is written next")
        assert not list(verify(tmp_path, repair=True))
    assert [problem.path for problem in verify(tmp_path)] == [path]


def test_what_a_comparison_is_writing_is_left_alone(tmp_path):
    folder = Store(tmp_path).write(JOB, result(1), {}).parents[1] / ".comparisons"
    written = folder / ".hub-0123456789abcdef.json.0a1b.tmp"
    with files.locked(folder / "hub.lock", None):
        written.touch()
        assert not list(verify(tmp_path, repair=True))
    assert [problem.path for problem in verify(tmp_path, repair=True)] == [written]
    assert not written.exists()


def test_a_folder_that_is_no_atlas_is_left_alone(tmp_path):
    (tmp_path / "weather").mkdir()
    (tmp_path / "weather" / "rain.nc").write_bytes(b"somebody's")
    with pytest.raises(XatlasError, match="holds no atlas"):
        list(verify(tmp_path, repair=True))
    assert (tmp_path / "weather" / "rain.nc").exists()
