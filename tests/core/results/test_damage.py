"""Damage to an atlas: whatever is done to its files, what is used are the job's own numbers, or none."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr
from running import Counting, plugged, read
from storing import JOB, result

from xatlas import files, schema
from xatlas.errors import XatlasError
from xatlas.files import hash_path, seal
from xatlas.results.atlas import open_atlas, verify
from xatlas.results.store import Store, encode
from xatlas.schema import label, suite_coords
from xatlas.suites import Prompt

PROMPTS = [Prompt(id=name, family="f", text=name) for name in "ab"]
OTHER = dataclasses.replace(JOB, model="lfm2-mini", weights="def456")

KINDS = ("flip", "flip", "flip", "cut", "empty", "swap", "copy", "rename", "delete", "hash", "unhash", "record")
KINDS += ("link", "folder", "pipe", "move", "garbage")


class Toy(Counting):
    name = "layers"

    @dataclasses.dataclass(frozen=True)
    class Parameters:
        ablation: tuple[str, ...] = ()
        top: int = 0


class Renamed(Toy):
    variables: ClassVar = {"other": Counting.variables["value"]}


def counted(value, variables=Counting.variables):
    arrays = dict.fromkeys(variables, np.full(2, value, np.float32))
    return label(variables, arrays, suite_coords(read(PROMPTS)))


def rehash(path):
    files.write_hashed(path, path.read_bytes())


def refused(store, job, match):
    """The result is not used, and is set aside once the job is measured again."""
    before = files.read_plain(store.file(job))
    assert store.state(job) == "damaged"
    assert not store.has(job)
    with pytest.raises(XatlasError, match=match):
        store.read(job)
    store.write(job, result(5), {})
    assert float(store.read(job).kl[0, 0]) == 5
    assert store.file(job).with_name(store.file(job).name + ".damaged").read_bytes() == before


def test_another_jobs_result_under_this_jobs_name_is_not_used(tmp_path):
    store = Store(tmp_path)
    store.write(JOB, result(1), {})
    store.write(OTHER, result(2), {})
    shutil.copy(store.file(OTHER), store.file(JOB))
    rehash(store.file(JOB))
    refused(store, JOB, "out of place: it is layers of lfm2-mini")


def test_a_hash_that_names_another_file_is_none(tmp_path):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    other = store.write(dataclasses.replace(JOB, seed=1), result(2), {})
    shutil.copy(other, path)
    shutil.copy(hash_path(other), hash_path(path))
    refused(store, JOB, "is a copy: the hash beside it is that of")


@pytest.mark.parametrize("sealed", [False, True])
def test_a_record_whose_key_is_not_its_jobs_is_not_used(tmp_path, sealed):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    found = files.unseal(path.read_bytes())
    assert found is not None
    text = found[1].replace('"weights": "abc123"', '"weights": "def456"')
    edited = xr.load_dataset(found[0], engine="netcdf4").assign_attrs(xatlas=text)
    data = encode(edited)
    files.write_hashed(path, seal(data, text) if sealed else data)
    refused(store, JOB, "its key is not that of the job")


def test_garbage_under_a_fitting_hash_is_measured_again(tmp_path):
    store = Store(tmp_path)
    store.path.joinpath(JOB.model).mkdir()
    files.write_hashed(store.file(JOB), b"\x89HDF\r\n\x1a\n" + random.Random(0).randbytes(9000))
    refused(store, JOB, "cannot be read as netCDF")


def test_bytes_without_a_seal_are_tried_in_a_process_of_their_own(tmp_path, monkeypatch):
    from xatlas.results import store as results

    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    found = files.unseal(path.read_bytes())
    assert found is not None
    files.write_hashed(path, found[0])
    assert float(store.read(JOB).kl[0, 0]) == 1
    monkeypatch.setattr(results, "_TRIAL", "import os; os.abort()")
    results._can_be_read.cache_clear()
    results._remembered.clear()
    with pytest.raises(XatlasError, match="cannot be read as netCDF"):
        store.read(JOB)


def test_a_result_off_its_probes_contract_is_not_written_and_not_used(tmp_path):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[Toy]):
        with pytest.raises(XatlasError, match="off its contract"):
            store.write(JOB, result(), {})
        path = store.write(JOB, counted(3), {})
        assert store.has(JOB)
        found = files.unseal(path.read_bytes())
        assert found is not None
        spoiled = xr.load_dataset(found[0], engine="netcdf4").drop_vars("family")
        files.write_hashed(path, encode(spoiled))
        assert store.state(JOB) == "damaged"
        store.write(JOB, counted(4), {})
    # The probe now promises something else under the same version.
    with plugged(xatlas_probes=[Renamed]):
        assert store.state(JOB) == "damaged"
        with pytest.raises(XatlasError, match="off its contract"):
            store.read(JOB)
    # A probe, or a version, that is not installed can't be checked against.
    assert float(open_atlas(tmp_path)["qwen-mini/layers/value"][0]) == 4
    with plugged(xatlas_probes=[type("Newer", (Renamed,), {"version": 2})]):
        assert store.has(JOB)


def test_copies_beside_a_result_do_not_confuse_an_atlas(tmp_path, caplog):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    copy = path.with_name(f"{path.stem} (copy).nc")
    shutil.copy(path, copy)
    again = path.with_name("layers-again.nc")
    shutil.copy(path, again)
    shutil.copy(hash_path(path), hash_path(again))
    new = path.with_name("layers-0123456789abcdef.nc")
    shutil.copy(path, new)
    rehash(new)
    shutil.copy(path, path.with_name(path.name + ".bak"))
    shutil.copy(path, path.with_name("._" + path.name))
    shutil.copytree(path.parent, tmp_path / "qwen-mini copy")
    opened = open_atlas(tmp_path, models="qwen-mini")
    assert [node.path for node in opened.leaves] == ["/qwen-mini/layers"]
    assert float(opened["qwen-mini/layers/kl"][0, 0]) == 1
    assert len(caplog.records) == 3
    assert [node.path for node in open_atlas(tmp_path).leaves] == ["/qwen-mini/layers"]


def test_parts_of_another_job_or_key_are_not_taken(tmp_path):
    store = Store(tmp_path)
    mine, other = store.checkpoint(JOB), store.checkpoint(OTHER)
    mine.save("aa", {"kl": np.ones(1)})
    mine.save("bb", {"kl": np.zeros(1)})
    other.save("aa", {"kl": np.full(1, 7)})
    shutil.copy(mine.folder / "bb.npz", mine.folder / "aa.npz")
    assert mine.load("aa") is None
    shutil.copy(other.folder / "aa.npz", mine.folder / "aa.npz")
    assert mine.load("aa") is None
    part = mine.folder / "bb.npz"
    for place in range(0, part.stat().st_size, 7):
        data = bytearray(files.seal(*(files.unseal(part.read_bytes()) or (b"", ""))))
        data[place] ^= 1
        part.write_bytes(data)
        assert mine.load("bb") is None
        data[place] ^= 1
        part.write_bytes(data)
    shutil.rmtree(mine.folder)
    mine.folder.write_text("a file where the folder belongs")
    mine.save("aa", {"kl": np.full(1, 2)})
    assert mine.load("aa") == {"kl": np.full(1, 2)}


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "loop", "socket"])
@pytest.mark.parametrize("where", ["", ".sha256"])
def test_what_is_no_plain_file_is_refused_and_set_aside(tmp_path, what, where):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    place = path.with_name(path.name + where)
    replace_by(what, place)
    assert store.state(JOB) == "damaged"
    with pytest.raises(XatlasError, match=r"plain file|unhashed|could not be read"):
        store.read(JOB)
    store.write(JOB, result(2), {})
    assert float(store.read(JOB).kl[0, 0]) == 2


def replace_by(what, place):
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(place)
    elif what == "socket":
        import socket

        held = os.open(place.parent, os.O_RDONLY)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(f"/proc/self/fd/{held}/{place.name}")
        os.close(held)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if what == "device" else place)


def damage(draw, root, rehashed):
    """Do one random thing to an atlas."""
    paths = sorted(path for path in root.rglob("*") if not path.is_dir())
    results = [path for path in paths if path.suffix == ".nc" and path.is_file() and path.stat().st_size < 1e6]
    if not results:
        return
    path = draw.choice(results)
    whole = path.read_bytes()
    kind = draw.choice(KINDS)
    if kind == "flip":
        data = bytearray(whole or b"\0")
        for _ in range(draw.choice([1, 1, 8, 200])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(whole[: draw.randrange(len(whole) + 1)])
    elif kind == "empty":
        draw.choice([path, hash_path(path)]).write_bytes(b"")
    elif kind == "swap":
        path.write_bytes(draw.choice(results).read_bytes())
    elif kind in ("copy", "move"):
        target = (
            draw.choice([draw.choice(results).parent, root / "new"]) / f"{path.stem}{draw.choice(['', ' copy'])}.nc"
        )
        target.parent.mkdir(exist_ok=True)
        if not target.is_dir() and not target.is_symlink() and target != path:
            target.write_bytes(whole)
            if draw.random() < 0.5:
                rehash(target)
            if kind == "move":
                path.unlink()
    elif kind == "rename":
        path.rename(draw.choice(results))
    elif kind == "delete":
        draw.choice([path, hash_path(path)]).unlink(missing_ok=True)
    elif kind == "hash":
        data = bytearray(hash_path(path).read_bytes() if hash_path(path).is_file() else b"0  x")
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(7)
        write_over(hash_path(path), data)
    elif kind == "unhash":
        other = hash_path(draw.choice(results))
        write_over(hash_path(path), other.read_bytes() if other.is_file() else b"")
    elif kind == "record":
        found = files.unseal(whole)
        if found is not None:
            write_over(path, seal(found[0], found[1].replace('"seed": 0', '"seed": 1')))
    elif kind == "garbage":
        write_over(path, draw.choice([b"", b"\x89HDF\r\n\x1a\n", whole[:3000]]) + draw.randbytes(3000))
    else:
        what = {"link": draw.choice(["device", "loop"]), "folder": "folder", "pipe": "pipe"}[kind]
        replace_by(what, draw.choice([path, hash_path(path), path.with_name(f".{path.stem}.lock")]))
    if path.is_file() and not hash_path(path).is_dir() and draw.random() < rehashed:
        rehash(path)


def write_over(path, data):
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def damaged_again_and_again(tmp_path, rounds, rehashed):
    jobs = [dataclasses.replace(JOB, model=f"m{i % 2}", seed=i // 2) for i in range(4)]
    for value, job in enumerate(jobs):
        Store(tmp_path / "whole").write(job, result(value), {"suite": {"name": "quick"}})
    for number in range(rounds):
        draw = random.Random(number)
        store = Store(shutil.copytree(tmp_path / "whole", tmp_path / f"round{number}" / "atlas"))
        for _ in range(draw.choice([1, 1, 3])):
            damage(draw, store.path, rehashed)
        expected = {f"/{job.model}/{job.stem}": value for value, job in enumerate(jobs)}
        with_state = [(job, store.state(job)) for job in jobs]
        for value, (job, state) in enumerate(with_state):
            if state == "done":
                xr.testing.assert_identical(store.read(job).drop_attrs(), result(value).drop_attrs())
        for entry in Store(store.path).entries():
            assert float(store.read(entry.job).kl[0, 0]) == expected[f"/{entry.job.model}/{entry.job.stem}"]
        for _ in verify(store.path, repair=True):
            pass
        assert all(store.state(job) != "damaged" for job in jobs)
        for value, job in enumerate(jobs):
            if not store.has(job):
                store.write(job, result(value), {})
            assert float(store.read(job).kl[0, 0]) == value


def test_twenty_random_damages(tmp_path):
    damaged_again_and_again(tmp_path, 20, 0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_random_damages(tmp_path):
    damaged_again_and_again(tmp_path, 500, 0.3)


def test_a_result_in_other_units_than_its_probe_promises_is_not_used(tmp_path):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[Toy]):
        store.write(JOB, counted(3), {})
    nats = {"value": replace(Counting.variables["value"], units="nats")}
    with plugged(xatlas_probes=[type("Nats", (Toy,), {"variables": nats})]):
        assert store.state(JOB) == "damaged"


def test_a_result_that_was_sealed_unchecked_is_used_and_told_on_verification(tmp_path, monkeypatch):
    """The seal says that the numbers were validated when they were written: only ``verify`` asks them again."""
    store, infinite = Store(tmp_path), counted(np.inf)
    with plugged(xatlas_probes=[Toy]):
        with monkeypatch.context() as patch:
            patch.setattr(schema, "validate", lambda *given: None)
            path = store.write(JOB, infinite, {})
        assert store.state(JOB) == "done"
        (problem,) = verify(tmp_path)
    assert problem.path == path
    assert "holds infinite values" in problem.what
