"""Keeping results: whole or not at all, checked before they are opened, one writer at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import xarray as xr
from storing import JOB, result

from xatlas import files
from xatlas.errors import XatlasError
from xatlas.files import hash_path
from xatlas.results.jobs import Job, job_key
from xatlas.results.store import FolderCheckpoint, Store, read_entry


def test_what_is_written_is_read_again(tmp_path):
    store = Store(tmp_path / "atlas")
    assert not store.has(JOB)
    path = store.write(JOB, result(), {"suite": {"name": "quick"}, "device": "cpu"})
    assert path == tmp_path / "atlas" / "qwen-mini" / f"layers-{JOB.key}.nc"
    assert store.has(JOB)
    again = store.read(JOB)
    xr.testing.assert_identical(again.drop_attrs(), result().drop_attrs())
    assert again.kl.attrs["units"] == "nats"
    entry = read_entry(path)
    assert entry.job == JOB
    assert entry.job.key == JOB.key
    assert entry.name_of("suite") == "quick"
    assert entry.name_of("reference") is None
    assert entry.provenance["device"] == "cpu"


def test_hash_stands_beside_as_sha256sum_reads_it(tmp_path):
    path = Store(tmp_path).write(JOB, result(), {})
    checked = subprocess.run(["sha256sum", "-c", hash_path(path).name], cwd=path.parent, check=False)
    assert checked.returncode == 0


def test_a_result_of_a_version_that_knew_more_of_a_job_is_read_by_the_key_of_its_record(tmp_path):
    path = Store(tmp_path).write(JOB, result(), {})
    data, text = files.unseal(path.read_bytes())
    record = json.loads(text)
    record["job"]["mood"] = "good"
    files.write_hashed(path, files.seal(data, json.dumps(record)))
    with pytest.raises(XatlasError, match="its key is not that of the job"):
        read_entry(path)
    files.write_hashed(path, files.seal(data, json.dumps(record | {"key": job_key(record["job"])})))
    moved = path.with_name(f"layers-{job_key(record['job'])[:16]}.nc")
    files.write_hashed(moved, path.read_bytes())
    assert read_entry(moved).job == JOB


def test_a_file_is_complete_once_it_is_there(tmp_path, monkeypatch):
    """Whoever reads while another writes finds nothing, or all of it: never a file without its hash."""
    path, seen = tmp_path / "held.json", []

    def spied(written, data, original=files.write_atomic):
        seen.append((written.name, path.exists()))
        original(written, data)

    monkeypatch.setattr(files, "write_atomic", spied)
    files.write_hashed(path, b"{}")
    assert seen == [("held.json.sha256", False), ("held.json", False)]
    assert files.read_hashed(path) == b"{}"


def test_numbers_are_compressed_with_checksums(tmp_path):
    path = Store(tmp_path).write(JOB, result(), {})
    with xr.open_dataset(path) as opened:
        assert opened.kl.encoding["zlib"]
        assert opened.kl.encoding["fletcher32"]


@pytest.fixture
def reads(monkeypatch):
    """Every path that is read, as often as it is."""
    found = []

    def counted(path, original=files.read_hashed):
        found.append(path)
        return original(path)

    monkeypatch.setattr(files, "read_hashed", counted)
    return found


def test_a_result_is_read_and_hashed_once_whatever_is_asked_of_it(tmp_path, reads):
    path = Store(tmp_path).write(JOB, result(3), {})
    time.sleep(0.05)
    store = Store(tmp_path)
    assert store.has(JOB)
    assert store.state(JOB) == "done"
    assert [entry.job for entry in store.entries()] == [read_entry(path).job] == [JOB]
    first, second = store.read(JOB), store.read(JOB)
    first["kl"][:] = 7  # what is returned is the caller's own
    assert float(second.kl[0, 0]) == float(store.read(JOB).kl[0, 0]) == 3
    assert reads == [path]


@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize("what", ["content", "content and hash", "content of the same time", "hash", "no hash", "link"])
def test_what_was_read_once_is_read_again_when_it_is_touched(tmp_path, what, pause):
    store = Store(tmp_path)
    path = store.write(JOB, result(1), {})
    other = Store(tmp_path / "other").write(JOB, result(2), {})
    time.sleep(pause)
    assert float(store.read(JOB).kl[0, 0]) == 1
    times = path.stat()
    if what == "content and hash":
        shutil.copy(hash_path(other), hash_path(path))
        path.write_bytes(other.read_bytes())
    elif what == "link":
        path.unlink()
        path.symlink_to(other)
    elif what.startswith("content"):
        flipped = bytearray(path.read_bytes())
        flipped[-200] ^= 1
        path.write_bytes(flipped)
        if what == "content of the same time":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif what == "hash":
        hash_path(path).write_text(hash_path(path).read_text().replace(path.name, "x" * len(path.name)))
    else:
        hash_path(path).unlink()
    if what == "content and hash":
        assert float(store.read(JOB).kl[0, 0]) == 2
    else:
        assert store.state(JOB) == "damaged"


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_file_is_noticed_and_set_aside(tmp_path, caplog, place):
    store = Store(tmp_path)
    path = store.write(JOB, result(), {})
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    assert not store.has(JOB)
    assert "damaged" in caplog.text
    with pytest.raises(XatlasError, match="damaged"):
        store.read(JOB)
    store.write(JOB, result(2), {})
    assert float(store.read(JOB).kl[0, 0]) == 2
    assert path.with_name(path.name + ".damaged").read_bytes() == data


def test_a_file_without_its_hash_is_measured_again(tmp_path, caplog):
    store = Store(tmp_path)
    hash_path(store.write(JOB, result(), {})).unlink()
    assert not store.has(JOB)
    assert "unhashed" in caplog.text


@pytest.mark.parametrize("step", range(1, 7))
def test_a_crash_between_any_two_steps_leaves_a_whole_result_or_none(tmp_path, monkeypatch, step):
    """Fail at each of the operations that writing is made of; a reader never sees half a file."""
    store = Store(tmp_path)
    calls = []

    def failing(original):
        def call(*arguments, **options):
            calls.append(original)
            if len(calls) == step:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", failing(os.replace))
        patch.setattr(files.os, "fsync", failing(os.fsync))
        with pytest.raises(KeyboardInterrupt):
            store.write(JOB, result(), {})
    assert not store.has(JOB) or float(store.read(JOB).kl[0, 0]) == 1
    store.write(JOB, result(2), {})
    assert float(store.read(JOB).kl[0, 0]) == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_or_quota_is_one_line_and_loses_nothing(tmp_path, monkeypatch, number):
    store = Store(tmp_path)
    other = dataclasses.replace(JOB, seed=1)
    store.write(other, result(), {})

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(XatlasError, match="the disk is full") as caught:
        store.write(JOB, result(), {})
    assert "\n" not in str(caught.value)
    assert not store.has(JOB)
    assert store.has(other)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "atlas").write_text("mine")
    with pytest.raises(XatlasError, match="is not a folder"):
        Store(tmp_path / "atlas").write(JOB, result(), {})
    assert (tmp_path / "atlas").read_text() == "mine"


def test_checkpoints_are_kept_whole_and_go_when_the_result_lands(tmp_path, caplog):
    store = Store(tmp_path)
    parts = store.checkpoint(JOB)
    assert parts.load("aa") is None
    parts.save("aa", {"file": np.arange(3), "kl": np.ones((2, 2), np.float32)})
    parts.save("bb", {"kl": np.zeros(1)})
    loaded = store.checkpoint(JOB).load("aa")
    assert loaded is not None
    assert loaded["file"].tolist() == [0, 1, 2]
    assert loaded["kl"].dtype == np.float32
    spoiled = parts._file("bb")
    spoiled.write_bytes(spoiled.read_bytes()[:-30])
    assert parts.load("bb") is None
    assert "damaged" in caplog.text
    store.write(JOB, result(), {})
    assert not parts.folder.exists()


def test_checkpoints_of_other_jobs_are_not_taken(tmp_path):
    store = Store(tmp_path)
    store.checkpoint(JOB).save("aa", {"kl": np.ones(1)})
    assert store.checkpoint(dataclasses.replace(JOB, seed=1)).load("aa") is None


def test_checkpoint_refuses_objects(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        FolderCheckpoint(tmp_path).save("aa", {"kl": np.array([{}])})


WORKER = """
    import sys, time
    import numpy as np, xarray as xr
    from xatlas.results.jobs import Job
    from xatlas.results.store import Store
    store = Store(sys.argv[1])
    job = Job(model="m", weights="w", probe="p")
    with store.lock(job):
        if store.has(job):
            print("found")
        else:
            time.sleep(0.5)
            store.write(job, xr.Dataset({"a": ("x", np.arange(5))}), {})
            print("measured")
    assert store.read(job).a.sum() == 10
"""


def test_of_two_runs_at_once_one_measures_and_one_finds(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(run.communicate(timeout=60)[0].strip() for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert said == ["found", "measured"]


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from xatlas.results.jobs import Job
        from xatlas.results.store import Store
        with Store(sys.argv[1]).lock(Job(model="m", weights="w", probe="p")):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    with Store(tmp_path).lock(Job(model="m", weights="w", probe="p")):
        pass
