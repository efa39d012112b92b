"""Writes a comparison's figure beside the data it shows."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style
from xatlas.drawing import drawn
from xatlas.errors import XatlasError
from xatlas.files import explained, sha256, write_atomic
from xatlas.findings.estimates import BOUND
from xatlas.results.store import encode, read_unproved
from xatlas.text import printable, spreadsheet_cell

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from xatlas.contracts.comparison import Comparison

log = logging.getLogger("xatlas")

#: Ends of the names of all files that a comparison may write; ``nc`` last, for it says what the others show.
KINDS = ("png", "svg", "csv", "sensitivity.csv", "nc")


def export(
    name: str, comparison: Comparison, dataset: xr.Dataset, folder: str | Path, formats: Iterable[str] = ()
) -> list[Path]:
    """Write ``name.png``, ``name.svg``, ``name.nc`` and ``name.csv``; each appears whole or not at all.

    ``name.sensitivity.csv`` joins them where the dataset holds numbers under other settings.

    A figure that shows the same data already is left alone. One of the same name that shows other models, or was
    measured otherwise (the dataset's attribute ``measured``, else ``suite``), is kept as ``name-DIGEST.…``, and that
    is said. Two writers of one name must hold a lock.

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
    formats : iterable of str
        Where some of ``png``, ``svg`` and ``pdf`` are named, these alone are written, drawn anew.

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
    if formats:
        figure = _arranged(comparison, dataset)
        with explained(target):
            target.mkdir(parents=True, exist_ok=True)
        paths = {kind: target / f"{name}.{kind}" for kind in formats}
        for kind, path in paths.items():
            write_atomic(path, _image(figure, kind))
        return list(paths.values())
    varied = ("sensitivity.csv",) if "sensitivity" in dataset else ()
    paths = {kind: target / f"{name}.{kind}" for kind in ("png", "svg", "nc", "csv", *varied)}
    table, others = io.StringIO(), io.StringIO()
    write_csv(dataset, table)
    mark = _mark(comparison, dataset, table.getvalue())
    try:
        with explained(paths["nc"]):
            target.mkdir(parents=True, exist_ok=True)
            for path in paths.values():  # left by runs that were killed
                for stray in target.glob(f".{path.name}.*.tmp"):
                    stray.unlink(missing_ok=True)
            _make_room(target, name, dataset)
            whole = all(_whole(paths[kind], mark) for kind in ("svg", "png"))
        write_atomic(paths["csv"], table.getvalue().encode())
        if varied:
            write_sensitivity(dataset, others)
            write_atomic(paths["sensitivity.csv"], others.getvalue().encode())
        write_atomic(paths["nc"], encode(dataset))
        if not whole:
            figure = _arranged(comparison, dataset)
            for kind in ("svg", "png"):
                write_atomic(paths[kind], _sealed(_image(figure, kind), mark, kind))
    except XatlasError as error:
        raise XatlasError(f"can't write the figure '{name}': {error}") from error
    return list(paths.values())


def _arranged(comparison: Comparison, dataset: xr.Dataset) -> Figure:
    figure = drawn(comparison, dataset)
    arrange(figure)
    return figure


def arrange(made: Figure) -> None:
    """Lay a finished figure out, once: saving it in two formats need not do it four times."""
    import matplotlib

    with style.context():
        made.set_dpi(matplotlib.rcParams["savefig.dpi"])  # letters are as wide as they are saved
        made.draw_without_rendering()
        made.set_layout_engine("none")
        for axes in made.axes:  # the solver's rounding depends on what was drawn before
            axes.set_position(np.round(axes.get_position().bounds, 9))
        for inner in made.subfigs:
            box = inner.bbox_relative
            box.p0, box.p1 = np.round([box.p0, box.p1], 9)


def _image(made: Figure, kind: str) -> bytes:
    """Return a figure as ``png``, ``svg`` or ``pdf``, as all of a comparison look."""
    with style.context():
        return style.saved(made, kind)


def _make_room(folder: Path, name: str, dataset: xr.Dataset) -> None:
    """Set files of this name aside that show something else, and take back what was set aside of this dataset."""
    held = folder / f"{name}.nc"
    if not held.is_file():
        return
    try:
        old = read_unproved(held)
        shown, aside = _shown(old), f"{name}-{_digest(old)}"
        models = ", ".join(map(str, np.atleast_1d(old["model"].values)))
    except (XatlasError, KeyError) as error:
        log.warning("%s can't be read (%s): the figure is made again.", held, type(error).__name__)
        return
    if shown == _shown(dataset):
        return
    for old_name, new_name in ((name, aside), (f"{name}-{_digest(dataset)}", name)):
        for kind in KINDS:
            if (folder / f"{old_name}.{kind}").is_file():
                os.replace(folder / f"{old_name}.{kind}", folder / f"{new_name}.{kind}")
    log.warning("%s showed something else (%s): that is kept as %s.", folder / f"{name}.png", models, f"{aside}.png")


def _shown(dataset: xr.Dataset) -> list[Any]:
    """Return what tells a figure from another of its name."""
    attrs = dataset.attrs
    return [*map(str, np.atleast_1d(dataset["model"].values)), str(attrs.get("measured", attrs.get("suite", "")))]


def _digest(dataset: xr.Dataset) -> str:
    return sha256("\0".join(_shown(dataset)).encode())[:8]


def _mark(comparison: Comparison, dataset: xr.Dataset, table: str) -> str:
    """Return a hash of what the figure depends on: not of when and where its data were measured."""
    drawer = version("matplotlib")  # asked without importing it, which takes longer than all else here
    suite, source = (str(dataset.attrs.get(name, "")) for name in ("suite", "source"))
    parts = [comparison.name, str(comparison.version), style.VERSION, drawer, suite, source, table]
    return sha256("\0".join(parts).encode())


def _sealed(data: bytes, mark: str, kind: str) -> bytes:
    """Return an image with its seal: at the end of an SVG, before the last chunk (12 bytes) of a PNG."""
    seal = f"{mark} {sha256(data)}".encode()
    if kind == "svg":
        return data + b"<!-- xatlas " + seal + b" -->\n"
    chunk = b"tEXtxatlas\0" + seal
    return data[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


def _whole(path: Path, mark: str) -> bool:
    """Tell whether an image shows the same data, and nothing in it has changed since it was drawn."""
    if not path.is_file():
        return False
    data, kind = path.read_bytes(), path.suffix[1:]
    extra = len(_sealed(bytes(12), mark, kind)) - 12
    bare = data[:-extra] if kind == "svg" else data[: -extra - 12] + data[-12:]
    return data == _sealed(bare, mark, kind)


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
        places = itertools.product(*(labels[str(dim)] for dim in array.dims))
        for place, value in zip(places, array.values.ravel().tolist(), strict=True):
            where = dict(zip(array.dims, place, strict=True))
            writer.writerow(map(_cell, [name, *(where.get(dim, "") for dim in dims), value, units]))


def write_sensitivity(dataset: xr.Dataset, file: IO[str]) -> None:
    """Write every finding's number under every setting that the atlas holds as one line."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["finding", "setting", *BOUND])
    for i, finding in enumerate(dataset["finding"].values.tolist()):
        for j, setting in enumerate(dataset["setting"].values.tolist()):
            bounds = dataset["sensitivity"].values[i, j].tolist()
            if not math.isnan(bounds[0]):
                writer.writerow(map(_cell, [finding, setting, *bounds]))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return spreadsheet_cell(printable(value) if isinstance(value, str) else value)
