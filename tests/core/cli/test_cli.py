"""The command line: results on stdout, for people and for programs, and no wait before them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import xarray as xr
from matplotlib.figure import Figure
from running import Counting, another, plugged, tiny

from xatlas import Comparison, Finding, Requirement
from xatlas.cli import app


class Dosed(Comparison):
    """Shows its dose."""

    name = "dosed"
    summary = "Which dose was given?"
    requires = (Requirement("counting"),)

    @dataclass(frozen=True)
    class Parameters:
        dose: float = 1.0

    def compare(self, tree):
        models = list(tree.children)
        return xr.Dataset({"dose": ("model", [self.parameters.dose] * len(models))}, {"model": models})

    def plot(self, dataset):
        figure = Figure()
        figure.subplots().plot(dataset["dose"])
        return figure

    def findings(self, dataset):
        return [Finding("The dose is 1.", self.parameters.dose, 1.0, 1.0, 0.0, float("nan"), "undecided")]

    def table(self, dataset):
        return [{"model": str(model), "dose": self.parameters.dose} for model in dataset["model"].values]


def test_a_parameter_in_short_is_the_parameter_in_full(cli):
    base = ["plan", "-m", "tiny", "--probes", "pairwise_ablation,head_ablation", "--json"]
    full = ["--set", "pairwise_ablation.components=L0.mlp,L1.operator", "--set", "head_ablation.ablations=zero"]
    short = ["--components", "L0.mlp,L1.operator", "--ablations=zero"]
    keys = [[row["key"] for row in json.loads(cli(*base, *more).stdout)] for more in (full, short, [])]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_a_list_adds_up_and_a_quoted_name_may_hold_a_comma(cli, folder):
    tiny(folder, "with,comma", seed=2)
    words = ["-m", "tiny", "-m", 'other, "with,comma"', "--probes", "residual_norms", "--probes=layer_ablation"]
    rows = json.loads(cli("plan", *words, "--json").stdout)
    assert len({row["model"] for row in rows}) == 3
    assert {row["probe"] for row in rows} == {"residual_norms", "layer_ablation"}
    with_comparisons = cli("plan", "-m", "tiny", "--probes", "residual_norms", "--comparisons", "hub", "--json")
    assert {row["probe"] for row in json.loads(with_comparisons.stdout)} == {"residual_norms", "layer_ablation"}


def test_parameters_reach_comparisons_in_full_and_in_short(cli):
    """What a comparison without its parameter shows stands beside what it shows with it."""
    base = ["compare", "-m", "tiny", "--comparisons", "dosed", "--json"]
    with plugged(xatlas_probes=[Counting], xatlas_comparisons=[Dosed]):
        shown = [
            json.loads(cli(*base, *more).stdout)["comparisons"]["dosed"]["findings"][0]["value"]
            for more in ([], ["--set", "dosed.dose=2"], ["--dose", "3"], ["--dose", "3", "--set", "dosed.dose=4"])
        ]
        planned = cli("plan", "-m", "tiny", "--comparisons", "dosed", "--dose", "3", "--json")
        explained = cli("explain", "dosed").stdout
    assert shown == [1.0, 2.0, 3.0, 4.0]
    assert [row["probe"] for row in json.loads(planned.stdout)] == ["counting"]
    for part in ("comparison dosed", "Shows its dose.", "dosed.dose", "counting"):
        assert part in explained


def test_a_model_named_twice_and_one_alone_are_said(cli, folder):
    with plugged(xatlas_probes=[Counting], xatlas_comparisons=[Dosed]):
        base = ["compare", "--comparisons", "dosed"]
        twice, alone, names = (cli(*base, "-m", models) for models in ("tiny,other,tiny", "tiny", "tiny,copy"))
    assert twice.exit_code == alone.exit_code == names.exit_code == 0
    assert "'tiny' is named 2 times" in twice.stderr
    assert "one model is named, 'tiny'" in alone.stderr
    assert "'tiny' and 'copy' are one model under two names" in names.stderr
    assert "named" not in cli("plan", "-m", "tiny,other", "--probes", "residual_norms").stderr


def test_run_prints_json_for_programs(cli):
    with plugged(xatlas_probes=[Counting]):
        first = json.loads(cli("run", "tiny", "--probes", "counting", "--json").stdout)
        again = json.loads(cli("run", "tiny", "--probes", "counting", "--json").stdout)
        anew = json.loads(cli("run", "tiny", "--probes", "counting", "--json", "--refresh").stdout)
    states = [row["state"] for row in first["jobs"] + again["jobs"] + anew["jobs"]]
    assert states == ["measured", "was there", "measured"]
    assert first["failures"] == []


def test_set_reaches_the_probe(cli):
    words = ["run", "tiny", "--probes", "layer_ablation", "--set", "layer_ablation.ablations=zero", "--json"]
    path = json.loads(cli(*words).stdout)["jobs"][0]["file"]
    shown = json.loads(cli("show", path, "--json").stdout)
    assert shown["job"]["parameters"]["ablations"] == ["zero"]
    assert shown["suite"]["name"] == "suite"
    assert "layer_ablation" in cli("show", path).stdout


def test_plan_measures_nothing_and_agrees_with_what_then_runs(cli, tmp_path):
    words = ["-m", "tiny,other", "--comparisons", "early_late", "--json"]
    planned = json.loads(cli("plan", *words).stdout)
    assert {row["state"] for row in planned} == {"to do"}
    assert all(row["minutes"] >= 0 and row["GB"] > 0 for row in planned)
    assert not (tmp_path / "atlas").exists()
    compared = json.loads(cli("compare", *words).stdout)
    assert {row["key"] for row in compared["jobs"]} == {row["key"] for row in planned}
    assert {row["state"] for row in json.loads(cli("plan", *words).stdout)} == {"done"}
    trained = cli("plan", "-m", "tiny", "--probes", "lora_rank", "--minutes", "1")
    assert "about 0.0 min on this machine, and 25 training runs (2,500 steps), not estimated" in trained.stdout


def test_compare_prints_tables_files_and_suite(cli, tmp_path, monkeypatch):
    result = cli("compare", "--models", "tiny,other")
    assert result.exit_code == 0, result.output
    for name in ("hub", "mlp_ratio", "early_late", "head_specialisation"):
        assert f"\n{name}: " in result.stdout
        assert (tmp_path / "figures" / f"{name}.svg").exists()
    assert "Suite 'suite': 12 prompts of 3 families" in result.stdout
    assert str(tmp_path / "figures") in result.stdout
    assert "Nothing has changed" in cli("compare", "--models", "tiny,other").stdout
    monkeypatch.setattr("xatlas.cli.commands._FINDINGS", 1)
    words = ("compare", "--models", "tiny,other", "--comparisons", "hub")
    held = json.loads(cli(*words, "--json").stdout)["comparisons"]["hub"]["findings"]
    assert f"… and {len(held) - 1} more, which --json prints" in cli(*words).stdout


def test_the_command_for_the_larger_suite_is_the_same_command(cli, monkeypatch):
    from xatlas.cli import commands as module
    from xatlas.config import find_suite, larger_suite

    assert larger_suite(find_suite("quick")).name == "standard"
    assert larger_suite(find_suite("standard")) is None
    monkeypatch.setattr(sys, "argv", ["xatlas", "compare", "-m", "a b,c", "--suite", "quick", "--seed", "2"])
    assert module._again("--suite", "standard") == "xatlas compare -m 'a b,c' --seed 2 --suite standard"


@pytest.mark.parametrize("command", ["models", "probes", "architectures", "comparisons", "suites"])
def test_lists_print_tables_and_json(cli, command):
    rows = json.loads(cli(command, "--json").stdout)
    table = cli(command).stdout
    assert rows
    assert all(str(next(iter(row.values()))) in table for row in rows)


def test_explain_prints_definition_units_and_parameters(cli):
    text = cli("explain", "layer_ablation").stdout
    for part in ("Definition", "Unit", "Control", "Source", "nats", "layer_ablation.ablations", "zero,mean,resample"):
        assert part in text


def test_show_prints_values_as_stored_and_reads_a_figures_data(cli, tmp_path):
    with plugged(xatlas_probes=[Counting], xatlas_comparisons=[Dosed]):
        done = json.loads(cli("compare", "-m", "tiny", "--comparisons", "dosed", "--json").stdout)
    shown = cli("show", done["jobs"][0]["file"]).stdout
    assert "xatlas.architectures.llama.LlamaAdapter" in shown
    assert "atlas/atlas" not in shown
    figure = str(tmp_path / "figures" / "dosed.nc")
    assert "dose" in cli("show", figure).stdout
    assert json.loads(cli("show", figure, "--json").stdout)["data_vars"]["dose"]["dims"] == ["model"]


def test_a_result_without_its_hash_is_not_shown_as_a_figure(cli):
    with plugged(xatlas_probes=[Counting]):
        path = json.loads(cli("run", "tiny", "--probes", "counting", "--json").stdout)["jobs"][0]["file"]
    os.unlink(f"{path}.sha256")
    assert cli("show", path).exit_code == 2


@pytest.mark.parametrize("name", ["hub", "quick", "LlamaForCausalLM", "layer_ablation"])
def test_explain_knows_whatever_has_a_name(cli, name):
    done = cli("explain", name)
    assert done.exit_code == 0
    assert name in done.stdout.splitlines()[0]


def test_a_name_of_two_things_is_explained_as_both_and_each_takes_its_parameters(cli):
    """A probe and a comparison of one name: each is given the parameter that it has."""

    @dataclass(frozen=True)
    class Weighted:
        weight: int = 1

    twin = another("dosed", Counting.measure, Parameters=Weighted)
    with plugged(xatlas_probes=[twin, Counting], xatlas_comparisons=[Dosed]):
        told = cli("explain", "dosed").stdout
        words = ["compare", "-m", "tiny", "--comparisons", "dosed", "--probes", "dosed", "--json"]
        done = json.loads(cli(*words, "--set", "dosed.dose=2", "--set", "dosed.weight=5").stdout)
    assert "probe dosed" in told
    assert "comparison dosed" in told
    assert done["comparisons"]["dosed"]["findings"][0]["value"] == 2
    job = next(job for job in done["jobs"] if job["probe"] == "dosed")
    assert json.loads(cli("show", job["file"], "--json").stdout)["job"]["parameters"] == {"weight": 5}


def test_show_lists_an_atlas_and_passes_over_what_is_foreign(cli, tmp_path):
    with plugged(xatlas_probes=[Counting]):
        cli("run", "tiny", "--probes", "counting")
    (tmp_path / "atlas" / "foreign").mkdir()
    (tmp_path / "atlas" / "foreign" / "x.nc").write_bytes(b"no")
    result = cli("show", str(tmp_path))
    assert result.exit_code == 0
    assert "counting" in result.stdout
    assert "x.nc" not in result.stdout
    assert "x.nc" in result.stderr


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def test_every_option_and_argument_has_help():
    import typer

    for path, command in commands(typer.main.get_command(app)):
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", None), (path, parameter.name)


def test_a_shell_completes_names(folder):
    def complete(*words):
        environment = {
            "_XATLAS_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        command = [sys.executable, "-c", "from xatlas.cli import app; app(prog_name='xatlas')"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert complete("xatlas", "run", "lfm2,gpt") == ["lfm2,gpt-neo-125m", "lfm2,gpt2"]
    assert complete("xatlas", "run", "tiny", "--probes", "layer_") == ["layer_ablation"]


HEAVY = ("torch", "transformers", "xarray", "matplotlib")


def heavy_modules(*words, cwd, heavy=HEAVY):
    script = (
        "import sys; from xatlas.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        f"print(*[m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stderr.strip().splitlines()[-1:] or [""]


def test_help_and_an_unchanged_compare_import_nothing_heavy(cli, folder, tmp_path):
    assert heavy_modules("--help", cwd=folder, heavy=(*HEAVY, "numpy", "rich")) == [""]
    words = ["compare", "-m", "tiny,other", "--comparisons", "early_late"]
    assert cli(*words).exit_code == 0
    more = ["--out", str(tmp_path), "--reference", "reference.jsonl", "--suite", "suite.jsonl"]
    assert heavy_modules(*words, *more, cwd=folder) == [""]


@pytest.mark.slow
def test_two_runs_at_once_share_one_folder(folder, tmp_path):
    command = [sys.executable, "-m", "xatlas.cli", "run", "tiny", "--probes", "layer_ablation", "--out", str(tmp_path)]
    command += ["--suite", "suite.jsonl", "--reference", "reference.jsonl", "--json"]
    runs = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(run.communicate(timeout=200)[0])["jobs"][0]["state"] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(said) == ["measured", "was there"]


def test_verify_names_what_is_wrong_and_sets_it_aside(cli, folder, tmp_path):
    assert cli("run", "tiny", "--probes", "residual_norms", "--out", str(tmp_path)).exit_code == 0
    (path,) = (tmp_path / "atlas").glob("*/*.nc")
    assert cli("verify", str(tmp_path)).exit_code == 0
    path.write_bytes(path.read_bytes()[:-1])
    found = cli("verify", str(tmp_path))
    assert found.exit_code == 1
    assert found.stdout == f"{path} is damaged: it differs from the hash beside it.\n"
    (row,) = json.loads(cli("verify", str(tmp_path), "--json").stdout)
    assert (row["path"], row["repaired"]) == (str(path), "")
    assert cli("verify", str(tmp_path / "atlas"), "--repair").exit_code == 0
    assert path.with_name(f"{path.name}.damaged").exists()
    assert cli("verify", str(tmp_path)).stdout == "Nothing is wrong.\n"


def test_twins_are_planned_with_their_models_and_named_on_the_command_line(cli):
    with plugged(xatlas_probes=[Counting]):
        words = ["plan", "-m", "tiny", "--probes", "counting", "--json"]
        plain, planned = (json.loads(cli(*words, *more).stdout) for more in ([], ["--null", "untrained"]))
        done = cli("run", "tiny~untrained:1", "--probes", "counting", "--json")
    (model,) = [row["model"] for row in plain]
    assert [row["model"] for row in planned] == [model, *(f"{model}~untrained-{seed}" for seed in range(3))]
    assert json.loads(done.stdout)["jobs"][0]["key"] == planned[2]["key"]
    steered = cli(
        "steer", "tiny~untrained", "ab", "--direction", "random:0", "--layer", "0", "--strength", "1", "--json"
    )
    assert json.loads(steered.stdout)["model"] == f"{model}~untrained-0"
    refused = cli("plan", "-m", "tiny", "--null", "trained")
    assert (refused.exit_code, "did you mean 'untrained'" in refused.stderr) == (2, True)


def test_minutes_choose_a_part_of_the_suite_that_the_footer_names(cli, monkeypatch):
    from xatlas.run import cost

    monkeypatch.setattr(cost, "estimate", lambda step, config: (len(config.suite) / 4, 1.0))
    words = ["-m", "tiny", "--probes", "residual_norms", "--comparisons", "hub"]
    assert "Suite 'suite[1]': 6 prompts of 3 families; about 3.0 min" in cli("plan", *words, "--minutes", "3").stdout
    assert "Suite 'suite': 12 prompts of 3 families; about 6.0 min" in cli("plan", *words, "--minutes", "6").stdout
    done = json.loads(cli("run", "tiny", "--probes", "residual_norms", "--minutes", "2", "--json").stdout)
    planned = json.loads(
        cli("plan", "-m", "tiny", "--probes", "residual_norms", "--suite", "suite.jsonl[1]", "--json").stdout
    )
    assert [(row["key"], row["state"]) for row in planned] == [(done["jobs"][0]["key"], "done")]
    for minutes in ("0", "-1", "nan"):
        refused = cli("compare", *words, "--minutes", minutes)
        assert refused.exit_code == 2
        assert "it takes a number above 0" in refused.stderr
