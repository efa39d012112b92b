"""Figures drawn again from their stored data: at a paper's width, legible, the same every time, without torch."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
import xarray as xr
from matplotlib.figure import Figure
from typer.testing import CliRunner

import xatlas
from xatlas import drawing
from xatlas.cli import app
from xatlas.comparisons import report
from xatlas.comparisons.early_late import EarlyLate


@pytest.fixture(scope="module")
def dataset(synthetic):
    shapes = {"lfm2-mini": ["conv", "attention"] * 3, "qwen-mini": ["attention"] * 7}
    results = {name: {"layer_ablation": synthetic.layer_result(types)} for name, types in shapes.items()}
    return EarlyLate().compare(synthetic.tree_of(**results))


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing")
    report.export("early_late", EarlyLate(), dataset, folder / "figures")
    return folder


@pytest.fixture
def figures(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *words: CliRunner().invoke(app, ["figures", *map(str, words)])


def test_all_formats_at_column_width_the_same_every_time(figures, folder, tmp_path):
    stored = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    runs = []
    for where, out in ((".", "a"), (folder / "figures", "b"), (folder / "figures" / "early_late.nc", "c")):
        formats = "png" if out == "c" else "png,svg,pdf"
        options = ["--comparisons", "early_late", "--format", formats, "--width", "column"]
        done = figures(where, *options, "--out", tmp_path / out)
        assert done.exit_code == 0, done.output
        runs.append({path.suffix: path.read_bytes() for path in (tmp_path / out).iterdir()})
        assert sorted(done.stdout.split()) == sorted(map(str, (tmp_path / out).iterdir()))
    first = runs[0]
    assert sorted(first) == [".pdf", ".png", ".svg"]
    assert runs == [first, first, {".png": first[".png"]}]
    assert struct.unpack(">I", first[".png"][16:20])[0] == round(3.4 * 300)
    assert b"/FontFile2" in first[".pdf"]  # TrueType, embedded
    assert b"/Type3" not in first[".pdf"]
    assert b"CreationDate" not in first[".pdf"]
    assert b">first half over second half, ratio</text>" in first[".svg"]
    assert b"dc:date" not in first[".svg"]
    assert {path: path.read_bytes() for path in (folder / "figures").iterdir()} == stored


@pytest.mark.parametrize(("width", "inches", "stacked"), [("column", 3.4, True), ("page", 7.0, False), (5, 5, False)])
def test_panels_fit_the_width_and_type_stays_legible(dataset, width, inches, stacked):
    figure = xatlas.plot(dataset, width=width)
    assert figure.get_size_inches()[0] == pytest.approx(inches)
    figure.draw_without_rendering()
    one, other, _ = (axes.get_window_extent() for axes in figure.axes)
    assert (one.y0 > other.y1, one.x1 < other.x0) == (stacked, not stacked)


def test_without_a_width_a_figure_is_the_comparisons_own(dataset):
    with drawing.at_width("column"):
        pass
    own, found = EarlyLate().plot(dataset), xatlas.plot(dataset)
    assert found.get_size_inches().tolist() == own.get_size_inches().tolist()


def test_a_comparison_that_minds_no_width_is_scaled_and_gets_its_parameters(dataset, monkeypatch):
    class Plain(EarlyLate):
        name = "plain"

        def plot(self, dataset):
            return Figure(figsize=(8, 4))

    monkeypatch.setattr(drawing.manager, "comparisons", lambda: {"plain": Plain})
    theirs = xr.Dataset(attrs={"comparison": "plain"})
    assert xatlas.plot(theirs, width=4).get_size_inches().tolist() == [4, 2]


MISTAKES = {
    "no folder": (["nowhere"], "there is no folder or file 'nowhere'"),
    "nothing stored": (["empty"], "empty holds no figure's data"),
    "format": (["--format", "png,jpg"], "unknown format 'jpg'"),
    "no format": (["--format", ","], "the list ',' has an empty name"),
    "comparison": (["--comparisons", "early_lat"], "did you mean 'early_late'?"),
    "not stored": (["--comparisons", "hub"], "holds no data of hub"),
    "no number": (["--width", "wide"], "width wide does not fit: it takes column"),
    "nan": (["--width", "nan"], "width nan does not fit"),
    "too narrow": (["--width", "0.5"], "or inches from 2 to 40"),
    "the stored ones": (["--out", "figures"], "choose another folder with --out"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, figures, folder, tmp_path):
    (folder / "empty").mkdir(exist_ok=True)
    words, told = MISTAKES[case]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    done = figures(*words, *out)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_is_named_and_the_rest_is_drawn(figures, dataset, folder, tmp_path):
    about = json.loads(dataset.attrs["xatlas"])
    about["comparison"]["version"] -= 1
    held = tmp_path / "figures"
    report.export("early_late", EarlyLate(), dataset, held)
    dataset.assign_attrs(xatlas=json.dumps(about)).to_netcdf(held / "old.nc")
    xr.Dataset({"x": ("y", [1.0])}).to_netcdf(held / "foreign.nc")
    (held / "garbage.nc").write_bytes(b"no netCDF")
    done = figures(tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["early_late.pdf"]
    foreign, garbage, old, last = done.stderr.strip().splitlines()
    assert "foreign.nc: these data are no comparison's" in foreign
    assert "garbage.nc cannot be read as netCDF" in garbage
    assert "old.nc: version 2 of early_late made the data" in old
    assert "3 of the figures" in last


def test_drawing_loads_no_torch(folder, tmp_path):
    code = (
        "import sys; from xatlas.cli import app\n"
        f"words = ['figures', {str(folder)!r}, '--format', 'png', '--out', {str(tmp_path / 'out')!r}]\n"
        "app(words, standalone_mode=False)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "out" / "early_late.png"), "set()"]
