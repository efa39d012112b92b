"""What the reading probes must say of any model, whatever its architecture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xatlas.contracts.adapter import Adapter, Part, Site
from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.attention_patterns import AttentionPatterns
from xatlas.plugins.direct_logit_attribution import DirectLogitAttribution
from xatlas.plugins.logit_lens import LogitLens
from xatlas.plugins.model_card import ModelCard
from xatlas.plugins.token_loss import TokenLoss
from xatlas.schema import notes, validate
from xatlas.suites import Suite


def measured(probe: Any, model: HookedModel, suite: Suite) -> Any:
    """Return what a probe measures, which keeps its contract."""
    dataset = probe.measure(model, suite, Inputs())
    validate(dataset, type(probe), model, suite)
    return dataset


def own_logits(model: HookedModel, prompt: Any) -> Any:
    """Return Hugging Face's own logits at the readout, in float64."""
    with torch.no_grad():
        return model.model(input_ids=model.tokens([prompt]), use_cache=False).logits[0, prompt.readout].double()


def assert_lens_ends_in_the_output(model: HookedModel, suite: Suite) -> Any:
    dataset = measured(LogitLens(), model, suite)
    last = dataset.sel(layer=model.n_layers - 1, site="resid_post")
    for row, prompt in enumerate(model.read(suite).prompts):
        logits = own_logits(model, prompt)
        own, found = logits.log_softmax(-1), last.isel(prompt=row)
        np.testing.assert_allclose(found.target_logprob, own[prompt.answer], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found.entropy, -(own.exp() * own).sum(), atol=1e-5, rtol=1e-5)
        assert found.target_rank == 1 + (logits > logits[prompt.answer]).sum()
        assert found.top_token.item() == model.reader.text_of(int(logits.argmax()))
        assert found.kl_to_final < 1e-5
        assert found.top_is_final == 1
    return dataset


def own_difference(model: HookedModel, prompt: Any) -> tuple[float, float]:
    """Return the model's own difference of logits; before the cap, where it has one."""
    logits = own_logits(model, prompt)
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    cap = next((getattr(model.model.config, name) for name in names if hasattr(model.model.config, name)), None)
    pair = logits[[prompt.answer, prompt.foil_answer]]
    if cap is not None:
        pair = cap * torch.atanh(pair / cap)
    return float(pair[0] - pair[1]), float(pair.abs().max())


def assert_attributions_sum(model: HookedModel, suite: Suite) -> Any:
    """Writes and embedding sum to the logit difference, heads and the projection's bias to the operator."""
    dataset = measured(DirectLogitAttribution(), model, suite)
    total = dataset.embedding + dataset.attribution.sum(["layer", "component"])
    size = abs(dataset.attribution).sum(["layer", "component"]) + abs(dataset.embedding)
    for row, prompt in enumerate(model.read(suite).prompts):
        own, largest = own_difference(model, prompt)
        assert abs(float(total[row]) - own) <= 1e-4 * max(abs(own), float(size[row]), largest)
    reasons = notes(dataset, "absent")
    for layer in range(model.n_layers):
        heads = dataset.attribution_head.sel(layer=layer)
        path = model.adapter.output_projection(layer)
        if heads.isnull().all():
            behind = type(model.adapter).written is not Adapter.written
            assert path is None or model.head_layouts[layer] is None or behind
            assert reasons[f"attribution_head & layer={layer}"]
        elif model.adapter.module(path).bias is None and not model.point(Site(layer, "operator_out")).beside:
            written = dataset.attribution.sel(layer=layer, component="operator")
            np.testing.assert_allclose(heads.sum("head"), written, atol=1e-4, rtol=1e-4)
    return dataset


def assert_patterns_are_the_models_own(model: HookedModel, suite: Suite) -> Any:
    """Prompt by prompt, layer by layer, head by head; NaN with a reason where there are none."""
    dataset, absent = measured(AttentionPatterns(), model, suite), 0
    for row, prompt in enumerate(model.read(suite).prompts):
        patterns = model.capture(model.tokens([prompt]), model.sites("attention_pattern"))
        queries = np.arange(2, len(prompt.ids))
        for layer in range(model.n_layers):
            own, site = dataset.isel(prompt=row).sel(layer=layer), Site(layer, "attention_pattern")
            if site not in patterns:
                assert own.to_array().isnull().all()
                absent += 1
                continue
            pattern = patterns[site][0].double().numpy()  # (head, query, key)
            own = own.isel(head=slice(len(pattern)))
            assert (pattern.sum(-1) <= 1 + 1e-5).all()  # a sink may take the rest
            window = model.adapter.window(layer)
            weights = pattern[:, queries]
            if window is None or window >= len(prompt.ids):
                np.testing.assert_allclose(own["first_weight"], weights[:, :, 0].mean(-1), rtol=1e-5)
            np.testing.assert_allclose(
                own["previous_score"], weights[:, np.arange(len(queries)), queries - 1].mean(-1), rtol=1e-5
            )
            np.testing.assert_allclose(own["entropy"], -(weights * np.log(weights + 1e-30)).sum(-1).mean(-1), rtol=1e-4)
            away = queries[:, None] - np.arange(len(prompt.ids))
            np.testing.assert_allclose(own["distance"], (weights * away).sum(-1).mean(-1), rtol=1e-5)
    assert not absent or notes(dataset, "absent")
    return dataset


def assert_loss_is_hugging_faces_own(model: HookedModel, suite: Suite) -> Any:
    dataset = measured(TokenLoss(), model, suite)
    for row, prompt in enumerate(model.read(suite).prompts):
        ids = torch.tensor([prompt.ids[: prompt.n_text]])  # what is run of the target is not scored
        loss = float(model.model(input_ids=ids, labels=ids).loss)
        np.testing.assert_allclose(dataset["nll"][row], loss, rtol=1e-5)
        bits = loss * (prompt.n_text - 1) / np.log(2) / len(prompt.prompt.text.encode())
        np.testing.assert_allclose(dataset["bits_per_byte"][row], bits, rtol=1e-5)
    return dataset


def assert_card_counts_every_parameter(model: HookedModel, suite: Suite) -> Any:
    card, hf = measured(ModelCard(), model, suite), model.model
    total = sum(each.numel() for each in hf.parameters())
    assert card["total"] == total
    assert float(card["parameters"].sum() + card["outside"].sum()) == total
    np.testing.assert_array_equal(card["bytes"].sel(dtype=["float32", "bfloat16"]), [4 * total, 2 * total])
    counted: set[int] = set()  # weights that layers share are the first one's
    for layer in range(model.n_layers):
        own = {id(each): each for each in model.adapter.layer(layer).parameters() if id(each) not in counted}
        counted |= own.keys()
        assert card["parameters"].sel(layer=layer).sum() == sum(each.numel() for each in own.values())
        layout = model.head_layouts[layer]
        heads = [np.nan, np.nan] if layout is None else [layout.n_heads, layout.n_kv_heads]
        np.testing.assert_array_equal([card[name].sel(layer=layer) for name in ("n_heads", "n_kv_heads")], heads)
        for role, place in model.adapter.roles(layer).items():  # a bias counts with its weight
            count = sum(each.numel() for each in model.adapter.role_module(place).parameters() if id(each) in own)
            if isinstance(place, Part):
                width = model.adapter.outputs(place)
                count = count // width * len(place.outputs(width))
            assert np.nan_to_num(card["parameters"].sel(layer=layer, role=role)) == count
    return card
