import csv
import io
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from xatlas import XatlasError, files
from xatlas.comparisons import report
from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.figures import style
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio

HYBRID = ["conv", "attention", "conv", "attention", "conv"]
ALL = [Hub, MlpRatio, EarlyLate, HeadSpecialisation]


class Plain(EarlyLate):
    """Draws next to nothing: for tests of how files are written."""

    def plot(self, dataset):
        with style.context():
            return style.figure(2, 1, dataset.attrs["suite"])


@pytest.fixture(scope="module")
def tree(synthetic):
    """A hybrid, a model of one layer and a longer one with an absent prompt and a layer without effect."""

    def odd(kl):
        kl[3] = np.nan
        kl[:, 2] = 0
        return kl

    shapes = {"lfm2_mini": (HYBRID, None), "tiny": (["conv"], None), "other": (["attention"] * 7, odd)}
    return synthetic.tree_of(
        **{
            name: {
                "layer_ablation": synthetic.layer_result(types, plant, seed=i),
                "head_ablation": synthetic.head_result(types, 4, seed=i),
            }
            for i, (name, (types, plant)) in enumerate(shapes.items())
        }
    )


@pytest.mark.parametrize("kind", ALL)
def test_every_comparison_exports_its_files(kind, tree, tmp_path):
    comparison = kind()
    dataset = comparison.compare(tree)
    paths = report.export(comparison.name, comparison, dataset, tmp_path / "figures")
    ends = ("png", "svg", "nc", "csv", "sensitivity.csv")
    assert [path.name for path in paths] == [f"{comparison.name}.{end}" for end in ends]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)
    with xr.open_dataset(paths[2]) as again:
        xr.testing.assert_equal(again.load(), dataset)
    svg = paths[1].read_text()
    assert "suite quick" in svg  # text stays text, and says what it rests on
    assert "<dc:date>" not in svg
    assert {row["model"] for row in comparison.table(dataset)} == {"lfm2-mini", "tiny", "other"}
    for finding in comparison.findings(dataset):
        assert finding.verdict in {"supported", "refuted", "undecided", "artefact"}


def test_figures_are_the_same_byte_for_byte(tree, tmp_path):
    dataset = MlpRatio().compare(tree)
    first, second = (report.export("ratio", MlpRatio(), dataset, tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        if one.suffix != ".nc":
            assert one.read_bytes() == other.read_bytes()


def test_user_settings_do_not_change_figures(tree, tmp_path):
    import matplotlib

    dataset = MlpRatio().compare(tree)
    first = report.export("a", MlpRatio(), dataset, tmp_path)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        second = report.export("b", MlpRatio(), dataset, tmp_path)
    for one, other in zip(first[:2], second[:2], strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_csv_equals_the_dataset(tree):
    dataset = Hub().compare(tree)
    file = io.StringIO()
    report.write_csv(dataset, file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert len(rows) == sum(array.size for array in dataset.data_vars.values())
    effects = [row for row in rows if row["variable"] == "effect"]
    for row in effects:
        where = {"model": row["model"], "component": row["component"], "layer": int(row["layer"])}
        where["bound"] = row["bound"]
        value = float(dataset["effect"].sel(where))
        assert row["value"] == "" if np.isnan(value) else float(row["value"]) == value
    assert {row["units"] for row in effects} == {"nats"}
    assert {row["layer"] for row in rows if row["variable"] == "hub"} == {""}


def test_numbers_under_other_settings_stand_beside_the_figure(tree, tmp_path):
    dataset = EarlyLate().compare(tree)
    rows = list(csv.DictReader(report.export("early", Plain(), dataset, tmp_path)[4].open(encoding="utf-8")))
    assert len(rows) == int(dataset["sensitivity"].sel(bound="value").notnull().sum())
    where = {"finding": "early_over_late|lfm2-mini", "setting": "zero, last, bos always, quick"}
    (row,) = (row for row in rows if where.items() <= row.items())
    for bound in ("value", "low", "high"):
        assert float(row[bound]) == float(dataset["sensitivity"].sel(bound=bound, **where))


def test_unchanged_figures_are_left_alone_and_changed_data_redrawn(tree, tmp_path):
    dataset = Plain().compare(tree)
    paths = report.export("a", Plain(), dataset, tmp_path)
    before = [path.stat().st_mtime_ns for path in paths[:2]]
    report.export("a", Plain(), dataset.assign_attrs(xatlas="measured again"), tmp_path)
    assert [path.stat().st_mtime_ns for path in paths[:2]] == before
    with xr.open_dataset(paths[2]) as kept:
        assert kept.attrs["xatlas"] == "measured again"
    paths[1].unlink()
    report.export("a", Plain(), dataset, tmp_path)
    assert paths[1].exists()
    newer = type("Newer", (Plain,), {"version": Plain.version + 1})  # it may draw the same data otherwise
    before = [path.stat().st_mtime_ns for path in paths[:2]]
    report.export("a", newer(), dataset, tmp_path)
    assert all(path.stat().st_mtime_ns > old for path, old in zip(paths[:2], before, strict=True))
    changed = dataset.copy(deep=True)
    changed["profile"].values[0, 0] += 1e-9
    drawings = [*paths[:2], paths[3]]  # and the numbers beside them
    old = [path.read_bytes() for path in drawings]  # images are sealed with what they show
    report.export("a", newer(), changed, tmp_path)
    assert all(path.read_bytes() != before for path, before in zip(drawings, old, strict=True))


@pytest.mark.parametrize("damage", [lambda b: b"garbage", lambda b: b[: len(b) // 2], lambda b: b[:400] + b[402:]])
def test_a_figure_that_is_not_whole_is_drawn_again(tree, tmp_path, damage):
    dataset = Plain().compare(tree)
    paths = {path.suffix[1:]: path for path in report.export("a", Plain(), dataset, tmp_path)}
    whole = {kind: paths[kind].read_bytes() for kind in ("svg", "png")}
    for kind, data in whole.items():
        paths[kind].write_bytes(damage(data))
        report.export("a", Plain(), dataset, tmp_path)
        assert {each: paths[each].read_bytes() for each in whole} == whole


def test_figures_of_other_models_or_another_suite_are_kept_and_it_is_said(tree, tmp_path, caplog):
    """Whatever was shown last has the plain name; what was shown before comes back under it when it is asked for."""
    both = Plain().compare(tree)
    shown = {"all": both, "two": both.isel(model=[0, 1]), "other suite": both.assign_attrs(suite="suite standard")}
    shown["other settings"] = both.assign_attrs(measured="in bfloat16")
    drawn = {}
    for what, dataset in shown.items():
        paths = report.export("a", Plain(), dataset, tmp_path)
        drawn[what] = {path.name: path.read_bytes() for path in paths}
    assert caplog.text.count("that is kept as") == len(shown) - 1
    assert len(list(tmp_path.iterdir())) == len(shown) * len(paths)
    for what, dataset in shown.items():
        first = report.export("a", Plain(), dataset, tmp_path)
        assert {path.name for path in first} == {f"a.{end}" for end in ("png", "svg", "nc", "csv", "sensitivity.csv")}
        assert {path.name: path.read_bytes() for path in first if path.suffix != ".nc"} == {
            name: data for name, data in drawn[what].items() if name != "a.nc"
        }
        with xr.open_dataset(tmp_path / "a.nc") as beside:
            assert beside.sizes["model"] == dataset.sizes["model"]
            assert beside.attrs["suite"] == dataset.attrs["suite"]
    assert len(list(tmp_path.iterdir())) == len(shown) * len(paths)


def test_what_a_killed_run_left_is_removed(tree, tmp_path):
    for name in (".a.png.0123456789abcdef.tmp", ".a.sensitivity.csv.0123456789abcdef.tmp"):
        (tmp_path / name).write_bytes(b"half")
    paths = report.export("a", Plain(), Plain().compare(tree), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_cells_of_a_csv_are_no_formulas():
    name = '=HYPERLINK("x")'
    dataset = xr.Dataset(
        {"value": (("model", "family"), [[-1.5, 2.0], [np.nan, np.inf]])},
        coords={"model": [name, "two\nlines"], "family": ["@sum", "a\r-b\x1b[2J"]},
    )
    file = io.StringIO()
    report.write_csv(dataset, file)
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert [row[1] for row in rows[1:]] == [f"'{name}"] * 2 + ["two\nlines"] * 2
    assert [row[2] for row in rows[1:3]] == ["'@sum", r"a\r-b\x1b[2J"]
    assert [row[3] for row in rows[1:]] == ["-1.5", "2.0", "", "inf"]


def test_a_failed_write_leaves_what_was_there(tree, tmp_path, monkeypatch):
    dataset = Plain().compare(tree)
    paths = report.export("a", Plain(), dataset, tmp_path)
    before = [path.read_bytes() for path in paths]
    dataset["profile"].values[0, 0] += 1

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(XatlasError, match="the disk is full"):
        report.export("a", Plain(), dataset, tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_files_are_as_readable_as_others(tree, tmp_path):
    paths = report.export("a", Plain(), Plain().compare(tree), tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in paths} == {stat.S_IMODE(os.stat(plain).st_mode)}


def test_colours_are_fixed_and_apart():
    seeds = [f"{model}~{seed}" for model in ("qwen-mini", "lfm2-mini", "mine") for seed in (1, 2, 3, 4)]
    models = ["qwen-mini", "lfm2-mini", "mine", "yours", "other", "more", *seeds]
    found = style.colours(models)
    assert len(set(found.values())) == len(models)
    assert found["lfm2-mini"] == style.colours(["lfm2-mini"])["lfm2-mini"] == style.FIXED["lfm2-mini"]
    assert style.colours(["mine"])["mine"] == style.colours(["mine", "qwen"])["mine"]
    assert not set(style.OTHERS) & set(style.FIXED.values())


def test_figures_leave_the_users_matplotlib_alone(tree):
    import matplotlib

    before = dict(matplotlib.rcParams)
    EarlyLate().plot(EarlyLate().compare(tree))
    assert dict(matplotlib.rcParams) == before


def test_comparisons_load_neither_torch_nor_drawing():
    names = ["hub", "mlp_ratio", "early_late", "head_specialisation", "report", "figures.style"]
    imports = "; ".join(f"import xatlas.comparisons.{name}" for name in names)
    heavy = "{'torch', 'transformers', 'xarray', 'matplotlib', 'pandas'}"
    code = f"import sys; {imports}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
