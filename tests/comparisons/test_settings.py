"""Commands for what the atlas lacks: run as given, they measure a result that fills the row."""

import json

import pytest
import xarray as xr

from xatlas.comparisons.hub import Hub
from xatlas.contracts.probe import Requirement
from xatlas.findings.comparison import footer
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


def test_results_count_together_where_they_were_measured_alike(synthetic):
    """Of several probes: on one suite, with one habit about position 0, and under a setting that all of them have."""
    types = ["attention"] * 2
    held = {
        "layer_ablation": synthetic.layer_result(types, ablations=("mean", "zero"), scopes=("last", "all")),
        "layer_ablation@bos=native": synthetic.layer_result(types, ablations=("mean",), bos="native"),
        "head_ablation": synthetic.head_result(types, ablations=("mean",)),
    }
    tree = synthetic.tree_of(a=held)
    whole, part = (
        Source(tree, "a", [Requirement("layer_ablation"), Requirement("head_ablation", optional=optional)])
        for optional in (False, True)
    )
    assert {str(each) for each in whole.settings if each.layer0} == {"mean, last, bos always, quick"}
    native = next(each for each in part.settings if each.bos == "native")
    layers, heads = part.effects(native)
    assert layers.dataset.identical(held["layer_ablation@bos=native"].sel(ablation="mean", scope="last", drop=True))
    assert heads is None
    # what is not the main setting, or a twin's, needs no tests of its own
    brief = [part.effects(each)[0].sample.brief for each in part.settings]
    assert brief == [each != part.usual for each in part.settings]
    assert part.effects(part.usual, brief=True)[0].sample.brief


def test_one_layer_is_not_left_out(synthetic):
    source = Source(synthetic.tree_of(a={"layer_ablation": synthetic.layer_result(["conv"])}), "a", Hub.requires)
    assert all(each.layer0 for each in source.settings)


def test_the_footer_says_what_numbers_rest_on(synthetic):
    one, fewer = synthetic.layer_result(["conv"]), synthetic.layer_result(["conv"]).isel(prompt=slice(16))
    other = synthetic.layer_result(["conv"], suite="standard", bos="native")
    trees = {"a": one, "b": one, "c": fewer.isel(prompt=slice(10)), "d": fewer, "e": other}
    held = synthetic.tree_of(**{name: {"layer_ablation": result} for name, result in trees.items()})
    mains = {name: Source(held, name, [Requirement("layer_ablation")]).first for name in trees}
    ending = "ablation mean, KL at the last position; 95 % intervals over templates"
    assert footer([mains["a"], mains["b"]]) == f"suite quick (6 families, 48 prompts), bos always; {ending}"
    assert footer([mains["c"], mains["d"], mains["e"]]) == (
        "suite quick (2 families, 10 to 16 prompts), bos always; "
        f"suite standard (6 families, 48 prompts), bos native; {ending}"
    )


def test_training_seeds_take_the_place_of_templates_in_the_footer():
    data = xr.Dataset({"loss": ("seed", [1.0, 2.0])}, attrs={"xatlas": "{}"})
    tree = xr.DataTree.from_dict({"/a/lora_targets": data})
    ending = footer([Source(tree, "a", [Requirement("lora_targets")]).first]).split("; ")[-1]
    assert ending == "95 % intervals over training seeds"


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
