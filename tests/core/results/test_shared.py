"""A store that several users share: reading writes nothing, locks are everybody's, nothing is written through links."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from storing import JOB, result

from xatlas import files
from xatlas.errors import XatlasError
from xatlas.files import locked
from xatlas.results.store import Store

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture
def shared():
    """Return a folder that other users reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(imports, script, *arguments):
    """Run a script as a user who owns nothing, and perhaps can't read what it would import later."""
    drop = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY}); os.environ['HOME'] = '/'"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    code = "\n".join(["import sys", imports, drop, textwrap.dedent(script)])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@as_root
def test_another_users_atlas_is_read_without_writing_to_it(shared):
    store = Store(shared / "atlas")
    store.write(JOB, result(3), {})
    store.checkpoint(JOB).save("left", {})  # by a killed run: can't be removed, and does not matter
    imports = (
        "import filelock, netCDF4, xarray, xatlas, xatlas.results.atlas\nfrom storing import *; xatlas.manager.probes()"
    )
    imports += "; xarray.backends.list_engines()"
    script = """
        store = xatlas.results.store.Store(sys.argv[1])
        opened = xatlas.open(sys.argv[1])
        print(store.has(JOB), float(store.read(JOB).kl[0, 0]), float(opened["qwen-mini/layers/kl"][0, 0]))
        print(len(list(xatlas.results.atlas.verify(sys.argv[1]))))
        try:
            store.write(JOB, result(), {})
        except xatlas.XatlasError as error:
            print("not writable" in str(error))
    """
    before = sorted((str(path), path.stat().st_mtime_ns) for path in shared.rglob("*"))
    assert as_nobody(imports, script, store.path) == ["True", "3.0", "3.0", "1", "True"]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in shared.rglob("*")) == before


@as_root
def test_another_users_lock_is_taken_once_it_is_free(shared):
    shared.chmod(0o777)
    lock = shared / ".job.lock"
    lock.touch()
    lock.chmod(0o644)
    script = """
        with locked(Path(sys.argv[1]), "waiting"):
            print("held")
    """
    imports = "import filelock; from pathlib import Path; from xatlas.files import locked"
    assert as_nobody(imports, script, lock) == ["held"]
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    with locked(lock, "waiting"):
        pass
    assert os.listdir(shared) == [".job.lock"]


def test_locks_are_everybodys_and_results_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        path = Store(tmp_path).write(JOB, result(), {})
    finally:
        os.umask(before)
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    assert modes == {path.name: 0o640, f"{path.name}.sha256": 0o640, f".{path.stem}.lock": 0o666}


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "atlas" / "file"
    path.parent.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    for name in (".file.tmp", ".file.guessed.tmp", "file"):
        (path.parent / name).symlink_to(victim)
    with pytest.raises(XatlasError):
        files.write_atomic(path, b"theirs")
    (path.parent / ".file.guessed.tmp").unlink()
    files.write_atomic(path, b"theirs")
    assert victim.read_text() == "mine"
    assert path.read_bytes() == b"theirs"
    lock = path.with_name("x.lock")
    lock.symlink_to(victim)
    with locked(lock, "waiting"):
        assert not lock.is_symlink()
    assert stat.S_IMODE(victim.stat().st_mode) != 0o666


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, caplog):
    store = Store(tmp_path)
    path = store.write(JOB, result(), {})
    mine = [path.with_name(f".{path.name}{end}") for end in (".tmp", ".0a1b.tmp", ".sha256.0a1b.tmp")]
    others = [path.with_name(name) for name in (".layers-0123456789abcdef.nc.0a.tmp", "notes.tmp")]
    for stray in (*mine, *others):
        stray.write_bytes(b"half")
    store.checkpoint(JOB).save("aa", {})
    assert store.has(JOB)
    assert not any(stray.exists() for stray in mine)
    assert not store.checkpoint(JOB).folder.exists()
    assert all(stray.exists() for stray in others)
    mine[1].write_bytes(b"half")
    script = """
        import sys, time
        from pathlib import Path
        from xatlas.files import locked
        with locked(Path(sys.argv[1]), "waiting"):
            print(flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "qwen-mini" / f".{path.stem}.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        mine[1].write_bytes(b"half")  # of one who is at work
        with caplog.at_level(logging.WARNING, logger="xatlas"):
            assert store.has(JOB)
        assert mine[1].exists()
        assert not caplog.records
        holder.kill()
    assert store.has(JOB)
    assert not mine[1].exists()
