"""Figures drawn again from the data stored beside them, at a paper's width; nothing is measured, no model is loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.errors import XatlasError, unknown
from xatlas.results.store import RECORD, read_unproved

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xatlas.contracts.comparison import Comparison

#: Attribute that tells the data of a view of one text from a comparison's: which view it is.
VIEW = "view"
#: Widths of a paper's figures by name, in inches.
WIDTHS = {"column": 3.4, "page": 7.0}
FORMATS = ("png", "svg", "pdf")
_LEAST, _MOST = 2.0, 40.0
#: The width in inches that figures are asked for; None: the one that their comparison chooses.
asked_width: ContextVar[float | None] = ContextVar("asked_width", default=None)


def plot(
    dataset: xr.Dataset,
    *,
    width: float | str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw what a comparison made.

    Parameters
    ----------
    dataset : Dataset
        What a comparison's ``compare`` returned, or the data beside a figure (``xarray.open_dataset``).
    width : float or str, optional
        Inches, ``column`` (3.4) or ``page`` (7.0); by default as the comparison draws it. The height follows.
    figsize : tuple of float, optional
        Width and height in inches, instead.
    ax : Axes, optional
        Draw one model's first panel into these axes; of several models take ``dataset.sel(model=[name])``.

    Returns
    -------
    Figure
        Matplotlib's, to be changed and saved; with ``ax`` the one that holds it.

    Raises
    ------
    XatlasError
        No comparison that is installed made the dataset, the width is none, or axes are given for several models.
    """
    comparison = maker(dataset)
    if ax is not None:
        return _into(ax, comparison, dataset)
    if figsize is not None:
        _inches(figsize[1])
    with at_width(width if figsize is None else figsize[0]):
        figure = drawn(comparison, dataset)
    if figsize is not None:
        figure.set_size_inches(figsize)
    return figure


def _into(ax: Axes, comparison: Comparison, dataset: xr.Dataset) -> Figure:
    models = dataset["model"].values.tolist() if "model" in dataset.dims else []
    if len(models) != 1:
        raise XatlasError(
            f"axes hold one model, and the data {len(models) or 'no such dimension'}: give dataset.sel(model=[NAME])."
        )
    if "ax" not in inspect.signature(comparison.plot).parameters:
        raise XatlasError(f"{comparison.name} does not draw into axes: leave out ax.")
    return comparison.plot(dataset, ax=ax)  # type: ignore[call-arg]


def drawn(comparison: Comparison, dataset: xr.Dataset) -> Figure:
    """Return a comparison's figure at the width that is asked for, whether the comparison minds it or not."""
    figure, width = comparison.plot(dataset), asked_width.get()
    usual, height = figure.get_size_inches()
    if width is not None and abs(usual - width) > 1e-6:
        figure.set_size_inches(width, height * width / usual)
    return figure


@contextmanager
def at_width(width: float | str | None) -> Iterator[None]:
    """Draw figures for this width while the context lasts."""
    before = asked_width.set(None if width is None else _inches(width))
    try:
        yield
    finally:
        asked_width.reset(before)


def _inches(width: float | str) -> float:
    try:
        found = WIDTHS[width] if isinstance(width, str) and width in WIDTHS else float(width)
    except (TypeError, ValueError):
        found = 0.0
    if not _LEAST <= found <= _MOST:
        names = ", ".join(f"{name} ({inches} in)" for name, inches in WIDTHS.items())
        raise XatlasError(f"width {width} does not fit: it takes {names}, or inches from {_LEAST:g} to {_MOST:g}.")
    return found


def maker(dataset: xr.Dataset) -> Comparison:
    """Return the comparison that made a dataset, with its parameters."""
    name, version = _origin(dataset)
    kind = manager.pick("comparison", name, manager.comparisons())
    if version not in (None, kind.version):
        raise XatlasError(
            f"version {version} of {name} made the data, this is {kind.version}: run 'xatlas compare' again."
        )
    measured = _json(dataset, "measured").get("parameters", {})
    return kind(**measured.get(name, {}))


def _origin(dataset: xr.Dataset) -> tuple[str, Any]:
    """Return name and version of the comparison that made a dataset; the version may be missing."""
    about = _json(dataset, RECORD).get("comparison", {"name": dataset.attrs.get("comparison")})
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise XatlasError("these data are no comparison's: 'xatlas compare' writes such, as figures/NAME.nc.")
    return about["name"], about.get("version")


def _json(dataset: xr.Dataset, attribute: str) -> dict[str, Any]:
    try:
        found = json.loads(dataset.attrs.get(attribute, "{}"))
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def stored(path: Path) -> list[Path]:
    """Return the files that hold figures' data: one file, those in a folder, or in its folder ``figures``."""
    if path.is_file():
        return [path]
    folder = path / "figures" if (path / "figures").is_dir() else path
    if not folder.is_dir():
        raise XatlasError(f"there is no folder or file '{path}': name one that holds figures/, or a figure's .nc.")
    found = sorted(file for file in folder.glob("*.nc") if not file.name.startswith("."))
    if not found:
        raise XatlasError(
            f"{folder} holds no figure's data (NAME.nc): 'xatlas compare' writes them beside its figures."
        )
    return found


def draw(
    path: Path, out: Path, comparisons: Sequence[str], formats: Sequence[str], width: float | str | None
) -> tuple[list[Path], list[str]]:
    """Draw the stored figures, or those of some comparisons, in these formats; return the files, and what failed."""
    for name in comparisons:
        manager.pick("comparison", name, manager.comparisons())
    for kind in formats or ("",):  # none would be all that a comparison writes
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    written: list[Path] = []
    failures: list[str] = []
    with at_width(width):
        for file in stored(path):
            if out.resolve() == file.parent.resolve():
                raise XatlasError(f"{out} holds what 'xatlas compare' wrote: choose another folder with --out.")
            try:
                dataset = read_unproved(file)
                if VIEW in dataset.attrs or (comparisons and _origin(dataset)[0] not in comparisons):
                    continue
                comparison = maker(dataset)
                with manager.calling(type(comparison)):
                    written += manager.part("report")(file.stem, comparison, dataset, out, formats)
            except XatlasError as error:
                failures.append(f"{file}: {error}")
    if not written and not failures:
        raise XatlasError(
            f"{path} holds no data of {', '.join(comparisons) or 'comparisons'}: 'xatlas compare' makes them."
        )
    return written, failures
