"""What the command line does, from Python: ``measure``, ``compare``, ``load`` and ``open``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.contracts.probe import Inputs, Probe, Requirement
from xatlas.errors import XatlasError
from xatlas.guard import calling
from xatlas.loading.names import Hub, Resolved, resolve
from xatlas.results.atlas import open_atlas
from xatlas.results.store import Store
from xatlas.run.compare import Comparing, part_parameters, pick_comparisons
from xatlas.run.compare import compare as compare_models
from xatlas.run.plan import Settings, default_suite, find_suite, steps_for
from xatlas.run.reporting import Reporter
from xatlas.run.runner import measure_directly, run
from xatlas.suites import Suite
from xatlas.text import split_names
from xatlas.vocabulary import TEMPLATE_DATE, BosHabit

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel

#: Folders inside the one given with ``out``.
ATLAS, FIGURES = "atlas", "figures"

open = open_atlas
log = logging.getLogger("xatlas")


def make_settings(suite: str | Suite | None = None, reference: str | Suite | None = None, **options: Any) -> Settings:
    """Return settings, suites found by name or path; the defaults are those that plugins declare.

    Parameters
    ----------
    suite, reference : str or Suite, optional
        What is measured on; where means and donors come from.
    **options
        Fields of :class:`xatlas.run.plan.Settings`.

    Raises
    ------
    XatlasError
        A name or value is not one that exists.
    """
    chosen = default_suite("measure") if suite is None else suite
    means = default_suite("reference") if reference is None else reference
    return Settings(
        suite=chosen if isinstance(chosen, Suite) else find_suite(chosen),
        reference=means if isinstance(means, Suite) else find_suite(means),
        **options,
    )


def _names(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return names as a list; one text is taken for a comma-separated list."""
    if isinstance(given, str):
        return split_names(given)
    names = [given] if isinstance(given, os.PathLike) else list(given)
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise XatlasError(f"{name!r} is no name: give texts, or paths.")
    return [os.fspath(name) for name in names]


def resolve_all(names: Sequence[str], *, hub: Hub = True) -> list[Resolved]:
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
        model = resolve(name, hub=hub)
        twin = next((each for each in found.values() if each.identity == model.identity), None)
        if twin and twin.slug != model.slug and model.weights_hash:
            log.warning("'%s' and '%s' are one model under two names: what they share shows nothing.", twin.name, name)
        other = found.setdefault(model.slug, model)
        if other is not model:
            raise XatlasError(f"'{other.name}' and '{model.name}' are the same model: name it once.")
    return list(found.values())


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "float32",
    attention: str = "sdpa",
    bos: BosHabit = "always",
    chat_template: bool = False,
    template_date: str = TEMPLATE_DATE,
) -> HookedModel:
    """Load a model by name or path, with its hook points proved.

    Raises
    ------
    XatlasError
        It can't be had or loaded, no adapter fits it, or a check of its hook points fails.
    """
    from xatlas.loading.loader import load as load_parts
    from xatlas.model import HookedModel

    resolved = resolve(os.fspath(name))
    parts = load_parts(resolved, device=device, dtype=dtype, attention=attention)
    with calling(manager.adapters().get(resolved.architecture)):
        return HookedModel(
            parts.model,
            parts.tokenizer,
            slug=resolved.slug,
            bos=bos,
            chat_template=chat_template,
            template_date=template_date,
        )


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
        As in :func:`make_settings`.
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
    settings = make_settings(suite, reference, parameters=chosen, **options)
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
    model: HookedModel, probe: Probe, settings: Settings, reporter: Reporter | None = None
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
        As in :func:`make_settings`.
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
    settings = make_settings(suite, reference, parameters=of_probes, **options)
    chosen = pick_comparisons(names, of_comparisons)
    folder = Path(out)
    store, named = Store(folder / ATLAS), resolve_all(_names(models))
    return compare_models(named, chosen, settings, store, folder / FIGURES, reporter, refresh=refresh)
