"""What a plan costs: what the engine will do is counted on the model without its weights, and one layer is timed."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from xatlas import manager
from xatlas.config import MeasureConfig, settings
from xatlas.engine.schedule import Budget, work
from xatlas.errors import XatlasError
from xatlas.interventions import means_needed
from xatlas.loading.loader import auto_class, load_tokenizer, pick_device, quiet_transformers
from xatlas.loading.model_files import missing_parts
from xatlas.loading.model_names import Resolved
from xatlas.manager import calling
from xatlas.metrics import KL, TokenLogits
from xatlas.model import HookedModel
from xatlas.probing.means import NOISE_PROMPTS, mean_batches, streams_needed
from xatlas.prompts.reader import TokenPrompt, TokenSuite
from xatlas.run.plan import Plan, Step
from xatlas.suites import Suite
from xatlas.text import first_line
from xatlas.vocabulary import DTYPE_BYTES

log = logging.getLogger("xatlas")

WORKING_MEMORY = 1.5e9  # bytes that the engine may take besides the weights
CHARACTERS_PER_TOKEN = 3.5  # roughly, where no tokenizer is at hand
VISIT = 3e-4  # seconds that a condition costs in a bucket, however small the model
ROWS = 64  # positions that are unembedded at a time, in the timing


@dataclass(frozen=True)
class Speed:
    """What this machine takes for one model, in seconds."""

    call: Mapping[str, float]  # operator type → to call one layer, on however few tokens
    token: Mapping[str, float]  # operator type → for each token besides
    row: float  # to unembed one position and take its KL


def estimate(step: Step, config: MeasureConfig) -> tuple[float, float]:
    """Return about how many minutes on this machine, and GB at the peak, a step will take; the model isn't loaded.

    Minutes of training are not estimated: they are NaN.
    """
    texts = [each.name for each in settings("of_model") if each.metadata["of_model"] == "texts"]
    model = outline(step.model, **{name: getattr(config, name) for name in texts})
    weights = sum(weight.numel() for weight in model.model.parameters())
    gigabytes = (weights * DTYPE_BYTES[config.dtype] + WORKING_MEMORY) / 1e9
    with calling(type(step.probe)):
        if step.probe.training_runs():
            return math.nan, gigabytes
        conditions, metrics = step.probe.planned(model, config.suite, config.draws)
    prompts = _read(model, config.suite)
    done = work(model, prompts, conditions, metrics)
    tokens, calls, rows = done.tokens, done.calls, done.rows
    if conditions:  # the noise floor: each prompt is run once alone, and once as three
        some = sum(4 * len(prompt.ids) for prompt in prompts[:NOISE_PROMPTS])
        tokens, calls, rows = tokens + some, calls + 2 * len(prompts[:NOISE_PROMPTS]), rows + some
    if config.reference is not None and (means_needed(conditions) or streams_needed(model, conditions)):
        batches = mean_batches(TokenSuite(tuple(_read(model, config.reference))))
        tokens = tokens + sum(len(prompt.ids) for batch in batches for prompt in batch)
        calls = calls + len(batches)
    length = sorted(len(prompt.ids) for prompt in prompts)[len(prompts) // 2]
    speed = measured_speed(step.model, pick_device(config.device), config.dtype, step.job.attention, length)
    seconds = rows * speed.row + done.visits * VISIT
    for layer, kind in enumerate(model.operator_types):
        seconds += calls[layer] * speed.call[kind] + tokens[layer] * speed.token[kind]
    return float(seconds) / 60, gigabytes


def training(steps: Iterable[Step]) -> str:
    """Say how many runs are trained, whose time no estimate holds; nothing where there are none."""
    runs = []
    for step in steps:
        with calling(type(step.probe)):
            runs += [found] if (found := step.probe.training_runs()) else []
    count, length = (sum(each) for each in zip(*runs, strict=True)) if runs else (0, 0)
    return f"{count:,} training runs ({length:,} steps), not estimated" if runs else ""


def shortened(plan: Plan, minutes: float, done: Callable[[Step], bool]) -> Plan:
    """Return the plan on as many templates of each family as fit, one at least; what is ``done`` costs nothing."""
    if not (math.isfinite(minutes) and minutes > 0):
        raise XatlasError(f"minutes = {minutes:g} does not fit: it takes a number above 0.")
    whole, most = plan, plan.config.suite.most_templates
    fewer = [2**power for power in range(most.bit_length()) if 2**power < most]  # of which all is used again
    while True:
        total = float(np.nansum([0.0 if done(step) else estimate(step, plan.config)[0] for step in plan.steps]))
        if total <= minutes or not fewer:
            break
        suite = whole.config.suite.first_templates(fewer.pop())
        plan = replace(whole, config=replace(whole.config, suite=suite))
    if runs := training(step for step in plan.steps if not done(step)):
        log.warning("the %g minutes are without %s.", minutes, runs)
    if total > minutes:
        log.warning(
            "one template of each family takes about %.2g minutes, not %g: it is done all the same.", total, minutes
        )
    return plan


@cache
def outline(model: Resolved, **texts: Any) -> HookedModel:
    """Return a model without weights, and without a tokenizer where none is here; ``texts`` are how it reads them."""
    with quiet_transformers():
        tokenizer = None if missing_parts(model.folder, weighted=False) else load_tokenizer(model)
    return shapes(model, tokenizer, **texts)


def shapes(model: Resolved, tokenizer: Any = None, **texts: Any) -> HookedModel:
    """Return a model whose weights have shapes, and no values."""
    made = _from_config(model, torch.float32, "eager")  # which every class has
    with calling(manager.adapters().get(model.architecture)):
        return HookedModel(made, tokenizer, slug=model.slug, prove=False, **texts)


def _from_config(model: Resolved, dtype: torch.dtype, attention: str, layers: int | None = None) -> Any:
    """Make a model, or its first ``layers``, by the config alone, on the device that has no memory."""
    from transformers import AutoConfig

    try:
        with quiet_transformers(), torch.device("meta"):
            config = copy.deepcopy(AutoConfig.from_pretrained(model.folder, local_files_only=True))
            text = config.get_text_config()
            if layers is not None:
                text.num_hidden_layers = layers
                if getattr(text, "layer_types", None):
                    text.layer_types = text.layer_types[:layers]
            return auto_class(config).from_config(config, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # whatever the class made of the config
        raise XatlasError(f"no model can be made of {model.folder / 'config.json'} ({first_line(error)})") from error


def _read(model: HookedModel, suite: Suite) -> list[TokenPrompt]:
    """Tokenise a suite; where no tokenizer is here, tokens are so many as the length of a text lets one expect."""
    if model.reader is not None:
        return list(model.read(suite).prompts)

    lengths = [1 + max(1, round(len(prompt.text) / CHARACTERS_PER_TOKEN)) for prompt in suite]
    return [TokenPrompt(p, (0,) * n, n, n - 1, 0, 0, (0,), ()) for p, n in zip(suite, lengths, strict=True)]


@cache
def measured_speed(named: Resolved, device: str, dtype: str, attention: str, length: int) -> Speed:
    """Time one layer of each operator type, and the unembedding, on weights of the model's shapes."""
    whole = outline(named)
    first = {kind: whole.operator_types.index(kind) for kind in whole.operator_types}
    few = _from_config(named, getattr(torch, dtype), attention, max(first.values()) + 1).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*few.parameters(), *few.buffers()):  # what stands in them takes no other time
            tensor.fill_(0.02)
    with calling(manager.adapters().get(named.architecture)):
        model = HookedModel(few, None, prove=False)
    model.overwritten = ()  # no copies
    rows = max(2, Budget.for_device(torch.device(device)).tile_tokens // length)
    with torch.inference_mode():
        clean = model.record(torch.zeros(rows, length, dtype=torch.long, device=device))
        hidden = clean.final.reshape(-1, model.d_model)[:ROWS]
        labels = torch.zeros(len(hidden), dtype=torch.long, device=device)
        before = model.logits(hidden)

        def read() -> None:
            KL().per_token(TokenLogits(before, model.logits(hidden)[None], labels, labels, labels))

        def seconds(layer: int, rows: int) -> float:
            call = partial(model.run_layer, layer, clean.inputs[layer][:rows], clean.calls[layer])
            # in between, other weights go through the caches, as they do in a walk
            return _best(call, device, lambda: model.logits(hidden[:1]))

        token, call = {}, {}
        for kind, layer in first.items():
            few_tokens, many_tokens = seconds(layer, 1), seconds(layer, rows)
            token[kind] = max(0.0, many_tokens - few_tokens) / ((rows - 1) * length)
            call[kind] = max(0.0, few_tokens - token[kind] * length)
        return Speed(call, token, _best(read, device) / len(hidden))


def _best(function: Callable[[], Any], device: str, before: Callable[[], Any] = lambda: None) -> float:
    """Return the seconds of the fastest of a few calls: that one was disturbed least by other processes."""
    times = []
    for _ in range(3):
        before()
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
