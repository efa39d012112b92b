"""The bridge to lm-evaluation-harness: its tasks on the loaded model, with its own metrics, stored beside ours."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, XatlasError, hookimpl
from xatlas.files import sha256
from xatlas.interventions import Zero

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel


log = logging.getLogger("xatlas")


class LmEval(Probe):
    """What lm-evaluation-harness measures on its own tasks, run on the loaded model.

    Definition: the harness's, task by task (``lm_eval``: names of tasks, or files or folders of task configs, which
    work without a network). ``value`` is a metric of a task as the harness gives it, ``stderr`` its standard error,
    NaN where the harness has none. ``limit`` takes the first so many documents of each task. With ``ablate_layers``,
    what these layers add to the stream is zero meanwhile.

    Unit: that of the metric, as a rule a share.

    Control: none is run: tasks state their own chance level.

    Source: Gao et al., lm-evaluation-harness, 10.5281/zenodo.10256836.
    """

    name = "lm_eval"
    version = 1
    measures_on = "tests"
    replicate = None
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "value": Variable(("metric",), "1", "value of the metric"),
        "stderr": Variable(("metric",), "1", "standard error of the metric"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What the harness is asked."""

        lm_eval: tuple[str, ...] = ()
        limit: int = 0  # documents of each task; 0: all
        batch: int = 8
        ablate_layers: tuple[int, ...] = ()

    def canonical_parameters(self) -> dict[str, Any]:
        """Return the parameters; a task's file or folder by its name and contents, and those of files that it names."""

        def held(name: str) -> str:
            digest = sha256(Path(each).read_bytes() for each in files_of(name))
            return f"{Path(name).name}:{digest[:12]}" if os.path.exists(name) else name

        return super().canonical_parameters() | {"lm_eval": list(map(held, self.parameters.lm_eval))}

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Run the tasks."""
        import numpy as np

        from xatlas.schema import cells, label

        asked = self.parameters
        if not asked.lm_eval:
            log.warning("lm_eval: no task is named, so nothing is run: give --lm-eval TASK,TASK, or a task's file.")
            empty = {"metric": np.array([], dtype=str), "task": ("metric", np.array([], dtype=str))}
            return label(self.variables, {"value": np.zeros(0), "stderr": np.zeros(0)}, empty)
        sites = [Site(layer, kind) for layer in asked.ablate_layers for kind in ("operator_out", "mlp_out")]
        for layer in asked.ablate_layers:
            model.point(Site(layer, "resid_post"))
        held = [Intervention(site, Zero()) for site in sites if model.has(site)]
        with model.intervene(held, seed=inputs.seed):
            results = evaluated(model, asked, inputs)
        rows = [
            (f"{task}: {name}", task, float(value), _number(metrics.get(name.replace(",", "_stderr,", 1))))
            for task, metrics in sorted(results.items())
            for name, value in sorted(metrics.items())
            if isinstance(value, int | float) and "_stderr" not in name and "," in name
        ]
        if not rows:
            raise XatlasError("the harness gave no number for these tasks.")
        names, tasks, values, errors = zip(*rows, strict=True)
        bare = [name for name, error in zip(names, errors, strict=True) if error != error]
        coords = {"metric": list(names), "task": ("metric", list(tasks))}
        absent = {f"stderr & {cells(metric=bare)}": "the harness gives none"} if bare else None
        return label(self.variables, {"value": list(values), "stderr": list(errors)}, coords, absent=absent)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def config_of(path: str) -> Any:
    """Return what a task's config holds; ``!function module.name`` as the name of the module's file."""
    import yaml

    loader: Any = type("Loader", (yaml.SafeLoader,), {})  # tags are made texts
    loader.add_multi_constructor("!", lambda _, __, node: f"{str(node.value).partition('.')[0]}.py")
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise XatlasError(f"the task config '{path}' can't be read: {error}".replace("\n", " ")) from None


def tasks_of(name: str) -> list[str]:
    """Return the names of the tasks that a config, or a folder's, defines; of what is neither, the name itself."""
    configs = sorted(glob.glob(os.path.join(name, "*.yaml"))) if os.path.isdir(name) else [name]
    held = [config_of(each) if os.path.isfile(each) else {"task": name} for each in configs]
    return [each["task"] for each in held if isinstance(each, dict) and isinstance(each.get("task"), str)]


def files_of(name: str) -> list[str]:
    """Return the files of a task: its config, or a folder's, and local files that these name, and so on."""
    left = sorted(str(each) for each in Path(name).rglob("*")) if os.path.isdir(name) else [name]
    found: dict[str, None] = {}
    while left:
        path = left.pop(0)
        if path in found or not os.path.isfile(path):
            continue
        found[path] = None
        for text in _texts(config_of(path)) if path.endswith((".yaml", ".yml")) else ():
            for folder in ("", os.path.dirname(path)):
                left += sorted(glob.glob(os.path.join(folder, text))) if len(text) < 256 else []
    return list(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def evaluated(model: HookedModel, asked: Any, inputs: Inputs) -> dict[str, Any]:
    """Return what the harness says of each task, on a model that is loaded already; kept task by task."""
    import numpy as np

    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise XatlasError(f"lm-evaluation-harness is not there ({error}): pip install 'xatlas-lm[lm-eval]'.") from None
    files = [name for name in asked.lm_eval if os.path.exists(name)]
    folders = sorted({name if os.path.isdir(name) else os.path.dirname(os.path.abspath(name)) for name in files})
    manager = TaskManager(include_path=folders or None)
    tasks = [task for name in asked.lm_eval for task in tasks_of(name)]
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise XatlasError(f"lm-evaluation-harness knows no task '{unknown[0]}'.")
    begins = model.tokenizer("a")["input_ids"][:1] == [model.tokenizer.bos_token_id]
    harnessed = HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        batch_size=asked.batch,
        add_bos_token=begins,  # as the tokenizer does of itself; the harness leaves it out by default
    )
    found: dict[str, Any] = {}
    for done, task in enumerate(tasks):
        inputs.progress("lm-eval", done, len(tasks))
        key = sha256(task.encode())[:20]
        kept = inputs.checkpoint.load(key)
        if kept is None:
            made = simple_evaluate(
                model=harnessed,
                tasks=[task],
                limit=asked.limit or None,
                task_manager=manager,
                bootstrap_iters=1000,
                log_samples=False,
            )
            kept = {
                "results": np.array(
                    json.dumps((made or {"results": {}})["results"], default=lambda each: each.tolist())
                )
            }
            inputs.checkpoint.save(key, kept)
        found |= json.loads(str(kept["results"]))
    inputs.progress("lm-eval", len(tasks), len(tasks))
    return found


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LmEval]
