"""Commands for what the atlas lacks: run as given, they measure a result that fills the row."""

import json

import pytest

from xatlas.contracts.probe import Requirement
from xatlas.findings.readings import Source
from xatlas.findings.sensitivity import as_asked, not_run
from xatlas.suites import Prompt, Suite, read_suite, write_suite
from xatlas.vocabulary import TEMPLATE_DATE

JOB = {"bos": "always", "dtype": "bfloat16", "attention": "eager", "seed": 3, "draws": 3, "chat_template": True}


def missing(synthetic, results, asked=None, **about):
    """Return what varies → the command, of a model that the results were measured of."""
    tree = synthetic.tree_of(a=results)
    probes = list(dict.fromkeys(probe.partition("@")[0] for probe in results))
    for probe in probes:
        told = {"suite": {"name": "quick"}, "job": {"bos": "always"}, **about}
        tree[f"a/{probe}"].attrs["xatlas"] = json.dumps(told)
    if asked:
        tree.attrs["xatlas"] = asked
    rows = not_run(tree, [Source(tree, "a", [Requirement(probe) for probe in probes])])
    assert {row["model"] for row in rows} <= {"a"}
    return {row["what"]: row["command"] for row in rows}


def test_what_is_there_is_not_listed_and_all_probes_of_a_run_are_in_one_command(synthetic):
    layers = synthetic.layer_result(["attention"] * 2, scopes=("last", "all"))
    heads = synthetic.head_result(["attention"] * 2)
    both = missing(synthetic, {"layer_ablation": layers, "head_ablation": heads})
    run = "xatlas run a --probes"
    scopes = "--set layer_ablation.scopes=last,all"  # the probe's default is one scope
    assert both == {
        "suite standard": f"{run} layer_ablation,head_ablation --suite standard --bos always",
        "position 0: bos native": f"{run} layer_ablation,head_ablation --suite quick --bos native",
        "ablation kind zero, resample": f"{run} head_ablation --suite quick --bos always"
        " --set head_ablation.ablations=mean,zero,resample",
        "scope all": f"{run} head_ablation --suite quick --bos always --set head_ablation.scopes=last,all",
    }
    job = {"bos": "always", "parameters": {"scopes": ["last", "all"]}}
    found = missing(synthetic, {"layer_ablation": layers}, job=job)
    assert set(found) == {"suite standard", "position 0: bos native"}
    assert found["suite standard"].endswith(scopes)


@pytest.mark.parametrize(
    ("variant", "where", "there"),
    [
        ("bos=native", {"bos": "native"}, {"position 0: bos native"}),
        ("suite=standard", {"suite": "standard"}, {"suite standard"}),
        ("bos=native,suite=standard", {"bos": "native", "suite": "standard"}, set()),
        ("draws=9", {}, {"ablation kind zero, resample", "scope all"}),
    ],
)
def test_a_variant_fills_the_row_of_the_one_thing_that_it_varies(synthetic, variant, where, there):
    types = ["attention"] * 2
    main = {"layer_ablation": synthetic.layer_result(types, ablations=("mean",))}
    beside = {f"layer_ablation@{variant}": synthetic.layer_result(types, scopes=("last", "all"), **where)}
    assert set(missing(synthetic, main)) - set(missing(synthetic, main | beside)) == there


@pytest.mark.parametrize(("reference", "ending"), [("transfer", " --reference transfer"), ("train", ""), ("mine", "")])
def test_what_may_not_differ_is_said_again(synthetic, reference, ending):
    found = missing(
        synthetic,
        {"layer_ablation": synthetic.layer_result(["conv"])},
        job=JOB | {"reference": "ab12", "template_date": "2026-05-01"},
        reference={"name": reference},
    )
    options = "--dtype bfloat16 --attention eager --seed 3 --draws 3 --chat-template --template-date 2026-05-01"
    start = "xatlas run a --probes layer_ablation --suite quick --bos native"
    assert found["position 0: bos native"] == f"{start} {options}{ending}"


def test_own_suites_are_named_by_their_file_and_the_folder_is_said(synthetic, tmp_path):
    write_suite(Suite("mine", (Prompt("p", "f", "a b"),)), tmp_path / "my suite.jsonl")
    suites = {"suite": read_suite(tmp_path / "my suite.jsonl"), "reference": None}
    held = {"layer_ablation": synthetic.layer_result(["conv"])}
    found = missing(synthetic, held, as_asked(suites, "some where"), suite={"name": "my suite"})
    assert f"--suite '{tmp_path}/my suite.jsonl' --bos native --out 'some where'" in found["position 0: bos native"]
    assert "--suite standard" in found["suite standard"]
    made = as_asked({"suite": Suite("my suite", suites["suite"].prompts), "reference": None}, ".")
    assert missing(synthetic, held, made, suite={"name": "my suite"})["scope all"] == ""  # it stands in no file


def test_a_command_gives_only_options_that_the_command_line_has(synthetic):
    from typer.main import get_command

    from xatlas.cli import app

    known = {option for item in get_command(app).commands["run"].params for option in item.opts}
    main = synthetic.layer_result(["conv"], ablations=("mean",))
    job = JOB | {"reference": "ab12", "template_date": TEMPLATE_DATE}
    found = missing(synthetic, {"layer_ablation": main}, job=job, reference={"name": "transfer"})
    assert found
    for command in found.values():
        assert {word for word in command.split() if word.startswith("--")} <= known
