"""How long a job will take and how much memory: from headers and counts, before anything is loaded."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xatlas.config import MeasureConfig
from xatlas.errors import XatlasError
from xatlas.loading.model_files import read_json, tensor_shapes, weight_files
from xatlas.run.plan import Step
from xatlas.vocabulary import DTYPE_BYTES

#: What the engine may take besides the weights, in bytes.
WORKING_MEMORY = 1.5e9
#: Share of the matrix-multiply rate that a sweep reaches.
EFFICIENCY = 0.7
#: Characters that a token stands for, roughly, where no tokenizer is at hand.
CHARACTERS_PER_TOKEN = 3.5
#: Seconds that a condition costs per prompt, however small the model.
_OVERHEAD = 2e-4


@dataclass(frozen=True)
class Facts:
    """What the files of a model say.

    Parameters
    ----------
    n_parameters, n_embedding, n_layers, n_heads, n_kv_heads : int
        Counts; of all parameters and of those in embedding and unembedding, of layers, of query heads
        and of key/value groups.
    """

    n_parameters: int
    n_embedding: int
    n_layers: int
    n_heads: int
    n_kv_heads: int


@dataclass(frozen=True)
class Estimate:
    """What a step will cost.

    Parameters
    ----------
    minutes : float
        On this machine's processor.
    gigabytes : float
        Peak memory, weights included.
    """

    minutes: float
    gigabytes: float


def facts(folder: Path) -> Facts:
    """Read a model's size from its config and the headers of its weights; where there are none, from the config."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}

    def count(key: str, default: int = 1) -> int:
        value = config.get(key)
        return value if isinstance(value, int) and value > 0 else default

    heads = count("num_attention_heads")
    shapes = {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}
    shapes = shapes or _shapes_by_config(folder)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return Facts(
        n_parameters=sum(sizes.values()),
        n_embedding=sum(size for name, size in sizes.items() if "embed" in name or "lm_head" in name),
        n_layers=count("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=count("num_key_value_heads", heads),
    )


@cache
def _shapes_by_config(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a model whose weights are not here, by making it without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # whatever the class made of the config
        raise XatlasError(
            f"no model can be made of {folder / 'config.json'} ({type(error).__name__}: {error}); "
            f"fetch the model to plan with it."
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def estimate(step: Step, settings: MeasureConfig) -> Estimate:
    """Estimate one step.

    Parameters
    ----------
    step : Step
        What is to be measured.
    settings : MeasureConfig
        On what, and in which number format.

    Returns
    -------
    Estimate
        Within a factor of two or three; a CUDA device is many times faster.
    """
    known = facts(step.model.folder)
    characters = sum(len(prompt.text) + len(prompt.target or "") for prompt in settings.suite)
    tokens = characters / CHARACTERS_PER_TOKEN + len(settings.suite)
    if step.probe.at_readout:
        tokens = len(settings.suite)
    size = {"prompt": len(settings.suite), "layer": known.n_layers, "head": known.n_heads, "kv_group": known.n_kv_heads}
    conditions = step.probe.n_conditions(size, settings.draws)
    # A change in layer l is run through the layers from l on: half of them on average.
    forwards = 1 + conditions / 2
    flops = 2 * (known.n_parameters - known.n_embedding) * tokens * forwards
    weights = known.n_parameters * DTYPE_BYTES[settings.dtype]
    seconds = flops / (EFFICIENCY * _rate()) + _OVERHEAD * len(settings.suite) * conditions
    return Estimate(seconds / 60, (weights + WORKING_MEMORY) / 1e9)


@cache
def _rate() -> float:
    """Measure how many floating-point operations a second this processor multiplies matrices with."""
    import numpy as np

    a = np.ones((512, 512), dtype=np.float32)
    a @ a
    best = math.inf
    for _ in range(20):  # short and often: the best one was not disturbed by other processes
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best
