"""An atlas on disk: one netCDF file for each job, written whole, checked before it is opened."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.files import (
    digest,
    explained,
    hash_path,
    locked,
    read_hashed,
    read_plain,
    seal,
    set_aside,
    sha256,
    strays,
    unseal,
    write_atomic,
    write_hashed,
)
from xatlas.results.jobs import KEY_LENGTH, Job

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from xatlas.contracts.probe import Probe


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
#: Hash of bytes that were tried → whether they can be read.
_tried: dict[str, bool] = {}


@dataclass(frozen=True)
class Entry:
    """One finished job as an atlas holds it.

    Parameters
    ----------
    path : Path
        Its file.
    job : Job
        What was measured.
    provenance : mapping
        How, and on what: ``suite``, ``reference`` and ``model`` with their names, versions, device, wall time.
    """

    path: Path
    job: Job
    provenance: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The job's key, as it was digested when the job was measured: later versions may know more fields."""
        return str(self.provenance["key"])

    def name_of(self, thing: str) -> str | None:
        """Return the name of the ``suite``, ``reference`` or ``model``, where it was given one."""
        about = self.provenance.get(thing)
        return str(about["name"]) if isinstance(about, dict) and about.get("name") else None


class Store:
    """The folder ``atlas/``: where the results of jobs are kept and found again.

    Parameters
    ----------
    path : path
        The folder; it is made when the first result is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._told: set[Path] = set()

    def prepare(self) -> None:
        """Make the folder, before hours are spent on what could not be kept.

        Raises
        ------
        XatlasError
            It can't be made or written to.
        """
        with explained(self.path, folder=self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "not writable")

    def file(self, job: Job) -> Path:
        """Return where the job's result stands, or will stand."""
        return self.path / job.model / f"{job.stem}.nc"

    def state(self, job: Job) -> State:
        """Tell whether the job's result is there, whole, and the job's own."""
        return self._look(job)[0]

    def has(self, job: Job) -> bool:
        """Tell whether the job needs no more measuring; what can't be used is warned about, leftovers are removed."""
        state, fault = self._look(job)
        if state == "damaged":
            self._tell(self.file(job), f"{fault} It is measured again.")
        elif state == "done" and (os.path.lexists(self._parts(job)) or strays(self._lock(job))):
            # A run was killed after its result was there; somebody at work, or a folder of others', is left alone.
            with contextlib.suppress(XatlasError), locked(self._lock(job), None):
                self._drop_parts(job)
        return state == "done"

    def _look(self, job: Job) -> tuple[State, str]:
        """Return the state of the job's result, and what is wrong with it."""
        manager.probes()  # a plugin that can't be loaded is no fault of the file
        if not os.path.lexists(self.file(job)):
            return "missing", ""
        try:
            read_entry(self.file(job))
        except XatlasError as error:
            return "damaged", str(error)
        return "done", ""

    def _tell(self, path: Path, what: str) -> None:
        """Warn about a file once."""
        if path not in self._told:
            self._told.add(path)
            log.warning("%s", what)

    def read(self, job: Job) -> xr.Dataset:
        """Return the job's result, in memory.

        Raises
        ------
        XatlasError
            It is missing, damaged or not ours.
        """
        if not os.path.lexists(self.file(job)):
            raise XatlasError(f"{self.path} does not hold {job.probe} of {job.model} ({job.key}).")
        return read_result(self.file(job))

    def write(self, job: Job, dataset: xr.Dataset, provenance: Mapping[str, Any]) -> Path:
        """Keep the job's result; then its checkpoints are gone. A damaged predecessor is set aside.

        Parameters
        ----------
        job : Job
            What was measured.
        dataset : Dataset
            Valid for the job's probe; left as it is.
        provenance : mapping
            JSON-ready; how and on what it was measured, see :class:`Entry`.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        XatlasError
            The disk is full or the folder not writable; nothing half-written is left.
        """
        path = self.file(job)
        probe = _declaring(job)
        if probe is not None:
            from xatlas.schema import validate

            validate(dataset, probe)
        contract = None if probe is None else _contract(probe)
        record = {**provenance, "format": 1, "key": job.key, "job": job.record(), "contract": contract}
        text = json.dumps(record, sort_keys=True)
        result = dataset.drop_encoding()
        result.attrs[RECORD] = text
        data = seal(encode(result), text)
        with self.lock(job):
            if self.state(job) == "damaged":
                set_aside(path)
            if os.path.lexists(hash_path(path)) and not hash_path(path).is_file():
                set_aside(hash_path(path))
            write_hashed(path, data)
            self._drop_parts(job)
        return path

    def lock(self, job: Job) -> AbstractContextManager[None]:
        """Hold the job for this process; another run that wants it waits, then finds the result.

        Raises
        ------
        XatlasError
            As :func:`xatlas.files.locked`.
        """
        return locked(self._lock(job), f"another run is measuring {job.probe} of {job.model}: waiting for it.")

    def _lock(self, job: Job) -> Path:
        return self.path / job.model / f".{job.stem}.lock"

    def checkpoint(self, job: Job) -> FolderCheckpoint:
        """Return where the job's finished parts are kept until the whole is."""
        return FolderCheckpoint(self._parts(job).absolute())

    def _parts(self, job: Job) -> Path:
        return self.path / job.model / f".{job.stem}.parts"

    def _drop_parts(self, job: Job) -> None:
        parts = self._parts(job)
        shutil.rmtree(parts, ignore_errors=True)
        with contextlib.suppress(OSError):  # a link, or a file, which rmtree leaves
            parts.unlink()

    def entries(self, models: Iterable[str] | None = None, probes: Iterable[str] | None = None) -> Iterator[Entry]:
        """Yield every finished job, by model and file name; what is damaged, foreign or a copy is logged once.

        Parameters
        ----------
        models, probes : iterable of str, optional
            Files of others are not read.

        Raises
        ------
        XatlasError
            The store's folder is not there.
        """
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
                self._tell(path, f"passed over: {error}")


def atlas_folder(path: Path) -> Path:
    """Return the atlas in ``path``: the folder ``atlas`` in it where there is one, else the folder itself."""
    inner = path / "atlas"
    a_model = any(inner.glob("*.nc")) and not any(inner.glob("*/*.nc"))  # one whose name is atlas
    return inner if inner.is_dir() and not a_model else path


def file_state(path: Path) -> State:
    """Tell whether ``path`` is there and agrees with the hash beside it."""
    if not os.path.lexists(path):
        return "missing"
    try:
        read_hashed(path)
    except XatlasError:
        return "damaged"
    return "done"


def encode(dataset: xr.Dataset) -> bytes:
    """Return ``dataset`` as netCDF-4: numbers compressed, every chunk with its checksum.

    It is made in memory, so that a full disk is met by plain writing, which fails cleanly.
    """
    packed = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    encoding: dict[Any, Any] = {
        name: packed
        for name, array in dataset.variables.items()
        if array.ndim and array.size and array.dtype.kind in "iuf"
    }
    return bytes(dataset.to_netcdf(engine="netcdf4", encoding=encoding))


def read_result(path: Path, *, placed: bool = True) -> xr.Dataset:
    """Return the dataset in ``path``, in memory, once it is proved to be what its name says.

    Parameters
    ----------
    path : Path
        A file of an atlas.
    placed : bool
        Whether it has to stand under its own name in the folder of its model.

    Raises
    ------
    XatlasError
        The file is missing, damaged, has no hash, holds another job, is off its probe's contract, or was not
        written by xatlas.
    """
    data, _, dataset = _read(path, placed)
    return _decode(path, data) if dataset is None else dataset


def read_entry(path: Path, *, placed: bool = True) -> Entry:
    """Return what the file says of itself, proved like :func:`read_result`; its numbers are read where they must.

    Raises
    ------
    XatlasError
        As :func:`read_result`.
    """
    record = _read(path, placed)[1]
    return Entry(path, Job.from_record(record.pop("job")), record)


def read_unproved(path: Path) -> xr.Dataset:
    """Return the dataset in a netCDF file that has neither hash nor seal.

    Raises
    ------
    XatlasError
        It can't be read.
    """
    return _decode(path, read_plain(path), trial=True)


def check_result(path: Path) -> None:
    """Check all that can be checked of one file.

    Raises
    ------
    XatlasError
        As :func:`read_result`; the contract is checked on the numbers, however the file is sealed.
    """
    from xatlas.schema import validate

    entry, dataset = read_entry(path), read_result(path)
    probe = _declaring(entry.job)
    if probe is not None:
        validate(dataset, probe)


def _read(path: Path, placed: bool) -> tuple[bytes, dict[str, Any], xr.Dataset | None]:
    """Return the netCDF bytes of a result and its record; the dataset, too, where the proof took reading it."""
    sealed = read_hashed(path)
    found = unseal(sealed)
    data, text = found or (sealed, "")
    dataset = None
    if found is None:  # of an earlier version, edited by hand, or garbage under a hash made anew
        dataset = _decode(path, data, trial=True)
        text = dataset.attrs.get(RECORD, "")
    try:
        record = json.loads(text)
        job = Job.from_record(record["job"])
        # Of the record as it stands: a version that knew other fields digested those.
        own = digest(record["job"])[:KEY_LENGTH]
        consistent = own == record["key"]
    except (KeyError, TypeError, ValueError, RecursionError, XatlasError):
        raise XatlasError(f"{path} is not a result of xatlas: it lacks the attribute '{RECORD}'.") from None
    if not consistent:
        raise XatlasError(f"{path} is damaged: its key is not that of the job written in it.")
    if placed and (path.parent.name, path.stem) != (job.model, f"{job.probe}-{own}"):
        raise XatlasError(f"{path} is out of place: it is {job.probe} of {job.model} ({own}), or a copy of that.")
    probe = _declaring(job)
    if probe is not None and (found is None or record.get("contract") != _contract(probe)):
        from xatlas.schema import validate

        dataset = _decode(path, data) if dataset is None else dataset
        validate(dataset, probe)
    return data, record, dataset


def _decode(path: Path, data: bytes, *, trial: bool = False) -> xr.Dataset:
    import xarray as xr

    try:
        if trial and not _can_be_read(data):
            raise ValueError("the library fails on it")
        return xr.load_dataset(data, engine="netcdf4")
    except Exception as error:  # the reader raises whatever the library underneath made of the bytes
        raise XatlasError(f"{path} cannot be read as netCDF ({type(error).__name__}).") from error


def _can_be_read(data: bytes) -> bool:
    """Try bytes that no seal vouches for in a process of their own, once."""
    if not data.startswith(b"\x89HDF\r\n\x1a\n"):
        return False
    name = sha256(data)
    if name not in _tried:
        command = [sys.executable, "-P", "-c", _TRIAL]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
            _tried[name] = done.returncode == 0
        except subprocess.TimeoutExpired:
            _tried[name] = False
    return _tried[name]


def _declaring(job: Job) -> type[Probe] | None:
    """Return the probe that declares what the job's result holds; None where this installation lacks that version."""
    probe = manager.probes().get(job.probe)
    return probe if probe is not None and probe.version == job.version else None


def _contract(probe: type[Probe]) -> str:
    """Digest what a probe declares: results sealed under the same one were validated when they were written."""
    return digest({name: [list(item.dims), item.units, item.long_name] for name, item in probe.variables.items()})


class FolderCheckpoint:
    """Keeps finished parts of a long job as files, each written whole and sealed with its own name.

    Parameters
    ----------
    folder : Path
        Made when the first part is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays saved under ``key``; None where there are none, or where they are damaged or others'."""
        import numpy as np

        path = self._file(key)
        if not os.path.lexists(path):
            return None
        data = self._read(key)
        if data is None:
            log.warning("%s is damaged: this part is measured again.", path)
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            # The leading underscore keeps array names apart from savez's own argument names.
            return {name[1:]: arrays[name] for name in arrays.files}

    def holds(self, key: str) -> bool:
        """Tell whether the part is there, whole, and this job's own."""
        return self._read(key) is not None

    def _read(self, key: str) -> bytes | None:
        try:
            found = unseal(read_plain(self._file(key)))
        except XatlasError:
            return None
        return found[0] if found is not None and found[1] == self._note(key) else None

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all.

        Raises
        ------
        XatlasError
            The disk is full or the folder not writable.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{f"_{name}": array for name, array in arrays.items()})
        path = self._file(key)
        for place in (self.folder, path):
            if os.path.lexists(place) and (place.is_symlink() or place.is_dir() != (place is self.folder)):
                set_aside(place)
        write_atomic(path, seal(buffer.getvalue(), self._note(key)))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _note(self, key: str) -> str:
        # The folder is named after the job, whose key digests all else.
        return f"{self.folder.name}/{key}"
