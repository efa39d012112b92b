"""Maps of CKA: planted blocks are found, noise is an artefact of the usual form, and models meet at shared samples."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.cka_map import CKAMap, _equal_depths, _within, longest
from xatlas.findings.readings import Effects, Reading, Setting, sample_of
from xatlas.similarity import Grams, gram

N = 240
NOISE = np.random.default_rng(0).normal(size=(8, N, 1024))


def compare(synthetic, **models):
    return CKAMap().compare(synthetic.tree_of(**{name: {"cka": one} for name, one in models.items()}))


def told(dataset, model="a", other=""):
    found = CKAMap().findings(dataset)
    return {finding.name: finding for finding in found if (finding.model, finding.model_other) == (model, other)}


@pytest.fixture(scope="module")
def noise(synthetic):
    return compare(synthetic, a=synthetic.cka_result(NOISE))


def test_noise_is_similar_and_locked_in_only_as_usually_published(noise):
    """The biased form on 27 tokens gives 0.97 for independent noise in 1,024 dimensions."""
    found = told(noise)
    assert abs(found["within"].value) < 0.02
    assert found["within"].verdict == "artefact"
    assert "biased CKA of 27 tokens is 0.97" in found["within"].reason
    assert found["locked"].verdict == "artefact"
    assert "layers 0 to 7" in found["locked"].reason


def test_four_shared_spikes_are_an_artefact(synthetic):
    few = NOISE[:4, :, :64]
    spiked = few.copy()
    spiked[:, [3, 80, 150, 200], 5] += 2000
    found = told(compare(synthetic, a=synthetic.cka_result(spiked, few)))["within"]
    assert found.verdict == "artefact"
    assert "untrimmed CKA is 1" in found.reason


def test_a_planted_block_is_found_and_its_neighbours_are_not_in_it(synthetic):
    features = NOISE[:, :, :64].copy()
    features[2:6] = features[2] + 0.15 * features[2:6]
    dataset = compare(synthetic, a=synthetic.cka_result(features))
    found = told(dataset)["locked"]
    assert found.verdict == "supported"
    assert "layers 2 to 5" in found.sentence
    axes = CKAMap().plot(dataset).axes[0]
    (block,) = (patch.get_bbox().extents.tolist() for patch in axes.patches)
    assert block == [1.5, 1.5, 5.5, 5.5]
    mean = f"{told(dataset)['within'].value:.2f}"
    assert axes.get_title(loc="left").replace("\n", " ") == f"mean CKA {mean}; 2–5 locked in"
    for verdict, said in (("undecided", "block 2–5 undecided"), ("refuted", "no layers locked in")):
        dataset["finding_verdict"][dataset["finding_name"] == "locked"] = verdict
        assert CKAMap().plot(dataset).axes[0].get_title(loc="left").replace("\n", " ").endswith(said)
    assert 0.9 < found.low <= found.value <= found.high <= 1
    assert dataset["block"].sel(model="a").values.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_a_block_is_measured_on_templates_that_it_was_not_chosen_on(synthetic):
    features = NOISE[:, :, :64].copy()
    chosen_on = np.repeat(sample_of(synthetic.cka_result(features)).halves[0], 5)  # five samples a prompt
    features[2:6, chosen_on] = features[2, chosen_on] + 0.15 * features[2:6, chosen_on]
    found = told(compare(synthetic, a=synthetic.cka_result(features)))["locked"]
    assert "layers 2 to 5" in found.sentence
    assert abs(found.value) < 0.1


def test_a_block_that_is_alike_but_not_locked_in_is_refuted(synthetic):
    features = NOISE[:, :, :64].copy()
    features[2:6] = features[2] + 0.7 * features[2:6]
    assert told(compare(synthetic, a=synthetic.cka_result(features)))["locked"].verdict == "refuted"


def shared(seed=1):
    """Return two models' streams of which half is common, in another basis each."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(N, 40))
    return [
        np.array(
            [common @ np.linalg.qr(rng.normal(size=(40, 40)))[0] + rng.normal(size=(N, 40)) for _ in range(layers)]
        )
        for layers in (4, 6)
    ]


def test_what_two_models_share_is_found_in_any_basis_and_noise_is_not(synthetic):
    one, two = shared()
    results = {"a": synthetic.cka_result(one), "b": synthetic.cka_result(two), "c": synthetic.cka_result(NOISE[:4])}
    dataset = compare(synthetic, **results)
    found = told(dataset, "a", "b")["between"]
    assert found.verdict == "supported"
    assert found.value == pytest.approx(0.25, abs=0.06)  # half of the variance each
    assert found.low > found.control
    assert told(dataset, "a", "c")["between"].verdict in ("refuted", "artefact")
    between = dataset["between"].sel(pair="a|b", layer=range(4), layer_other=range(6))
    assert (between > dataset["between_null_q95"].sel(pair="a|b", layer=range(4), layer_other=range(6))).all()


def test_models_meet_at_the_samples_that_both_read(synthetic):
    """One that lacks some of them, in another order, is compared at the others."""
    one, two = (synthetic.cka_result(each) for each in shared())
    kept = np.delete(np.arange(N), [7, 100, 101])
    fewer = two.isel(sample=kept, sample_other=kept)
    dataset = compare(synthetic, a=one, b=fewer)
    assert "at 237 word ends" in told(dataset, "a", "b")["between"].sentence
    streams = [np.array([gram(layer[kept]) for layer in each]) for each in shared()]
    prompts = one["sample_prompt"].values[kept]
    expected = Grams(streams[0], prompts).cka(Grams(streams[1], prompts))
    np.testing.assert_allclose(dataset["between"].sel(pair="a|b")[:4, :6], expected, atol=1e-4)


def test_the_interval_covers_the_similarity_of_the_population(synthetic):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(2, 6, 8))
    products = [mix[i].T @ mix[j] for i, j in ((0, 1), (0, 0), (1, 1))]
    truth = (products[0] ** 2).sum() / np.sqrt((products[1] ** 2).sum() * (products[2] ** 2).sum())
    inside = 0
    for _ in range(100):
        latent = rng.normal(size=(N, 6))
        result = synthetic.cka_result(latent @ mix, draws=1)
        one = Effects(Reading("a", "a", "cka", result, "s", "always"), Setting("mean", "last", "always", "s"))
        _, low, high = _within(one).number
        inside += low <= truth <= high
    assert 89 <= inside <= 99


def test_prompts_of_one_template_are_one_witness(synthetic):
    """Copies tell nothing new: as templates of their own they would narrow the interval by the root of two."""
    once = np.random.default_rng(0).normal(size=(2, 24, 1, 5, 8)) + np.random.default_rng(1).normal(size=(24, 1, 5, 8))
    result = synthetic.cka_result(np.repeat(once, 2, axis=2).reshape(2, 240, 8), draws=1)
    apart = result.assign_coords(template=("prompt", result["prompt"].values))
    setting, halves = Setting("mean", "last", "always", "s"), []
    for each in (result, apart):
        _, low, high = _within(Effects(Reading("a", "a", "cka", each, "s", "always"), setting)).number
        halves.append(high - low)
    assert halves[0] / halves[1] == pytest.approx(2**0.5, rel=0.1)


def test_too_few_word_ends_that_both_read_decide_nothing(synthetic):
    one, two = (synthetic.cka_result(each) for each in shared())
    fewer = two.isel(sample=slice(60), sample_other=slice(60))
    found = told(compare(synthetic, a=one, b=fewer), "a", "b")["between"]
    assert (found.verdict, found.reason) == ("undecided", "too few word ends that both read")


def test_twins_tell_what_is_the_architectures(synthetic):
    """What two models share is learnt where no pair of their untrained twins shares as much."""
    one, two = shared()
    results = {"a": synthetic.cka_result(one[:4]), "b": synthetic.cka_result(two[:4])}
    for seed in range(3):
        for name in ("a", "b"):
            apart = np.random.default_rng([seed, ord(name)]).normal(size=(4, N, 40))
            results[f"{name}~untrained-{seed}"] = synthetic.cka_result(apart)
    tree = xr.DataTree.from_dict({f"/{model}/cka": each for model, each in results.items()})
    dataset = CKAMap().compare(tree)
    assert told(dataset, "a", "b")["between"].learnt is True
    assert dataset["twin"].sel(finding="between|a|b", bound="value").notnull().sum() == 3
    results["b~untrained-1"], results["a~untrained-1"] = results["b"], results["a"]
    tree = xr.DataTree.from_dict({f"/{model}/cka": each for model, each in results.items()})
    assert told(CKAMap().compare(tree), "a", "b")["between"].learnt is False


def test_what_can_not_be_trimmed_or_has_one_layer_is_undecided_and_drawn(synthetic):
    bare = synthetic.cka_result(NOISE[:3, :, :8], NOISE[:3, :, :8] * 0)
    assert np.isnan(bare["cka"].sel(variant="trimmed")).all()
    dataset = compare(synthetic, a=bare, b=synthetic.cka_result(NOISE[:1, :, :8]))
    assert {finding.verdict for finding in CKAMap().findings(dataset)} == {"undecided"}
    assert "too narrow" in told(dataset)["within"].reason
    assert told(dataset, "b")["within"].reason == "one layer"
    assert CKAMap().plot(dataset).axes


def test_the_figure_shows_what_the_dataset_holds(synthetic):
    one, two = shared()
    dataset = compare(synthetic, a=synthetic.cka_result(one), b=synthetic.cka_result(two))
    within = dataset["cka"].sel(model="a", variant="trimmed")[:4, :4]
    dataset["cka_null_q95"].loc[{"variant": "trimmed"}] = within.median()
    dataset["between_null_q95"][:] = dataset["between"].median()
    figure = CKAMap().plot(dataset)
    drawn = (mesh for axes in figure.axes for mesh in axes.collections if mesh.get_gid())
    meshes = {mesh.get_gid(): mesh.get_array().ravel() for mesh in drawn}
    between = dataset["between"].sel(pair="a|b", layer=range(4), layer_other=range(6))
    for gid, cells in (("within-a", within), ("between-a|b", between)):  # a cross where no more than by chance
        (axes,) = (each for each in figure.axes if gid in {mesh.get_gid() for mesh in each.collections})
        crosses = {tuple(at) for line in axes.lines if line.get_marker() == "x" for at in line.get_xydata()}
        assert crosses == {*zip(*np.nonzero(cells.values <= float(cells.median())), strict=True)}
    np.testing.assert_allclose(meshes["between-a|b"], between.values.T.ravel())
    np.testing.assert_allclose(
        meshes["within-a"], dataset["cka"].sel(model="a", variant="trimmed")[:4, :4].values.ravel()
    )
    assert {"biased-a", "biased-b", "within-b"} <= set(meshes)
    pair = told(dataset, "a", "b")["between"]
    (written,) = (text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts)
    interval = f"{pair.value:.2f} [{pair.low:.2f}, {pair.high:.2f}]"
    assert written == f"CKA at equal depth {interval} chance {pair.control + 0.0:.2f}"


def test_layers_stand_beside_the_nearest_of_equal_depth():
    left, right = _equal_depths(np.linspace(0, 1, 6), np.linspace(0, 1, 3))
    assert left.tolist() == [0, 2, 5]
    assert right.tolist() == [0, 1, 2]


def test_a_block_is_a_run_of_which_any_two_are_alike():
    cka = np.eye(6)
    for a, b in ((0, 1), (2, 3), (3, 4), (2, 4), (4, 5)):  # 3 and 5 differ
        cka[a, b] = cka[b, a] = 0.95
    assert longest(cka, 0.9) == (2, 5)
    assert longest(np.eye(3), 0.9) == (0, 1)
