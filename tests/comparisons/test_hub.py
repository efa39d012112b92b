import numpy as np
import pytest
import xarray as xr
from looking import explained, shows

from xatlas import XatlasError
from xatlas.comparisons.figures import style
from xatlas.comparisons.hub import Hub
from xatlas.findings.readings import Source
from xatlas.stats import DRAWS

TYPES = ["attention"] * 6


def planted(layer, factor=12.0):
    def plant(kl):
        kl[:, layer] *= factor
        return kl

    return plant


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"layer_ablation": result} for name, result in models.items()})
    return Hub().compare(tree)


def joint(dataset, model=0):
    return dataset.isel(model=model).sel(component="joint")


def found(dataset, name="hub"):
    """Return the findings of a claim about single models."""
    return [each for each in Hub().findings(dataset) if each.name == name and not each.model_other]


def pairs(dataset):
    return [each for each in Hub().findings(dataset) if each.model_other]


def evidence(synthetic, result, place=0):
    source = Source(synthetic.tree_of(a={"layer_ablation": result}), "a", Hub.requires)
    return Hub().estimate(*source.effects(source.settings[place]))["hub"]


def test_a_planted_hub_is_found(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, planted(4)))
    one = joint(dataset)
    assert one["hub"] == 4
    assert one["p_rank1"].values[4] == 1.0
    assert not one["tied"].any()
    (finding,) = found(dataset)
    assert finding.verdict == "supported"
    assert finding.p < 0.001
    assert finding.low < finding.value < finding.high
    assert finding.control_high < finding.low
    assert not finding.descriptive  # all halves of the templates choose it: nothing was selected
    assert finding.value == pytest.approx(float(one["effect"].sel(layer=4, bound="value")))
    assert "is layer 4 (-2 counted from the end, depth 0.80, attention)" in finding.sentence


@pytest.mark.parametrize("seed", range(3))
def test_a_hub_three_times_the_others_is_found(synthetic, seed):
    result = synthetic.layer_result(["conv", "attention"] * 6, planted(7, 3.0), seed=seed)
    assert found(compare(synthetic, a=result))[0].verdict == "supported"


def test_equal_layers_have_no_hub(synthetic):
    held = [evidence(synthetic, synthetic.layer_result(TYPES, seed=seed, ablations=("mean",))) for seed in range(15)]
    assert sum(not each.blocked and each.p <= 0.05 for each in held) <= 2
    assert np.mean([each.p for each in held]) > 0.2


def test_two_equal_layers_are_called_a_tie(synthetic):
    def plant(kl):
        kl[:, 2] *= 12
        kl[:, 4] = kl[:, 2]
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, plant))
    one = joint(dataset)
    assert {int(one["hub"]), *np.flatnonzero(one["tied"].values == 1)} == {2, 4}
    assert one["p_rank1"].values[2] == 0.5
    (finding,) = found(dataset)
    assert finding.verdict == "undecided"
    assert finding.reason.startswith("it ties with layer")
    assert "ties with layer" in finding.sentence
    assert "nats more than the largest of the others" in finding.sentence  # the number that makes it a tie
    rings = [line for line in Hub().plot(dataset).axes[0].lines if line.get_gid() == "hub"]
    widths = {line.get_xdata()[0]: line.get_markeredgewidth() for line in rings}
    assert widths.keys() == {2, 4}
    assert max(widths, key=widths.get) == int(one["hub"])  # thin: ties with it
    assert finding.low < finding.value < finding.high


def test_a_layer_without_effect_is_exactly_zero(synthetic):
    one = joint(compare(synthetic, a=synthetic.layer_result(TYPES, planted(3, 0.0))))
    assert (one["effect"].sel(layer=3) == 0).all()
    assert one["p_rank1"].values[3] == 0


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_layer_labels_lose_support(synthetic, seed):
    result = synthetic.layer_result(TYPES, planted(4))
    dataset = compare(synthetic, a=synthetic.shuffle_layers(result, seed))
    assert "supported" not in [finding.verdict for finding in Hub().findings(dataset)]


def test_the_largest_effect_that_its_control_exceeds_is_an_artefact(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    result["kl_control"] = result["kl"].sel(ablation="mean", drop=True) * 1.5
    assert found(compare(synthetic, a=result))[0].verdict == "artefact"
    result["kl_control"] = result["kl"].sel(ablation="mean", drop=True)
    assert found(compare(synthetic, a=result))[0].verdict == "undecided"


def test_ablation_kinds_that_disagree_leave_it_undecided(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    result["kl"].loc[{"ablation": "zero", "layer": 1}] *= 100
    (finding,) = found(compare(synthetic, a=result))
    assert (finding.verdict, finding.reason) == ("undecided", "kinds disagree: zero")


def test_operator_and_mlp_hubs_are_found_apart(synthetic):
    def plant(kl):
        kl[:, 1, 0] *= 12
        kl[:, 5, 1] *= 12
        return kl

    result = synthetic.layer_result(TYPES, plant)
    result["kl"].loc[{"ablation": "zero", "component": "mlp", "layer": 0}] *= 1000
    dataset = compare(synthetic, a=result)
    assert dataset["hub"].isel(model=0).sel(component=["operator", "mlp"]).values.tolist() == [1, 5]
    told = {finding.name: finding.verdict for finding in Hub().findings(dataset)[1:]}
    assert told == {"operator_hub": "supported", "mlp_hub": "undecided"}
    rows = {row["number"]: row for row in Hub().table(dataset)}
    assert rows["operator hub 1 (-5), nats"]["verdict"] == "supported"
    assert rows["operator hub 1 (-5), nats"]["sensitivity"].startswith("robust 5/5")


def test_a_model_without_mlps_has_no_mlp_hub(synthetic):
    def plant(kl):
        kl[:, :, 1] = np.nan
        return planted(2)(kl)

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, plant))
    assert np.isnan(dataset["hub"].sel(component="mlp"))
    assert {each.name for each in Hub().findings(dataset)} == {"hub", "operator_hub"}
    assert Hub().plot(dataset).axes


def test_prompts_that_are_absent_are_left_out(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    whole = joint(compare(synthetic, a=result))
    result["kl"].values[0] = np.nan
    one = joint(compare(synthetic, a=result))
    assert np.isfinite(one["effect"]).all()
    assert one["hub"] == 4
    assert not np.array_equal(one["effect"], whole["effect"])


def test_intervals_of_effects_are_those_of_the_log_mean(synthetic):
    result = synthetic.layer_result(TYPES)
    one = joint(compare(synthetic, a=result))["effect"]
    kl = result["kl"].sel(ablation="mean", scope="last", component="joint").values  # (prompt, layer)
    means = kl.reshape(6, 4, 2, len(TYPES)).mean(2)  # (family, template, layer)
    error = np.sqrt((means.var(1, ddof=1) / 4).sum(0)) / 6 / means.mean((0, 1))
    np.testing.assert_allclose(one.sel(bound="value"), means.mean((0, 1)))
    half = np.log(one.sel(bound="high") / one.sel(bound="low")).values / 2
    assert np.all(half > 1.96 * error)  # t, not normal
    assert np.all(half < 1.3 * 1.96 * error)


def test_hubs_at_different_depths_in_models_of_different_length(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.layer_result(TYPES, planted(0)),
        b=synthetic.layer_result(["conv", "attention"] * 5, planted(9), seed=1),
        c=synthetic.layer_result(["attention"] * 11, planted(0), seed=2),
    )
    assert [(pair.value, pair.verdict) for pair in pairs(dataset)] == [
        (-1.0, "supported"),
        (0.0, "supported"),
        (1.0, "supported"),
    ]
    sentences = [pair.sentence for pair in pairs(dataset)]
    assert sentences[0].startswith("The depth of the hub differs between a and b")
    assert sentences[1].startswith("The hub is in the same place in a and c (depths 0.00 and 0.00)")
    assert np.isnan(dataset["effect"].sel(model="a").values[:, 6:]).all()
    numbers = [row["number"] for row in Hub().table(dataset) if row["number"].startswith("hub")]
    assert numbers == ["hub 0 (-6), nats", "hub 9 (-1), nats", "hub 0 (-11), nats"]  # from each model's own end


@pytest.mark.parametrize(("layer", "same"), [(5, False), (7, True)])
def test_hubs_lie_apart_from_half_a_layer_of_the_shallower_model_on(synthetic, layer, same):
    """Half a layer of six is 0.1: layer 4 of 6 (0.8) is 0.175 from layer 5 of 9, and 0.075 from layer 7."""
    shallow = synthetic.layer_result(TYPES, planted(4, 30))
    deep = synthetic.layer_result([*TYPES, *TYPES[:3]], planted(layer, 30), seed=1)
    (pair,) = pairs(compare(synthetic, a=shallow, b=deep))
    assert pair.value == pytest.approx(4 / 5 - layer / 8)
    assert pair.verdict == "supported"
    assert ("in the same place" in pair.sentence) == same
    assert pair.p == pytest.approx((1 if same else 2) / (1 + DRAWS))  # no draw lies on the other side


def test_a_hub_that_ties_is_not_in_the_same_place(synthetic):
    def plant(kl):
        kl[:, 2] *= 12
        kl[:, 3] = kl[:, 2]
        return kl

    tied = synthetic.layer_result(TYPES, plant)
    (pair,) = pairs(compare(synthetic, a=tied, b=synthetic.layer_result(TYPES, planted(2), seed=1)))
    assert pair.verdict == "undecided"
    equal = synthetic.layer_result(TYPES, seed=4)
    equal, clear = equal.sel(ablation=["mean"]), synthetic.layer_result(TYPES, planted(2), seed=1, ablations=("mean",))
    for first, second in ((equal, clear), (clear, equal)):
        (pair,) = pairs(compare(synthetic, a=first, b=second))
        assert pair.reason == "no layer stands out in one of them"


def test_one_layer_is_no_hub(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(["conv"]))
    (finding,) = found(dataset)
    assert (finding.verdict, finding.reason) == ("undecided", "one layer only")
    assert "-1 counted from the end, depth 0.00" in finding.sentence
    assert Hub().plot(dataset).axes


def test_without_anything_to_resample_nothing_is_supported(synthetic):
    """One prompt per family: the depths of two hubs have no interval either, even beside a model that has one."""
    few = synthetic.layer_result(TYPES, planted(4)).isel(prompt=[0, 8, 16])
    for other in (few, synthetic.layer_result(TYPES, planted(0), seed=1)):
        dataset = compare(synthetic, a=few, b=other)
        assert np.isnan(joint(dataset)["p_rank1"]).all()
        hub, (pair,) = found(dataset)[0], pairs(dataset)
        assert (hub.reason, pair.reason) == ("too few templates", "too few templates")
        assert np.isnan([hub.low, hub.high, pair.low, pair.high]).all()
        assert pair.value == 0.8 - float(joint(dataset, 1)["hub"]) / 5


def test_without_layer_0_layers_keep_their_numbers(synthetic):
    def plant(kl):
        kl[:, 0] *= 50
        kl[:, 3] *= 8
        return kl

    result = synthetic.layer_result(TYPES, plant, ablations=("mean",))
    assert [evidence(synthetic, result, place).answer for place in (0, 1)] == [0, 3]
    assert evidence(synthetic, result, 1).words["where"].startswith("-3 counted from the end, depth 0.60")
    (finding,) = found(compare(synthetic, a=result))
    assert (finding.settings, finding.agree, finding.depends_on) == (1, 0, "layer 0")


def test_variants_are_other_settings(synthetic):
    nodes = {
        "layer_ablation": synthetic.layer_result(TYPES, planted(4)),
        "layer_ablation@bos=native": synthetic.layer_result(TYPES, planted(1), bos="native", ablations=("mean",)),
        "layer_ablation@suite=standard": synthetic.layer_result(
            TYPES, planted(4), suite="standard", ablations=("mean",)
        ),
    }
    (finding,) = found(Hub().compare(synthetic.tree_of(a=nodes)))
    assert finding.verdict == "supported"
    assert (finding.settings, finding.agree, finding.depends_on) == (9, 7, "position 0")


def test_a_missing_result_says_how_to_get_it(synthetic):
    tree = synthetic.tree_of(a={"head_ablation": synthetic.head_result(TYPES)})
    with pytest.raises(XatlasError, match="xatlas run a --probes layer_ablation"):
        Hub().compare(tree)


def test_the_main_row_needs_mean_at_last(synthetic):
    with pytest.raises(XatlasError, match="ablation 'mean'"):
        compare(synthetic, a=synthetic.layer_result(TYPES, ablations=("zero",)))


def with_position(synthetic, result, layer=2):
    kl = synthetic.noise(np.random.default_rng(5), (len(TYPES), 3, 2), 0.02)
    kl[:, layer, 1:, 0] *= 100
    kl[:, 1, 0, 1] *= 1000  # elsewhere
    dims = ("prompt", "layer", "component", "where")
    return result.assign(kl_position=(dims, kl)).assign_coords(where=["first", "rest"])


def test_what_matters_most_at_position_0_is_named(synthetic):
    result = with_position(synthetic, synthetic.layer_result(TYPES, planted(4)))
    dataset = compare(synthetic, a=result)
    (finding,) = found(dataset, "position")
    assert finding.verdict == "supported"
    assert "the MLP of layer 2 (-4 counted from the end" in finding.sentence
    effect = dataset["position_effect"].isel(model=0).sel(layer=2, component="mlp", where="first")
    assert [finding.value, finding.low, finding.high] == pytest.approx(effect.values)
    assert finding.settings == 1  # of what other ablation kinds do, it says nothing
    assert "MLP 2 at pos. 0" in {row["number"] for row in Hub().table(dataset)}
    result["kl_position"].loc[{"component": "operator", "layer": 2}] = result["kl_position"].sel(
        component="mlp", layer=2
    )
    (finding,) = found(compare(synthetic, a=result), "position")
    assert finding.reason == "it ties with layer 2 (MLP)" or finding.reason == "it ties with layer 2 (operator)"


def test_the_strongest_head_stands_beside_the_hub(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, 4] = 6.0
        return kl

    def few(kl):
        kl[:] = 0.1
        kl[:, 1, 2] = 1.5
        return kl

    nodes = {
        "layer_ablation": synthetic.layer_result(TYPES, plant),
        "head_ablation": synthetic.head_result(TYPES, plant=few),
    }
    dataset = Hub().compare(synthetic.tree_of(a=nodes, b={"layer_ablation": nodes["layer_ablation"]}))
    np.testing.assert_allclose(dataset["head_over_layer"].sel(model="a"), 0.25)
    assert np.isnan(dataset["head_over_layer"].sel(model="b")).all()
    fewer = {**nodes, "head_ablation": nodes["head_ablation"].isel(prompt=slice(8))}
    assert np.isnan(Hub().compare(synthetic.tree_of(a=fewer))["head_over_layer"]).all()  # on other prompts than layers
    # heads were ablated by one kind: that leaves layers their other kinds
    assert {finding.settings for finding in found(dataset)} == {5}
    assert [row["model"] for row in Hub().table(dataset) if row["number"] == "strongest head / hub"] == ["a"]


def test_findings_survive_the_file(synthetic, tmp_path):
    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, planted(4)))
    dataset.to_netcdf(tmp_path / "hub.nc")
    with xr.open_dataset(tmp_path / "hub.nc") as again:
        assert Hub().findings(again.load()) == Hub().findings(dataset)
        assert Hub().table(again) == Hub().table(dataset)


def test_the_figure_marks_hub_control_and_what_is_clipped(synthetic):
    def plant(kl):
        kl[:, 5] *= 1e-6
        return planted(4)(kl)

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, plant))
    figure = Hub().plot(dataset)
    top, below = figure.axes
    told, one = explained(figure), dataset.isel(model=0).sel(bound="value")
    for name, text in {"operator": "operator", "mlp": "MLP", "control": "control of joint, 95 % band"}.items():
        values = one["control"].sel(component="joint") if name == "control" else one["effect"].sel(component=name)
        (drawn,) = (line for line in top.lines if shows(line, values.where(values >= 1e-4)))
        assert drawn._unscaled_dash_pattern == told[text]._unscaled_dash_pattern
    assert top.get_title(loc="left") == "a\nthe hub is layer 4: supported"
    assert top.get_yscale() == "log"
    rings = [line for line in top.lines if line.get_gid() == "hub"]
    assert [ring.get_xdata().tolist() for ring in rings] == [[4]]
    assert any(line.get_color() == style.CONTROL for line in top.lines)
    clipped = [line for line in top.lines if line.get_marker() == "v"]
    assert [line.get_xdata().tolist() for line in clipped] == [[5]] * 3  # operator, MLP, joint
    curve = next(line for line in top.lines if line.get_gid() == "joint")
    assert np.isnan(curve.get_ydata()).tolist() == [layer == 5 for layer in range(len(TYPES))]
    heights = [bar.get_height() for bar in below.patches]
    np.testing.assert_array_equal(heights, joint(dataset)["p_rank1"])


def test_crosses_are_the_larger_of_operator_and_mlp_at_position_0(synthetic):
    result = with_position(synthetic, synthetic.layer_result(TYPES, planted(4)))
    result["kl_position"].loc[{"layer": 3}] = 1e-9
    dataset = compare(synthetic, a=result)
    (crosses,) = (line.get_ydata() for line in Hub().plot(dataset).axes[0].lines if line.get_marker() == "x")
    effect = dataset["position_effect"].sel(model="a", where="first", bound="value", component=["operator", "mlp"])
    np.testing.assert_allclose(crosses, effect.max("component").where(effect["layer"] != 3))


def test_curves_of_twins_are_those_of_a_model_that_is_one(synthetic):
    held = [{"layer_ablation": synthetic.layer_result(["attention"] * 4, seed=seed)} for seed in range(3)]
    tree = synthetic.tree_of(z=held[0], a=held[0], **{"a~untrained_0": held[1], "a~untrained_1": held[2]})
    dataset = Hub().compare(tree)
    assert dataset["model"].values.tolist() == ["z", "a"]
    assert bool(dataset["effect_untrained"].sel(model="z").isnull().all())
    alone = Hub().compare(synthetic.tree_of(b=held[2]))["effect"].sel(model="b", bound="value")
    xr.testing.assert_allclose(
        dataset["effect_untrained"].sel(model="a", untrained=1).reset_coords(drop=True), alone.reset_coords(drop=True)
    )
