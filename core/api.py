"""What the command line does, from Python: ``measure``, ``compare``, ``load`` and ``open``."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xatlas import manager
from xatlas.config import MeasureConfig, spell_out
from xatlas.config import settings as config_settings
from xatlas.contracts.probe import Inputs, Probe, Requirement
from xatlas.errors import XatlasError
from xatlas.loading.names import Fetch, Resolved, resolve
from xatlas.results.atlas import open_atlas
from xatlas.results.store import Store
from xatlas.run.compare import Comparing, part_parameters, pick_comparisons
from xatlas.run.compare import compare as compare_models
from xatlas.run.plan import steps_for
from xatlas.run.reporting import Reporter
from xatlas.run.runner import load_model, measure_directly, run
from xatlas.suites import Suite
from xatlas.text import split_names

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel

#: Folders inside the one given with ``out``.
ATLAS, FIGURES = "atlas", "figures"

open = open_atlas
log = logging.getLogger("xatlas")

F = TypeVar("F", bound=Callable[..., Any])


def _spelled_out(mark: str) -> Callable[[F], F]:
    """Write the settings that are marked so into a function's signature: ``help(xatlas.load)`` shows them."""
    kind = inspect.Parameter.KEYWORD_ONLY
    defaults = {each.name: None if each.default is MISSING else each.default for each in config_settings(mark)}
    chosen = [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
    return lambda function: spell_out(function, chosen, eval_str=False)


def _names(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return names as a list; one text is taken for a comma-separated list."""
    if isinstance(given, str):
        return split_names(given)
    names = [given] if isinstance(given, os.PathLike) else list(given)
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise XatlasError(f"{name!r} is no name: give texts, or paths.")
    return [os.fspath(name) for name in names]


def resolve_all(names: Sequence[str], *, fetch: Fetch = "all") -> list[Resolved]:
    """Resolve names; two that are filed under one slug are an error, for one would hide the other.

    A model named twice is taken once; one with two names is shown twice. Both are said.

    Raises
    ------
    XatlasError
        No name, an unknown one, or two that can't be told apart.
    """
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


@_spelled_out("of_model")
def load(name: str | os.PathLike[str], **settings: Any) -> HookedModel:
    """Load a model by name or path, with its hook points proved.

    Parameters
    ----------
    name : str or path
        As ``xatlas models`` lists them; a hub id; a folder or file.
    **settings
        ``device``, ``dtype``, ``attention``, ``bos``, ``chat_template``, ``template_date``: see
        :class:`xatlas.config.MeasureConfig`.

    Raises
    ------
    XatlasError
        The model can't be found or loaded, no adapter fits it, or a check of its hook points fails.
    """
    for each in settings:
        if each not in {setting.name for setting in config_settings("of_model")}:
            raise TypeError(f"load() got an unexpected keyword argument '{each}'")
    return load_model(resolve(os.fspath(name)), settings)


def measure(
    model: str | os.PathLike[str] | HookedModel,
    probe: str,
    *,
    suite: str | Suite | None = None,
    reference: str | Suite | None = None,
    parameters: dict[str, Any] | None = None,
    out: str | Path = ".",
    reporter: Reporter | None = None,
    refresh: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Measure one model with one probe; a result that the atlas holds is read from it.

    Parameters
    ----------
    model : str or HookedModel
        A name or path; or a loaded model, of which nothing is stored, for probes that don't train.
    probe : str
        Name of the probe.
    suite, reference : str or Suite, optional
        As in :meth:`xatlas.config.MeasureConfig.make`.
    parameters : dict, optional
        Of the probe, where they differ from the defaults.
    out : path
        Folder that holds ``atlas/``.
    reporter : Reporter, optional
        Hears how it goes.
    refresh : bool
        Measure again what the atlas holds.
    **options
        ``device``, ``dtype``, ``attention``, ``bos``, ``chat_template``, ``template_date``, ``seed``, ``draws``;
        a loaded model has the first six already, so that others are refused.

    Returns
    -------
    Dataset
        As the probe declares it.

    Raises
    ------
    XatlasError
        A name is unknown, or the measurement failed.
    """
    chosen = {probe: dict(parameters or {})}
    settings = MeasureConfig.make(suite=suite, reference=reference, parameters=chosen, **options)
    if not isinstance(model, str | os.PathLike):
        _refuse_others(model, options)
        found = manager.pick("probe", probe, manager.probes())(**chosen[probe])
        return _measure_loaded(model, found, settings, reporter)
    steps = steps_for(resolve(os.fspath(model)), [Requirement(probe)], settings)
    store = Store(Path(out) / ATLAS)
    outcome = run(steps, store, settings, reporter, refresh=refresh)
    if outcome.failures:
        raise XatlasError(str(outcome.failures[0]))
    return store.read(steps[-1].job)


def _refuse_others(model: HookedModel, options: dict[str, Any]) -> None:
    """Refuse options that are not what a loaded model was loaded with."""
    held: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    held["attention"] = str(getattr(model.model.config, "_attn_implementation", None))
    if model.reader is not None:
        held |= {"bos": model.reader.bos, "chat_template": model.reader.chat is not None}
        held["template_date"] = model.reader.template_date
    for name, value in options.items():
        alike = (held.get(name), "auto", model.device.type) if name == "device" else (held.get(name),)
        if name in held and value not in alike:
            raise XatlasError(
                f"the loaded model has {name} = {held[name]}, not {value}: leave {name} out, or load the model with it."
            )


def _measure_loaded(
    model: HookedModel, probe: Probe, settings: MeasureConfig, reporter: Reporter | None = None
) -> xr.Dataset:
    """Measure a model in memory; nothing is stored."""
    if probe.mutates:
        raise XatlasError(f"{probe.name} trains the model that it is given: name the model, and it is loaded for that.")
    inputs = Inputs(reference=settings.reference, seed=settings.seed, draws=settings.draws)
    if reporter is not None:
        inputs = replace(inputs, progress=reporter.progress)
    return measure_directly(probe, model, settings.suite, inputs, reporter)


def compare(
    models: str | Iterable[str | os.PathLike[str]],
    *,
    comparisons: str | Iterable[str] | None = None,
    suite: str | Suite | None = None,
    reference: str | Suite | None = None,
    parameters: dict[str, dict[str, Any]] | None = None,
    out: str | Path = ".",
    reporter: Reporter | None = None,
    refresh: bool = False,
    **options: Any,
) -> Comparing:
    """Measure what comparisons need of several models, then compare them.

    Parameters
    ----------
    models : iterable of str, or str
        Names or paths, in the order in which they are to be shown; in one text, comma-separated.
    comparisons : iterable of str, or str, optional
        Names; those that cost little by default.
    suite, reference : str or Suite, optional
        As in :meth:`xatlas.config.MeasureConfig.make`.
    parameters : dict of str to dict, optional
        Probe or comparison → its parameters that differ from what is required or default.
    out : path
        Folder for ``atlas/`` and ``figures/``.
    reporter : Reporter, optional
        Hears how it goes.
    refresh : bool
        Measure again what the atlas holds.
    **options
        As in :func:`measure`.

    Returns
    -------
    Comparing
        Tables, findings, files; failures too: look at them.

    Raises
    ------
    XatlasError
        A name is unknown or a model can't be had.
    """
    names = [comparison.name for comparison in pick_comparisons(None if comparisons is None else _names(comparisons))]
    of_probes, of_comparisons = part_parameters(parameters or {}, names)
    settings = MeasureConfig.make(suite=suite, reference=reference, parameters=of_probes, **options)
    chosen = pick_comparisons(names, of_comparisons)
    folder = Path(out)
    store, named = Store(folder / ATLAS), resolve_all(_names(models))
    return compare_models(named, chosen, settings, store, folder / FIGURES, reporter, refresh=refresh)
