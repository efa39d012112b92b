"""An atlas on disk: one netCDF file for each job, written whole, proved before it is opened, read once."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xatlas import files, manager
from xatlas.contracts.probe import Checkpoint, Probe
from xatlas.errors import XatlasError
from xatlas.results.jobs import Job, job_key

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("xatlas")

State = Literal["done", "missing", "damaged"]
#: The attribute that holds job and provenance as JSON.
RECORD = "xatlas"
#: Reads all that a netCDF file holds: damaged ones may crash the library, or make it ask for any amount of memory.
_TRIAL = """
import contextlib, sys, netCDF4
with contextlib.suppress(ImportError):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
data = sys.stdin.buffer.read()
file = netCDF4.Dataset("trial", memory=data)
for owner in (file, *file.variables.values()):
    [owner.getncattr(name) for name in owner.ncattrs()]
[variable[...] for variable in file.variables.values()]
file.close()
"""


@dataclass(frozen=True)
class Entry:
    """One finished job as an atlas holds it: what its file says, proved by the hash beside it."""

    path: Path
    job: Job
    provenance: Mapping[str, Any]  # how it was measured: suite, reference and model with names, versions, device, time
    data: bytes = field(repr=False)  # netCDF
    sealed: bool  # our own seal is inside, so that these are our own bytes

    @property
    def key(self) -> str:
        """The job's key, as it was digested when the job was measured: later versions may know more fields."""
        return str(self.provenance["key"])

    def name_of(self, thing: str) -> str | None:
        """Return the name of the ``suite``, ``reference`` or ``model``, where it was given one."""
        about = self.provenance.get(thing)
        return str(about["name"]) if isinstance(about, dict) and about.get("name") else None

    def dataset(self) -> xr.Dataset:
        """Return what was measured, in memory."""
        return _decode(self.path, self.data)


class Store:
    """The folder ``atlas/``: where the results of jobs are kept and found again."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._warned: set[Path] = set()

    def prepare(self) -> None:
        """Make the folder, before hours are spent on what could not be kept."""
        with files.explained(self.path, folder=self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "not writable")

    def file(self, job: Job) -> Path:
        """Return where the job's result stands, or will stand."""
        return self.path / job.model / f"{job.stem}.nc"

    def state(self, job: Job, *, warn: bool = False) -> State:
        """Say whether the job's result is there, whole, and the job's own; ``warn`` where it can't be used."""
        manager.probes()  # a plugin that can't be loaded is no fault of the file
        if not os.path.lexists(self.file(job)):
            return "missing"
        try:
            read_entry(self.file(job))
        except XatlasError as error:
            if warn:
                self._warn(self.file(job), f"{error} It is measured again.")
            return "damaged"
        return "done"

    def has(self, job: Job) -> bool:
        """Say whether the job needs no more measuring; what can't be used is warned about, leftovers are removed."""
        done = self.state(job, warn=True) == "done"
        if done and (os.path.lexists(self.checkpoint(job).folder) or files.strays(self._lock(job))):
            # A run was killed after its result was there; somebody at work, or a folder of others', is left alone.
            with contextlib.suppress(XatlasError), files.locked(self._lock(job), None):
                self.checkpoint(job).drop()
        return done

    def _warn(self, path: Path, what: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            log.warning("%s", what)

    def read(self, job: Job) -> xr.Dataset:
        """Return the job's result, in memory."""
        if not os.path.lexists(self.file(job)):
            raise XatlasError(f"{self.path} does not hold {job.probe} of {job.model} ({job.key}).")
        return read_entry(self.file(job)).dataset()

    def write(self, job: Job, dataset: xr.Dataset, provenance: Mapping[str, Any]) -> Path:
        """Keep the job's result and drop its finished parts; a damaged predecessor is set aside."""
        path, contract = self.file(job), None
        probe = _declaring(job)
        if probe is not None:
            from xatlas.schema import validate

            validate(dataset, probe)
            contract = _contract(probe)
        record = {**provenance, "format": 1, "key": job.key, "job": job.record(), "contract": contract}
        text = json.dumps(record, sort_keys=True)
        result = dataset.drop_encoding()
        result.attrs[RECORD] = text
        data = files.seal(encode(result), text)
        with self.lock(job):
            if self.state(job) == "damaged":
                files.set_aside(path)
            beside = files.hash_path(path)
            if os.path.lexists(beside) and not beside.is_file():
                files.set_aside(beside)
            files.write_hashed(path, data)
            self.checkpoint(job).drop()
        return path

    def lock(self, job: Job) -> AbstractContextManager[None]:
        """Hold the job for this process; another run that wants it waits, then finds the result."""
        return files.locked(self._lock(job), f"another run is measuring {job.probe} of {job.model}: waiting for it.")

    def _lock(self, job: Job) -> Path:
        return self.path / job.model / f".{job.stem}.lock"

    def checkpoint(self, job: Job) -> FolderCheckpoint:
        """Return where the job's finished parts are kept until the whole is."""
        return FolderCheckpoint((self.path / job.model / f".{job.stem}.parts").absolute())

    def entries(self, models: Iterable[str] | None = None, probes: Iterable[str] | None = None) -> Iterator[Entry]:
        """Yield every finished job of these models and probes, by model and file name; odd files are logged once."""
        if not self.path.is_dir():
            raise XatlasError(f"{self.path} is not a folder: nothing has been measured there yet.")
        manager.probes()  # a plugin that can't be loaded is no fault of the files
        for path in sorted(self.path.glob("*/*.nc")):
            hidden = path.name.startswith(".") or path.parent.name.startswith(".")
            other = models is not None and path.parent.name not in models
            if hidden or other or (probes is not None and path.name.rpartition("-")[0] not in probes):
                continue
            try:
                yield read_entry(path)
            except XatlasError as error:
                self._warn(path, f"passed over: {error}")


@dataclass(frozen=True)
class FolderCheckpoint(Checkpoint):
    """Keeps finished parts of a long job as files, each written whole and sealed with its job's and its own name."""

    folder: Path

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        data = self.part(key)
        if data is None:
            if os.path.lexists(self._file(key)):
                log.warning("%s is damaged: this part is measured again.", self._file(key))
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            # The leading underscore keeps array names apart from savez's own argument names.
            return {name[1:]: arrays[name] for name in arrays.files}

    def part(self, key: str) -> bytes | None:
        """Return the bytes of a part; None where it is not there, not whole, or another job's."""
        try:
            found = files.unseal(files.read_plain(self._file(key)))
        except XatlasError:
            return None
        return found[0] if found is not None and found[1] == self._note(key) else None

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{f"_{name}": array for name, array in arrays.items()})
        path = self._file(key)
        for place in (self.folder, path):
            if os.path.lexists(place) and (place.is_symlink() or place.is_dir() != (place is self.folder)):
                files.set_aside(place)
        files.write_atomic(path, files.seal(buffer.getvalue(), self._note(key)))

    def drop(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a link, or a file, which rmtree leaves
            self.folder.unlink()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _note(self, key: str) -> str:
        # The folder is named after the job, whose key digests all else.
        return f"{self.folder.name}/{key}"


def atlas_folder(path: Path) -> Path:
    """Return the atlas in ``path``: the folder ``atlas`` in it where there is one, else the folder itself."""
    inner = path / "atlas"
    a_model = any(inner.glob("*.nc")) and not any(inner.glob("*/*.nc"))  # one whose name is atlas
    return inner if inner.is_dir() and not a_model else path


def encode(dataset: xr.Dataset) -> bytes:
    """Return ``dataset`` as netCDF-4: numbers compressed, every chunk with its checksum."""
    # in memory, so that a full disk is met by plain writing, which fails cleanly
    packed = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    encoding: dict[Any, Any] = {
        name: packed
        for name, array in dataset.variables.items()
        if array.ndim and array.size and array.dtype.kind in "iuf"
    }
    return bytes(dataset.to_netcdf(engine="netcdf4", encoding=encoding))


def read_unproved(path: Path) -> xr.Dataset:
    """Return the dataset in a netCDF file that has neither hash nor seal."""
    return _decode(path, files.read_plain(path), trial=True)


def check_result(path: Path) -> None:
    """Check all that can be checked of one file, the numbers against the probe's contract however it is sealed."""
    from xatlas.schema import validate

    _remembered.pop(path, None)
    entry = read_entry(path)
    probe, dataset = _declaring(entry.job), entry.dataset()
    if probe is not None:
        validate(dataset, probe)


# -- proof -----------------------------------------------------------------------------------------

#: Files whose bytes were proved, and the state of file and hash that they were read in.
_remembered: dict[Path, tuple[list[list[int]], Entry]] = {}
_MOST_BYTES = 1 << 29


def read_entry(path: Path, *, placed: bool = True) -> Entry:
    """Return what the file holds, once it is proved to be what its name says.

    It is read and hashed once, as long as neither it nor its hash is touched. A file that is not ``placed`` need not
    stand under its own name in its model's folder.
    """
    try:
        state = [files.file_state(each) for each in (path, files.hash_path(path))]
    except OSError:
        state = []
    known = _remembered.get(path)
    if known and state == known[0]:
        entry = known[1]
    else:
        entry = _read(path)
        if sum(len(each.data) for _, each in _remembered.values()) > _MOST_BYTES:
            _remembered.clear()
        if state:
            _remembered[path] = state, entry
    job, key = entry.job, entry.key
    if placed and (path.parent.name, path.stem) != (job.model, f"{job.probe}-{key}"):
        raise XatlasError(f"{path} is out of place: it is {job.probe} of {job.model} ({key}), or a copy of that.")
    probe = _declaring(job)
    if probe is not None and not (entry.sealed and entry.provenance.get("contract") == _contract(probe)):
        from xatlas.schema import validate

        validate(entry.dataset(), probe)
    return entry


def _read(path: Path) -> Entry:
    """Read a result's file: its bytes must agree with the hash beside it, its key with its job."""
    whole = files.read_hashed(path)
    sealed = files.unseal(whole)
    if sealed is None:  # of an earlier version, edited by hand, or garbage under a hash made anew
        data, text = whole, _decode(path, whole, trial=True).attrs.get(RECORD, "")
    else:
        data, text = sealed
    try:
        record = json.loads(text)
        written = record.pop("job")
        entry = Entry(path, Job.from_record(written), record, data, sealed is not None)
        # Of the record as it stands: a version that knew other fields digested those.
        consistent = job_key(written) == record["key"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, XatlasError):
        raise XatlasError(f"{path} is not a result of xatlas: it lacks the attribute '{RECORD}'.") from None
    if not consistent:
        raise XatlasError(f"{path} is damaged: its key is not that of the job written in it.")
    return entry


def _decode(path: Path, data: bytes, *, trial: bool = False) -> xr.Dataset:
    import xarray as xr

    try:
        if trial and not _can_be_read(data):
            raise ValueError("the library fails on it")
        return xr.load_dataset(data, engine="netcdf4")
    except Exception as error:  # the reader raises whatever the library underneath made of the bytes
        raise XatlasError(f"{path} cannot be read as netCDF ({type(error).__name__}).") from error


@lru_cache(maxsize=16)
def _can_be_read(data: bytes) -> bool:
    """Try bytes that no seal vouches for in a process of their own."""
    if not data.startswith(b"\x89HDF\r\n\x1a\n"):
        return False
    command = [sys.executable, "-P", "-c", _TRIAL]
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=120, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _declaring(job: Job) -> Probe | None:
    """Return the probe that declares what the job's result holds; None where this installation lacks that version."""
    probe = manager.probes().get(job.probe)
    if probe is not None and probe.version == job.version:
        with contextlib.suppress(XatlasError):  # parameters that this installation does not know
            return probe(**job.parameters)
    return None


def _contract(probe: Probe) -> str:
    """Digest what a probe declares: results sealed under the same one were validated when they were written."""
    return files.digest({name: [list(item.dims), item.units, item.long_name] for name, item in probe.variables.items()})
