"""One fine-tuning run by name: a model, data, and where LoRA weights go; what it did on held-out prompts."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xatlas import api
from xatlas.config import MeasureConfig
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.files import write_atomic
from xatlas.loading.model_files import LORA_WEIGHTS
from xatlas.loading.model_names import resolve
from xatlas.model import HookedModel
from xatlas.plugins.training.data import named_by_contents, needed, of_prompts, split
from xatlas.plugins.training.measure import HeldOut
from xatlas.plugins.training.targets import Targets, described, layer_effects, picked, target_modules
from xatlas.plugins.training.trainer import METHODS, Method, Progress, Run, lora, train
from xatlas.text import say_on_stderr

#: What a run was, beside its weights; and its checkpoints, until it is done.
SETTINGS, CHECKPOINTS = "xatlas.json", "checkpoints"
#: Seconds between two lines that say how far a run is.
QUIET = 5.0


@dataclass(frozen=True)
class FineTuned:
    """A finished run."""

    name: str  # by which the tuned model is loaded: MODEL+DIR
    modules: int
    parameters: int
    rows: list[dict[str, Any]]  # what held-out prompts say, before and after, one for each family


def finetune(
    name: str | os.PathLike[str],
    out: str | Path,
    *,
    method: Method = "sft",
    roles: Sequence[str] = ("all",),
    layers: Sequence[int] | Literal["all", "hub"] = "all",
    data: str = "transfer",
    rank: int = 8,
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch: int = 8,
    progress: Callable[[str], None] = say_on_stderr,
    **config: Any,
) -> FineTuned:
    """Train LoRA weights on a model, and save them in a folder.

    Interrupted, the same call goes on from the last checkpoint, and ends as if it had not been.

    Parameters
    ----------
    name : str or path
        A model, as :func:`xatlas.load` takes it.
    out : path
        Folder for the weights. ``NAME+OUT`` loads the tuned model here; peft loads the folder, too.
    method : {'sft', 'qlora', 'dpo', 'grpo'}
        Supervised fine-tuning; the same on weights in four bits; preferences; reward by the suite's check.
    roles : sequence of str
        Roles of the modules: ``mlp``, ``attention.out``, ``out``, ``all``.
    layers : sequence of int, 'all' or 'hub'
        ``hub``: the third of the layers that matter most on the reference suite.
    data : str
        Families of the transfer suites, ``transfer`` for all of them, a JSONL file, or a data set on the hub.
    rank, steps, learning_rate, batch : number
        ``batch`` is in examples, of GRPO in prompts.
    progress : callable
        Called with lines of text.
    **config
        How the model is loaded, ``seed``, the ``suite`` of other prompts and the ``reference``: see
        :class:`xatlas.config.MeasureConfig`.

    Raises
    ------
    XatlasError
        A package of the extra ``train`` is missing, a role matches nothing, the data don't fit, the loss is not finite,
        or the folder holds another run.
    """
    settings, folder = MeasureConfig.make(**config), Path(out)
    if method not in METHODS:
        raise XatlasError(f"unknown method '{method}'. Valid: {', '.join(METHODS)}.")
    for package in ("trl", "datasets", *(["bitsandbytes"] if method == "qlora" else [])):
        needed(package)
    run = Run(method, rank, None, learning_rate, steps, batch, settings.seed)
    found = resolve(os.fspath(name))
    if found.lora is not None or found.untrained is not None:
        raise XatlasError(f"'{name}' is no model of its own: name the one that its weights are of, without '+' or '~'.")
    of_model = {key: value for key, value in config.items() if key not in ("suite", "reference", "draws", "seed")}
    model = api.load(name, **of_model)
    targets = _targets(model, roles, layers, settings)
    taught, own = split(model, data)
    about = {"model": found.identity, "run": asdict(run), "modules": targets.modules, "data": named_by_contents(data)}
    place = _begin(folder, json.loads(json.dumps(about)))
    progress(f"{method} of {described(model, targets, rank)}; {len(taught)} examples, {len(own)} held out")
    trained = {example.family for example in own}
    others = [example for example in of_prompts(model, settings.suite) if example.family not in trained]
    held = HeldOut(model, [*own, *others])
    before = held.measure(model)
    every = max(1, min(100, steps // 4))
    with lora(model, targets, run) as tuned:
        train(tuned, taught, run, folder=place, every=every, progress=_lines(progress))
        after = held.measure(tuned.model)
        tuned.peft.save_pretrained(str(folder))
    shutil.rmtree(place, ignore_errors=True)
    rows: list[dict[str, Any]] = [{"family": family, "trained": family in trained} for family in held.families]
    for when, measured in (("before", before), ("after", after)):
        for row, *values in zip(rows, *measured.values(), strict=True):
            row.update({f"{name} {when}": float(value) for name, value in zip(measured, values, strict=True)})
    return FineTuned(f"{name}+{folder}", tuned.modules, tuned.parameters, rows)


def _targets(model: HookedModel, roles: Sequence[str], layers: Sequence[int] | str, settings: MeasureConfig) -> Targets:
    if isinstance(layers, str) and layers not in ("all", "hub"):
        raise XatlasError(f"layers '{layers}' don't fit: give numbers, hub or all.")
    if layers == "hub":
        layers = picked(layer_effects(model, Inputs(reference=settings.reference, seed=settings.seed)))
    return target_modules(model, roles, None if isinstance(layers, str) else layers)


def _begin(folder: Path, about: dict[str, Any]) -> Path:
    """Return the folder of a run's checkpoints; what it was stands beside, so that no other run goes on from them."""
    file, place = folder / SETTINGS, folder / CHECKPOINTS
    held = None
    if file.is_file():
        try:
            held = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            held = {}
    if held != about and ((folder / LORA_WEIGHTS).exists() or any(place.glob("checkpoint-*"))):
        raise XatlasError(f"{folder} holds another run: choose another folder, or remove it.")
    if folder.exists() and not folder.is_dir():
        raise XatlasError(f"{folder} is not a folder: choose another one with --out.")
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(about, indent=1).encode())
    return place


def _lines(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Return what says how far a run is: now and then, and at its end."""
    said = [time.perf_counter()]

    def tell(now: Progress) -> None:
        if now.step == now.steps or time.perf_counter() - said[0] >= QUIET:
            said[0] = time.perf_counter()
            say(str(now))

    return tell
