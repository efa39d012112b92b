"""Figures fit their canvas: with one model and with many, whatever they are called."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from looking import boxes, drawn_ticks, look, marks
from matplotlib.text import Text

from xatlas.comparisons.attention_profile import AttentionProfile
from xatlas.comparisons.card import Card
from xatlas.comparisons.cka_map import CKAMap
from xatlas.comparisons.conv_profile import ConvProfile
from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.kernel_profile import KernelProfile
from xatlas.comparisons.lens_profile import LensProfile
from xatlas.comparisons.loss_profile import LossProfile
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.comparisons.norm_profile import NormProfile
from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.comparisons.report import arrange
from xatlas.comparisons.steering_profile import SteeringProfile

ALL = [
    Hub,
    MlpRatio,
    EarlyLate,
    HeadSpecialisation,
    ConvProfile,
    PatchingProfile,
    SteeringProfile,
    NormProfile,
    LossProfile,
    Card,
    CKAMap,
    AttentionProfile,
    KernelProfile,
    LensProfile,
]
#: Those whose figures test_legible.py draws for one model and for many.
LEGIBLE = ALL[:7]
LONG = "HuggingFaceTB--SmolLM2-135M-Instruct-quantised-to-4-bits@main+my-lora-{}$0123${}abcd"
DEEP = ["conv", "attention"] * 16


def results(synthetic, kind, seed):
    types = DEEP if seed % 2 else DEEP[:10]
    if kind is ConvProfile:
        return synthetic.conv_results(seed=seed, types=types, kernel=4)
    if kind is KernelProfile:
        return synthetic.kernel_results(types, seed=seed, kernel=4)
    if kind is AttentionProfile:
        return {"attention_patterns": synthetic.attention_result(types, 16, induction=[(3, 2, 0.8)], seed=seed)}
    if kind is PatchingProfile:
        return {"activation_patching": synthetic.patching_result(types, 3, seed=seed)}
    if kind is LensProfile:
        return {"logit_lens": synthetic.lens_result(6, types=types, seed=seed, wrong=48 if seed == 4 else 9)}
    if kind is SteeringProfile:
        strengths = (-1.0, -0.25, 0.1, 0.25, 0.5, 1.0)
        return {"steering": synthetic.steering_result(growth=1.2, seed=seed, strengths=strengths)}
    if kind is NormProfile:
        growth = np.full(len(types), 1.1)
        growth[3 + seed % 4] = 4
        return {"residual_norms": synthetic.norm_result(growth, growth**1.5, seed=seed)}
    if kind is Card:
        return {"model_card": synthetic.card_result(types)}
    if kind is LossProfile:
        return {"token_loss": synthetic.loss_result(np.linspace(0.5, 3, 6), seed=seed)}
    if kind is CKAMap:
        streams = np.random.default_rng(seed).normal(size=(min(len(types), 16 if seed < 2 else 5), 240, 48)).cumsum(0)
        return {"cka": synthetic.cka_result(streams)}
    if kind is HeadSpecialisation:
        return {"head_ablation": synthetic.head_result(types, 16, seed=seed)}
    return {"layer_ablation": synthetic.layer_result(types, seed=seed)}


def datasets(synthetic, kind, names):
    held = [results(synthetic, kind, seed) for seed in range(len(names))]
    dataset = kind().compare(synthetic.tree_of(**{f"m{i}": result for i, result in enumerate(held)}))
    coords = {name: list(names) for name in ("model", "model_other") if name in dataset.coords}
    called = dict(zip(map(str, dataset["model"].values), names, strict=True))
    if "pair" in dataset:
        coords["pair"] = ["|".join(called[name] for name in pair.split("|")) for pair in dataset["pair"].values]
    for name in ("finding_model", "finding_model_other"):
        if name in dataset:
            dataset[name] = ("finding", [called.get(str(model), "") for model in dataset[name].values])
    return dataset.assign_coords(coords)


@pytest.mark.parametrize(
    ("kind", "count"),
    [(kind, 3) for kind in ALL]
    # test_legible.py holds those that it names to one model and to many
    + [pytest.param(kind, count, marks=pytest.mark.slow) for kind in ALL[len(LEGIBLE) :] for count in (1, 8)],
)
def test_no_text_leaves_the_canvas_or_lies_on_another(synthetic, kind, count):
    short = ["lfm2-mini", "qwen-mini", "smollm2-mini"]
    names = short if count == 3 else [LONG.format(i, i) for i in range(count)]
    dataset = datasets(synthetic, kind, names)
    if count != 3:
        dataset.attrs["suite"] = "; ".join([dataset.attrs["suite"]] * 2)
    figure = kind().plot(dataset)
    arrange(figure)
    drawn_ticks(figure)
    drawn = marks([line for axes in figure.axes for line in axes.lines])
    assert drawn <= marks([line for legend in figure.legends for line in legend.get_lines()])
    entries = [line for legend in figure.legends for line in legend.get_lines()]
    looks = [look(line) for line in entries if {line.get_marker(), line.get_linestyle()} != {"None"}]
    assert len(set(looks)) == len(looks)
    found = boxes(figure)
    width, height = figure.canvas.get_width_height()
    outside = [
        (text, box)
        for (text, _), box in found.items()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    assert not outside
    over = [
        (one[0], other[0])
        for (one, a), (other, b) in itertools.combinations(found.items(), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    assert not over
    shown = "".join(text for artist in figure.findobj(Text) for text in artist.get_text().split()).replace("\\", "")
    assert all(name in shown for name in names[: 4 if kind is SteeringProfile else None])
    assert np.all(figure.get_size_inches() < 40)
