"""What the command line does, from Python: ``load``, ``plan``, ``measure``, ``compare`` and ``open``."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.config import MeasureConfig, takes_settings
from xatlas.contracts.probe import Inputs, Requirement
from xatlas.errors import XatlasError
from xatlas.loading.model_names import Fetch, Resolved, resolve
from xatlas.results.atlas import open_atlas
from xatlas.results.store import Store
from xatlas.run.compare import compare as compare_planned, of_shapes
from xatlas.run.plan import Plan, part_parameters, pick_comparisons
from xatlas.run.reporting import ComparisonResult, Report, ReporterChoice, reporting
from xatlas.run.runner import load_model, measure_in_memory, run
from xatlas.text import split_names
from xatlas.twins import TWIN_SEEDS
from xatlas.vocabulary import check_setting

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel

#: Folders inside the one given with ``out``.
ATLAS, FIGURES = "atlas", "figures"

Name = str | os.PathLike[str]

open = open_atlas
log = logging.getLogger("xatlas")


def _names(given: Name | Iterable[Name]) -> list[str]:
    """Return names as a list; one text is taken for a comma-separated list."""
    if isinstance(given, str):
        return split_names(given)
    names = [given] if isinstance(given, os.PathLike) else list(given)
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise XatlasError(f"{name!r} is no name: give texts, or paths.")
    return [os.fspath(name) for name in names]


def resolve_all(names: Sequence[str], *, fetch: Fetch = "all") -> list[Resolved]:
    """Resolve names; a model named twice is taken once, and two that are filed under one slug are refused."""
    if not names:
        raise XatlasError("name at least one model; 'xatlas models' lists those with a short name.")
    found: dict[str, Resolved] = {}
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            log.warning("'%s' is named %d times: it is taken once.", name, names.count(name))
        model = resolve(name, fetch=fetch)
        twin = next((each for each in found.values() if each.identity == model.identity), None)
        if twin and twin.slug != model.slug and model.weights_hash:
            log.warning("'%s' and '%s' are one model under two names: what they share shows nothing.", twin.name, name)
        other = found.setdefault(model.slug, model)
        if other is not model:
            raise XatlasError(f"'{other.name}' and '{model.name}' are the same model: name it once.")
    return list(found.values())


def _twins(models: Iterable[Resolved], null: str | None, fetch: Fetch) -> list[Resolved]:
    """Resolve the untrained twins of trained models, but those that are named themselves."""
    if null is None:
        return []
    check_setting("null", null)
    named = {model.slug: model for model in models}
    found: dict[str, Resolved] = {}
    for model in named.values():
        if model.lora is not None:
            raise XatlasError(
                f"'{model.name}' has no untrained twin, for LoRA weights come of training: leave out null."
            )
        for seed in TWIN_SEEDS if model.untrained is None else ():
            twin = resolve(f"{model.name}~{null}:{seed}", fetch=fetch)
            found[twin.slug] = twin
    return [twin for slug, twin in found.items() if slug not in named]


def store_in(out: str | Path) -> Store:
    """Return the atlas in the folder ``out``."""
    if os.path.exists(out) and not os.path.isdir(out):
        raise XatlasError(f"{out} is not a folder: choose another one with --out.")
    return Store(Path(out) / ATLAS)


@takes_settings("of_model")
def load(name: Name, **settings: Any) -> HookedModel:
    """Load a model by name or path, with its hook points proved.

    Parameters
    ----------
    name : str or path
        An alias (``xatlas models`` lists them), a hub id, a folder or a GGUF file.
    **settings
        How the model is loaded and reads texts: see :class:`xatlas.config.MeasureConfig`.

    Raises
    ------
    XatlasError
        The model can't be found or loaded, no adapter fits it, or a check of its hook points fails.
    """
    inspect.signature(load).bind(name, **settings)  # refuses what is no setting
    return load_model(resolve(os.fspath(name)), settings)


@takes_settings("of_model")
def lens(model: Name | HookedModel, text: str, *, target: str | None = None, **settings: Any) -> xr.Dataset:
    """Return what a model would say after each layer, at every token of a text: the logit lens.

    Parameters
    ----------
    model : str, path or HookedModel
    text : str
        What the model reads.
    target : str, optional
        One token that may follow the text, whose rank and probability are wanted.
    **settings
        As in :func:`load`; none for a loaded model.

    Returns
    -------
    Dataset
        ``top_token``, ``top_probability``, ``entropy``, ``kl_to_final (site, position)``; with a target
        ``target_probability`` and ``target_rank``, too.

    Raises
    ------
    XatlasError
        The text is empty, the target is not one token, or the model can't be loaded.
    """
    from xatlas import views

    return views.lens(_reading(text, model, settings), text, target)


@takes_settings("of_model")
def attention(model: Name | HookedModel, text: str, layer: int, **settings: Any) -> xr.Dataset:
    """Return where each head of a layer looks, token by token of a text.

    Parameters
    ----------
    model : str, path or HookedModel
    text : str
        What the model reads.
    layer : int
        From 0.
    **settings
        As in :func:`load`; none for a loaded model.

    Returns
    -------
    Dataset
        ``pattern (head, query, key)``; ``entropy``, ``distance``, ``first_weight``, ``previous_score (head)``.

    Raises
    ------
    XatlasError
        The text is empty or too long, the layer is none or has no attention, or the model can't be loaded.
    """
    from xatlas import views

    return views.attention(_reading(text, model, settings), text, layer)


def _reading(text: str, model: Name | HookedModel, settings: dict[str, Any]) -> HookedModel:
    """Return a model that is to read a text, loaded with these settings, or before."""
    if not text:
        raise XatlasError("the text is empty: write what the model is to read.")
    if isinstance(model, str | os.PathLike):
        return load(model, **settings)
    if settings:
        raise XatlasError(f"the loaded model has its settings already: leave out {', '.join(settings)}.")
    return model


@takes_settings()
def measure(
    model: Name | HookedModel,
    probe: str,
    *,
    parameters: dict[str, Any] | None = None,
    minutes: float | None = None,
    out: str | Path = ".",
    reporter: ReporterChoice = "auto",
    refresh: bool = False,
    **settings: Any,
) -> xr.Dataset:
    """Measure one model with one probe; a result that the atlas holds is read from it.

    Parameters
    ----------
    model : str, path or HookedModel
        A name or path; or a loaded model, of which nothing is stored, for probes that don't train.
    probe, parameters : str and dict
        Name of the probe; its parameters that differ from the defaults.
    minutes : float, optional
        Measure on so many of each family's templates as take about that long on this machine, one at least. What is
        measured later on more of them takes over what is there.
    out : path
        Folder that holds ``atlas/``.
    reporter : Reporter, "auto", "console" or None
        Receives progress callbacks; by default a bar on a terminal or in a notebook; None: nothing is shown.
    refresh : bool
        Measure again what the atlas holds.
    **settings
        Fields of :class:`xatlas.config.MeasureConfig`; ``suite`` and ``reference`` take a Suite, a name or a path.
        A loaded model has some already: others are refused.

    Returns
    -------
    Dataset
        As the probe declares it.

    Raises
    ------
    XatlasError
        A name is unknown, or the measurement failed.
    """
    chosen = MeasureConfig.make(parameters={probe: dict(parameters or {})}, **settings)
    if not isinstance(model, str | os.PathLike):
        held = model.settings
        for name, value in settings.items():
            if name in held and value not in (held[name], *(("auto", model.device.type) if name == "device" else ())):
                advice = f"leave {name} out, or load the model with it."
                raise XatlasError(f"the loaded model has {name} = {held[name]}, not {value}: {advice}")
        if minutes is not None:
            raise XatlasError("minutes need a model by name: give a loaded one the suite as 'quick[2]', for instance.")
        found = manager.pick("probe", probe, manager.probes())(**chosen.parameters[probe])
        if found.mutates:
            raise XatlasError(f"{probe} trains the model that it is given: name the model, and it is loaded for that.")
        with reporting(reporter) as shown:
            inputs = Inputs(reference=chosen.reference, seed=chosen.seed, draws=chosen.draws, progress=shown.progress)
            return measure_in_memory(found, model, chosen.suite, inputs, shown)
    store = store_in(out)
    planned = _within(minutes, Plan([resolve(os.fspath(model))], chosen, probes=[probe]), None if refresh else store)
    report = run(planned, store, reporter, refresh=refresh)
    if report.failures:
        raise XatlasError(str(report.failures[0]))
    return store.read(planned.answer(planned.models[0], Requirement(probe)).job)


@takes_settings()
def plan(
    models: Name | Iterable[Name],
    *,
    comparisons: str | Iterable[str] | None = None,
    probes: str | Iterable[str] = (),
    parameters: dict[str, dict[str, Any]] | None = None,
    null: str | None = None,
    minutes: float | None = None,
    store: Store | None = None,
    fetch: Fetch = "all",
    **settings: Any,
) -> Plan:
    """Return what :func:`compare` would measure, with the same parameters; nothing is loaded.

    With ``fetch="config"`` only the config is fetched of a model that is not there. What ``store`` holds takes none of
    the ``minutes``.
    """
    names = pick_comparisons(None if comparisons is None else _names(comparisons))
    of_probes, of_comparisons = part_parameters(parameters or {}, names)
    chosen = MeasureConfig.make(parameters=of_probes, **settings)
    made = [manager.comparisons()[name](**of_comparisons.get(name, {})) for name in names]
    found = resolve_all(_names(models), fetch=fetch)
    return _within(minutes, Plan(found, chosen, made, _names(probes), _twins(found, null, fetch)), store)


def _within(minutes: float | None, planned: Plan, store: Store | None) -> Plan:
    """Return the plan on as many templates of each family as fit the minutes; None: all of them."""
    if minutes is None:
        return planned
    from xatlas.run.cost import shortened

    return shortened(planned, minutes, lambda step: store is not None and store.state(step.job) == "done")


@takes_settings()
def compare(
    models: Name | Iterable[Name],
    *,
    comparisons: str | Iterable[str] | None = None,
    probes: str | Iterable[str] = (),
    parameters: dict[str, dict[str, Any]] | None = None,
    null: str | None = None,
    minutes: float | None = None,
    out: str | Path = ".",
    reporter: ReporterChoice = "auto",
    refresh: bool = False,
    **settings: Any,
) -> Report:
    """Measure what comparisons need of several models, then compare them.

    Parameters
    ----------
    models : iterable of str, or str
        Names or paths, in the order in which they are to be shown; in one text, comma-separated.
    comparisons, probes : iterable of str, or str
        Names of comparisons (by default those that cost little), and of probes to measure besides what they need.
    parameters : dict of str to dict, optional
        Probe or comparison → its parameters that differ from what is required or default.
    null : {"untrained"}, optional
        Measure three untrained twins of each model too, at three times its cost: what a model learnt, they don't show.
    out : path
        Folder for ``atlas/`` and ``figures/``.
    minutes, reporter, refresh, **settings
        As in :func:`measure`.

    Returns
    -------
    Report
        Tables, findings, files; failures too: look at them.

    Raises
    ------
    XatlasError
        A name is unknown, or a model can't be found.
    """
    store = store_in(out)
    asked: dict[str, Any] = {"comparisons": comparisons, "probes": probes, "parameters": parameters}
    kept = None if refresh else store
    planned = plan(models, **asked, null=null, minutes=minutes, store=kept, **settings)
    return compare_planned(planned, store, Path(out) / FIGURES, reporter, refresh=refresh)


def card(model: Name, *, out: str | Path = ".") -> list[ComparisonResult]:
    """Show what a model consists of; its config is enough, weights are not loaded.

    Parameters
    ----------
    model : str or path
        A name or path; of a hub model, the config in the local cache will do, and of a folder ``config.json``.
    out : path
        Folder for ``figures/``.

    Returns
    -------
    list of ComparisonResult
        Of each comparison that needs the shapes of weights alone: table, findings, files.

    Raises
    ------
    XatlasError
        The model can't be found, or no adapter fits it.
    """
    return of_shapes(resolve(os.fspath(model), fetch="shapes"), Path(out) / FIGURES)
