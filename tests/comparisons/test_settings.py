"""Commands for what the atlas lacks: run as given, they measure a result that fills the row."""

import json

import pytest

from xatlas.comparisons.measures import readings
from xatlas.comparisons.measures.settings import Setting, command
from xatlas.vocabulary import TEMPLATE_DATE


def told(synthetic, dataset, probe, row, **about):
    dataset.attrs["xatlas"] = json.dumps({"suite": {"name": "quick"}, "job": {"bos": "always"}, **about})
    main = readings.find(synthetic.tree_of(a={probe: dataset}), "a", probe)[0]
    return command(main, Setting(*row, True)).split(" --bos ")[1]


def test_a_command_starts_from_the_probes_defaults_not_from_the_main_run(synthetic):
    layers = synthetic.layer_result(["attention"] * 2, scopes=("last", "all"))
    row = ("mean", "all", "native", "quick")
    assert told(synthetic, layers, "layer_ablation", row) == "native --set layer_ablation.scopes=last,all"
    heads = synthetic.head_result(["attention"] * 2, ablations=("mean", "zero"))
    row = ("zero", "last", "native", "quick")
    assert told(synthetic, heads, "head_ablation", row) == "native --set head_ablation.ablations=mean,zero,resample"


@pytest.mark.parametrize(("reference", "ending"), [("transfer", " --reference transfer"), ("train", ""), ("mine", "")])
def test_what_may_not_differ_is_said_again(synthetic, reference, ending):
    job = {"dtype": "bfloat16", "attention": "eager", "seed": 3, "draws": 4, "chat_template": True, "reference": "ab12"}
    row = ("mean", "last", "native", "quick")
    found = told(
        synthetic, synthetic.layer_result(["conv"]), "layer_ablation", row, job=job, reference={"name": reference}
    )
    assert found == f"native --dtype bfloat16 --attention eager --seed 3 --draws 4 --chat-template{ending}"


def test_a_date_of_the_chat_template_is_said_where_it_is_not_the_default(synthetic):
    for date, ending in (("2026-05-01", " --template-date 2026-05-01"), (TEMPLATE_DATE, "")):
        job = {"chat_template": True, "template_date": date}
        row = ("mean", "last", "native", "quick")
        found = told(synthetic, synthetic.layer_result(["conv"]), "layer_ablation", row, job=job)
        assert found == f"native --chat-template{ending}"


def test_a_command_gives_only_options_that_the_command_line_has(synthetic):
    from typer.main import get_command

    from xatlas.cli import app

    known = {option for item in get_command(app).commands["run"].params for option in item.opts}
    job = {"dtype": "bfloat16", "attention": "eager", "seed": 3, "draws": 4, "chat_template": True, "reference": "ab12"}
    main = synthetic.layer_result(["conv"], ablations=("mean",))
    found = told(
        synthetic, main, "layer_ablation", ("mean", "all", "native", "quick"), job=job, reference={"name": "transfer"}
    )
    assert {word for word in found.split() if word.startswith("--")} <= known
