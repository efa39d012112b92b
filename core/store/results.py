"""An atlas on disk: one netCDF file for each job, written whole, checked before it is opened."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xatlas.errors import XatlasError
from xatlas.store.checkpoint import FolderCheckpoint
from xatlas.store.files import explained, hash_path, locked, read_hashed, sha256, write_hashed
from xatlas.store.jobs import Job

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("xatlas")

State = Literal["done", "missing", "unhashed", "damaged"]
#: The attribute that holds job and provenance as JSON.
RECORD = "xatlas"


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
        """Tell whether the job's result is there and whole."""
        return file_state(self.file(job))

    def has(self, job: Job) -> bool:
        """Tell whether the job needs no more measuring; a damaged result is warned about."""
        state = self.state(job)
        if state in ("damaged", "unhashed"):
            log.warning("%s is %s: it is measured again.", self.file(job), state)
        return state == "done"

    def read(self, job: Job) -> xr.Dataset:
        """Return the job's result, in memory.

        Raises
        ------
        XatlasError
            It is missing, damaged or not ours.
        """
        if not self.file(job).exists():
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
        record = {**provenance, "format": 1, "key": job.key, "job": job.record()}
        result = dataset.drop_encoding()
        result.attrs[RECORD] = json.dumps(record, sort_keys=True)
        data = encode(result)
        with self.lock(job):
            if file_state(path) == "damaged":
                with explained(path):
                    path.replace(path.with_name(path.name + ".damaged"))
            write_hashed(path, data)
            shutil.rmtree(self._parts(job), ignore_errors=True)
        return path

    def lock(self, job: Job) -> AbstractContextManager[None]:
        """Hold the job for this process; another run that wants it waits, then finds the result.

        Raises
        ------
        XatlasError
            As :func:`xatlas.store.files.locked`.
        """
        waiting = f"another run is measuring {job.probe} of {job.model}: waiting for it."
        return locked(self.path / job.model / f".{job.stem}.lock", waiting)

    def checkpoint(self, job: Job) -> FolderCheckpoint:
        """Return where the job's finished parts are kept until the whole is."""
        return FolderCheckpoint(self._parts(job))

    def _parts(self, job: Job) -> Path:
        return self.path / job.model / f".{job.stem}.parts"

    def entries(self) -> Iterator[Entry]:
        """Yield every finished job, by model and file name; what is damaged or foreign is logged.

        Raises
        ------
        XatlasError
            The store's folder is not there.
        """
        if not self.path.is_dir():
            raise XatlasError(f"{self.path} is not a folder: nothing has been measured there yet.")
        for path in sorted(self.path.glob("*/*.nc")):
            try:
                yield read_entry(path)
            except XatlasError as error:
                log.warning("passed over: %s", error)


def file_state(path: Path) -> State:
    """Tell whether ``path`` is there and agrees with the hash beside it."""
    try:
        data = path.read_bytes()
    except OSError:
        return "missing"
    try:
        expected = hash_path(path).read_text().split()[:1]
    except (OSError, UnicodeDecodeError):
        return "unhashed"
    return "done" if expected == [sha256(data)] else "damaged"


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


def read_result(path: Path) -> xr.Dataset:
    """Return the dataset in ``path``, in memory, once its hash is right.

    Raises
    ------
    XatlasError
        The file is missing, damaged, has no hash, or was not written by xatlas.
    """
    import xarray as xr

    data = read_hashed(path)
    try:
        dataset = xr.load_dataset(data, engine="netcdf4")
    except Exception as error:  # the reader raises whatever the library underneath made of the bytes
        raise XatlasError(f"{path} cannot be read as netCDF ({type(error).__name__}).") from error
    if RECORD not in dataset.attrs:
        raise _foreign(path)
    return dataset


def read_entry(path: Path) -> Entry:
    """Return what the file says of itself, without reading its numbers.

    Raises
    ------
    XatlasError
        As :func:`read_result`.
    """
    import netCDF4

    data = read_hashed(path)
    try:
        with contextlib.closing(netCDF4.Dataset(path.name, memory=data)) as file:
            record = json.loads(file.getncattr(RECORD))
        return Entry(path, Job.from_record(record.pop("job")), record)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RuntimeError, XatlasError):
        raise _foreign(path) from None


def _foreign(path: Path) -> XatlasError:
    return XatlasError(f"{path} is not a result of xatlas: it lacks the attribute '{RECORD}'.")
