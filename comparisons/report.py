"""Writes a comparison's figure beside the data it shows."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style
from xatlas.comparisons.measures import summary
from xatlas.errors import XatlasError
from xatlas.text import spreadsheet_cell

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.comparison import Comparison

#: Columns of the CSV with numbers under other settings.
COLUMNS = ("number", "model", "setting", "value", "low", "high", "units", "command")


def export(name: str, comparison: Comparison, dataset: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write ``name.png``, ``name.svg``, ``name.nc`` and ``name.csv``; each appears whole or not at all.

    ``name.sensitivity.csv`` joins them where the dataset holds numbers under other settings.

    A figure that shows the same data already is left alone.

    Parameters
    ----------
    name : str
        Stem of the files.
    comparison : Comparison
        Draws the figure.
    dataset : Dataset
        What ``comparison.compare`` returned.
    folder : path
        Made if missing.

    Returns
    -------
    list of Path
        The files, in the order above. The same dataset gives the same PNG, SVG and CSVs, byte for byte.

    Raises
    ------
    XatlasError
        The folder can't be written.
    """
    target = Path(folder)
    varied = ("sensitivity.csv",) if "sensitivity_status" in dataset else ()
    paths = {kind: target / f"{name}.{kind}" for kind in ("png", "svg", "nc", "csv", *varied)}
    table, others = io.StringIO(), io.StringIO()
    write_csv(dataset, table)
    mark = _mark(comparison, dataset, table.getvalue())
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(paths["csv"], lambda path: path.write_text(table.getvalue(), "utf-8", newline=""))
        if varied:
            write_sensitivity(dataset, others)
            _write(paths["sensitivity.csv"], lambda path: path.write_text(others.getvalue(), "utf-8", newline=""))
        _write(paths["nc"], lambda path: _write_netcdf(dataset, path))
        if paths["svg"].is_file() and paths["png"].is_file() and _carries(paths["png"], mark):
            return list(paths.values())
        drawn = comparison.plot(dataset)
        style.arrange(drawn)
        _write(paths["svg"], lambda path: style.save(drawn, path))
        # last, because its mark says that both are there
        _write(paths["png"], lambda path: style.save(drawn, path, mark))
    except OSError as error:
        reason = error.strerror or error
        raise XatlasError(f"can't write the figure '{name}' to {target}: {reason}; choose another --out.") from error
    return list(paths.values())


def _mark(comparison: Comparison, dataset: xr.Dataset, table: str) -> str:
    """Return a hash of what the figure depends on: not of when and where its data were measured."""
    drawer = version("matplotlib")  # asked without importing it, which takes longer than all else here
    parts = [
        comparison.name,
        str(comparison.version),
        style.VERSION,
        drawer,
        str(dataset.attrs.get("suite", "")),
        table,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _carries(path: Path, mark: str) -> bool:
    """Tell whether a PNG of ours was made from the same data; its comment stands before the pixels."""
    with open(path, "rb") as file:
        return mark.encode() in file.read(1024)


def _write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write under a temporary name in the same folder, then rename: readers never see half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    numeric = [name for name, array in dataset.data_vars.items() if array.dtype.kind in "fiu"]
    encoding = {name: {"zlib": True, "fletcher32": True} for name in numeric if dataset[name].ndim}
    dataset.to_netcdf(path, engine="netcdf4", encoding=encoding)


def write_csv(dataset: xr.Dataset, file: IO[str]) -> None:
    """Write every value of every variable as one line: ``variable``, its coordinates, ``value``, ``units``.

    Dimensions that a variable lacks stay empty, and so does the value where it is NaN. Numbers are
    written so that reading them gives back the same float.
    """
    dims = [str(dim) for dim in dataset.dims]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["variable", *dims, "value", "units"])
    labels = {dim: dataset[dim].values.tolist() for dim in dims}
    for name, array in dataset.data_vars.items():
        units = array.attrs.get("units", "")
        own = [str(dim) for dim in array.dims]
        places = itertools.product(*(labels[dim] for dim in own))
        for place, value in zip(places, np.asarray(array.values).ravel().tolist(), strict=True):
            where = dict(zip(own, place, strict=True))
            cells = (name, *(where.get(dim, "") for dim in dims), _cell(value), units)
            writer.writerow([spreadsheet_cell(cell) for cell in cells])


def write_sensitivity(dataset: xr.Dataset, file: IO[str]) -> None:
    """Write every number under every setting as one line; 'not run', and the command, where the atlas lacks it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in summary.sensitivity_rows(dataset))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return spreadsheet_cell(value)
