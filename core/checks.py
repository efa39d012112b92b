"""The contracts as functions that plugin authors run in two lines; the built-ins are held to them first.

Each raises ``XatlasError`` at the first violation, in one line.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
import xarray as xr

from xatlas import manager, testing
from xatlas.contracts.adapter import Adapter, Part
from xatlas.contracts.comparison import Comparison, Finding, Verdict
from xatlas.contracts.probe import Checkpoint, Inputs, Probe, ReadingProbe, Requirement, Variable
from xatlas.engine.sweep import sweep
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Intervention, Zero
from xatlas.loading.download import ModelSource
from xatlas.loading.model_files import check_folder
from xatlas.manager import calling
from xatlas.metrics import KL, kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import attached, exclusive
from xatlas.prompts.reader import Reader, TokenPrompt
from xatlas.run.runner import measure_in_memory
from xatlas.suites import Prompt, Suite, SuiteSpec
from xatlas.vocabulary import SITE_KINDS

#: Numerical agreement in float32: nats, and relative.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
#: Kind of model source → what its location looks like, and how to write it.
_LOCATIONS = {
    "hub": (r"[\w.-]+/[\w.-]+", "a hub id is owner/model, without a revision"),
    "folder": (r"/.*", "a folder is given by its absolute path"),
    "wheel-gguf": (r"[\w.-]+==[\w.]+", "a wheel is pinned, as name==version"),
}

_F = TypeVar("_F", bound=Callable[..., None])


def _must(holds: object, otherwise: str) -> None:
    if not holds:
        raise XatlasError(otherwise)


def _checked(check: _F) -> _F:
    """Report whatever a plugin raises, ``sys.exit`` too, as a violation in one line."""

    @functools.wraps(check)
    def wrapper(plugin: Any, *args: Any, **kwargs: Any) -> None:
        with calling(plugin if isinstance(plugin, type) else type(plugin)):
            check(plugin, *args, **kwargs)

    return cast("_F", wrapper)


def _check_complete(cls: type[Any]) -> None:
    _must(not inspect.isabstract(cls), f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}.")


def _check_class(cls: Any, contract: type[Any]) -> str:
    """Check a class against its contract, its name and its version; return what errors call it."""
    kind = contract.__name__.lower()
    fits = isinstance(cls, type) and issubclass(cls, contract)
    _must(fits, f"check_{kind} takes a subclass of {contract.__name__}, not {cls!r}.")
    _check_complete(cls)
    name, version = getattr(cls, "name", None), getattr(cls, "version", None)
    fits = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
    _must(fits, f"{cls.__name__}.name is {name!r}: a {kind}'s name is lower-case words joined by '_'.")
    fits = isinstance(version, int) and version >= 1
    _must(fits, f"{cls.__name__}.version is {version!r}: a whole number from 1, raised when numbers change.")
    return f"{kind} '{name}'"


def _check_summary(described: Any, who: str) -> None:
    summary = getattr(described, "summary", "")
    fits = isinstance(summary, str) and summary.strip() and "\n" not in summary
    _must(fits, f"{who} has no summary: one sentence for the list.")


def _check_requirements(requirements: tuple[Any, ...], who: str) -> None:
    for needed in requirements:
        _must(isinstance(needed, Requirement), f"{who} requires {needed!r}: it must be a Requirement.")
        try:
            manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
        except XatlasError as error:
            raise XatlasError(f"{who} requires what can't be measured: {error}") from None


@_checked
def check_adapter(model: Any, tokenizer: Any = None) -> None:
    """Check an adapter: its hook points are proved, its facts hold, and the engine agrees with Hugging Face.

    ``model`` is a loaded Hugging Face model whose adapter is registered; or an adapter class, which is then checked on
    a tiny random model of its first architecture, with layers of every type that the config allows. With a tokenizer,
    that a suite can be read is checked too.
    """
    if isinstance(model, type):
        _must(issubclass(model, Adapter), f"check_adapter takes a model or an adapter class, not {model.__name__}.")
        _check_complete(model)
        names = getattr(model, "architectures", None)
        fits = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
        _must(fits, f"{model.__name__}.architectures must be a tuple of Hugging Face class names.")
        hooked = testing.tiny_model(model)
    else:
        hooked = HookedModel(model, tokenizer)
    for layer in range(hooked.n_layers):
        _check_layer(hooked.adapter, layer)
    _check_shapes(hooked)
    _check_patterns(hooked)
    if hooked.dtype == torch.float32:
        _check_engine(hooked)
    if hooked.reader is not None:
        hooked.read(testing.tiny_suite())


def _check_layer(adapter: Adapter, layer: int) -> None:
    who, word = type(adapter).__name__, adapter.operator_type(layer)
    named = isinstance(word, str) and word
    _must(named, f"{who}.operator_type({layer}) is {word!r}: it must be a word, e.g. 'attention'.")
    kinds, roles, layout = set(adapter.hook_points(layer)), adapter.roles(layer), adapter.head_layout(layer)
    for kind in sorted(kinds - set(SITE_KINDS) - set(adapter.extra_kinds)):
        raise unknown(f"site kind of {who}", kind, SITE_KINDS, "Declare kinds of your own in extra_kinds.")
    for kind in ("resid_pre", "operator_out", "resid_post"):
        _must(kind in kinds, f"{who} gives layer {layer} no '{kind}': every layer has one.")
    owners: dict[str | Part, str] = {}
    for role, path in roles.items():
        weight = getattr(adapter.role_module(path), "weight", None)
        linear = weight is not None and weight.dim() == 2
        _must(linear, f"role '{role}' of layer {layer} names {path}, which is no linear module.")
        _must("." in role, f"role '{role}' of layer {layer} must be part.name, e.g. 'mlp.down'.")
        other = owners.setdefault(path, role)
        _must(other == role, f"roles '{other}' and '{role}' of layer {layer} name the same module {path}.")
    if (layout is not None) != ("heads" in kinds):
        found = "a 'heads' site without a head layout" if layout is None else "a head layout without a 'heads' site"
        raise XatlasError(f"{who} gives layer {layer} {found}: it needs both or neither.")
    if layout is None:
        return
    whole = min(layout.n_heads, layout.n_kv_heads, layout.d_head) >= 1 and layout.n_heads % layout.n_kv_heads == 0
    _must(whole, f"{who} says {layout} of layer {layer}: query heads must be a multiple of the others.")
    for role, heads in (("attention.q", layout.n_heads), ("attention.k", layout.n_kv_heads)):
        place = roles.get(role)
        if place is None:
            continue
        width = adapter.outputs(place)
        width = len(place.outputs(width)) if isinstance(place, Part) else width
        fits = width == heads * layout.d_head
        _must(fits, f"{who} says {layout} of layer {layer}, but {place} gives {width} numbers.")


def _check_shapes(model: HookedModel) -> None:
    ids = torch.ones(1, 5, dtype=torch.long, device=model.device)
    dims = {**SITE_KINDS, **model.adapter.extra_kinds}
    sizes = {"batch": 1, "pos": 5, "d_model": model.d_model}
    for site, value in model.capture(ids, model.editable).items():
        names, shape = dims[site.kind], tuple(value.shape)
        fits = len(names) == len(shape) and all(sizes.get(d, n) == n for d, n in zip(names, shape, strict=True))
        _must(fits, f"{site} (module {model.point(site).module}) has the shape {shape}, not ({', '.join(names)}).")


def _check_patterns(model: HookedModel) -> None:
    """Check attention weights: a pattern per head, none of a later token, and a window that is just what is seen."""
    n = 9
    ids = torch.arange(n, device=model.device)[None] % model.adapter.vocabulary
    place = torch.arange(n, device=model.device)
    back = place[:, None] - place
    for site, pattern in model.capture(ids, model.sites("attention_pattern")).items():
        layout, window = model.head_layouts[site.layer], model.adapter.window(site.layer)
        heads = layout.n_heads if layout is not None else 0
        shape, who = tuple(pattern.shape), f"{site} (module {model.point(site).module})"
        _must(shape == (1, heads, n, n), f"{who} has the shape {shape}, not {(1, heads, n, n)}: one pattern per head.")
        weight = pattern.amax((0, 1))  # (query, key)
        _must(not weight[back < 0].any(), f"{who} has weights on tokens that come later: it is no causal pattern.")
        seen = int(back[weight > 0].max()) + 1
        wanted = n if window is None else min(window, n)
        said = f"{type(model.adapter).__name__}.window({site.layer}) is {window}"
        _must(seen == wanted, f"{said}, but a query of {site} sees {seen} of {n} tokens.")


@exclusive
@torch.inference_mode()
def _check_engine(model: HookedModel) -> None:
    """Zero every site, in the engine and in Hugging Face's own forward, on two random texts, and compare."""
    generator = torch.Generator().manual_seed(2)
    prompts = []
    for n in (5, 8):
        ids = tuple(torch.randint(0, model.adapter.vocabulary, (n,), generator=generator).tolist())
        prompts.append(TokenPrompt(Prompt(f"check {n}", "check", "-"), ids, n, n - 1, None, None, (), ()))

    def last_logits(prompt: TokenPrompt) -> Any:  # (vocabulary)
        return model.model(input_ids=model.tokens([prompt]), use_cache=False).logits[0, -1].double()

    sites = model.editable
    ours = sweep(model, prompts, [(Intervention(site, Zero()),) for site in sites], [KL()])[0]
    for row, prompt in enumerate(prompts):
        clean = last_logits(prompt)
        for column, site in enumerate(sites):
            with attached(model.edit_hooks(site, torch.zeros_like)):
                theirs = float(kl_divergence(clean, last_logits(prompt)))
            same = math.isclose(ours[row, column], theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
            numbers = f"{ours[row, column]:.6g} nats and Hugging Face's forward {theirs:.6g}"
            why = "the layer needs more than its recorded arguments."
            _must(same, f"zeroing {site}, the engine gives {numbers}: {why}")


@_checked
def check_probe(probe_class: type[Probe], model: HookedModel | None = None) -> None:
    """Check a probe: what it declares, and what it returns for a tiny model and suite.

    It must return what it declared, with reasons for NaN; leave model, tokenizer and torch as they were, weights too
    unless it mutates; and return the same numbers for the same seed, with a checkpoint, and when it is resumed from
    one that holds a part of a run. ``model`` is by default a tiny random one.
    """
    who = _check_class(probe_class, Probe)
    _check_declared(probe_class, who)
    probe = probe_class()
    _check_requirements(probe.requires, who)
    model = model or testing.model_with(probe.sites)
    dataset = _measure_tiny(probe, model, Checkpoint())
    if probe.replicate is not None and all(probe.replicate not in v.dims for v in probe.variables.values()):
        advice = "keep values per replicate, or declare replicate = None."
        raise XatlasError(f"{who} has no variable with the dimension '{probe.replicate}': {advice}")
    if probe.replicate == "prompt" and not probe.mutates:
        _check_repeated(probe_class, model, dataset)


def _check_declared(cls: type[Probe], who: str) -> None:
    documented = (cls.__doc__ or "").lower()
    for word in ("unit", "control", "source"):
        rule = "it gives definition, unit, control and source, for xatlas explain prints it."
        _must(word in documented, f"the docstring of {who} does not say its {word}: {rule}")
    declared = getattr(cls, "variables", None)
    _must(isinstance(declared, Mapping) and declared, f"{who} declares no variables.")
    for name, variable in cls.variables.items():
        described = isinstance(variable, Variable) and variable.units and variable.long_name
        _must(described, f"variable '{name}' of {who} must be Variable(dims, units, long_name).")
        twice = len(set(variable.dims)) < len(variable.dims)
        _must(not twice, f"variable '{name}' of {who} has a dimension twice: {variable.dims}.")
    kinds = {*SITE_KINDS, *(kind for adapter in manager.adapters().values() for kind in adapter.extra_kinds)}
    for kind in cls.sites:
        if kind not in kinds:
            raise unknown(f"site kind of {who}", kind, kinds)
    try:
        json.dumps(cls().canonical_parameters())
    except TypeError as error:
        raise XatlasError(f"the default parameters of {who} don't fit their types: {error}.") from None


def _check_repeated(probe_class: type[Probe], model: HookedModel, first: xr.Dataset) -> None:
    """Measure again with an empty checkpoint, and once more as a killed run goes on: with half of its parts."""

    def check(checkpoint: Checkpoint, when: str) -> None:
        again = _measure_tiny(probe_class(), model, checkpoint)
        for name in map(str, first.data_vars):
            one, other = first[name].values, again[name].values
            if one.dtype.kind == "f":
                same = np.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
            else:
                same = bool((one == other).all())
            _must(same, f"probe '{probe_class.name}' gives other numbers for '{name}' {when}.")

    kept = testing.CountingCheckpoint()
    try:
        check(kept, "with the same seed")
    except XatlasError:
        if not kept.found:
            raise
        check(Checkpoint(), "with the same seed")
        when = f"with a checkpoint: two of its parts have one key ({kept.found[0]})"
        raise XatlasError(f"probe '{probe_class.name}' gives other numbers {when}.") from None
    if kept.parts:
        for key in list(kept.parts)[1::2]:
            del kept.parts[key]
        check(kept, "when it is resumed from a checkpoint: its parts depend on what was done before them")


def _measure_tiny(probe: Probe, model: HookedModel, checkpoint: Checkpoint) -> xr.Dataset:
    suite, reference = testing.answered_suite(model), testing.tiny_reference()
    if isinstance(probe, ReadingProbe):  # it costs little, and may need many tokens
        suite = Suite(suite.name, (*suite, *reference))
    return measure_in_memory(probe, model, suite, Inputs(reference=reference, checkpoint=checkpoint))


@_checked
def check_comparison(comparison_class: type[Comparison], tree: xr.DataTree | None = None) -> None:
    """Check a comparison: what it requires, and what it makes of two models' results.

    These are ``tree``, ``/{model}/{probe}`` as :func:`xatlas.open` returns it; by default what the comparison requires
    is measured on two tiny random models.
    """
    from matplotlib.figure import Figure

    who = _check_class(comparison_class, Comparison)
    _check_summary(comparison_class, who)
    comparison = comparison_class()
    needed = [item for item in comparison.requires if not getattr(item, "optional", False)]
    _must(needed, f"{who} requires no probe: it has nothing to compare.")
    _check_requirements(comparison.requires, who)
    if tree is None:
        kinds = frozenset(kind for item in needed for kind in manager.probes()[item.probe].sites)
        nodes = {}
        for seed, item in itertools.product((0, 1), needed):
            asked = json.dumps(dict(item.parameters), sort_keys=True)
            nodes[f"/small-{seed}/{item.probe}"] = _measured(item.probe, asked, kinds, seed).copy(deep=True)
        tree = xr.DataTree.from_dict(nodes)
    models = [str(name) for name in tree.children]
    dataset = comparison.compare(tree)
    fits = isinstance(dataset, xr.Dataset) and "model" in dataset.dims
    _must(fits, f"{who}: compare must return an xarray.Dataset with a 'model' dimension.")
    fits = "model" in dataset.coords and [str(name) for name in dataset["model"].values] == models
    _must(fits, f"{who}: the coordinate 'model' must name the models of the tree: {', '.join(models)}.")
    figure = comparison.plot(dataset)
    _must(isinstance(figure, Figure), f"{who}: plot must return a matplotlib Figure, not {type(figure).__name__}.")
    _must(figure.axes, f"{who}: plot returned a figure without axes.")
    findings = comparison.findings(dataset)
    _must(findings, f"{who}: findings must return at least one finding.")
    for finding in findings:
        _check_finding(finding, who)
    rows = comparison.table(dataset)
    fits = isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
    _must(fits, f"{who}: table must return a list of rows, each a dict.")
    for name, value in (item for row in rows for item in row.items()):
        fits = isinstance(value, str | int | float | np.number)
        _must(fits, f"{who}: the table's column '{name}' holds {type(value).__name__}: use text or numbers.")
    missing = set(models) - {str(row.get("model", "")) for row in rows}
    _must(not missing, f"{who}: the table has no row for the model '{min(missing, default='')}' in its column 'model'.")


@functools.cache
def _measured(probe: str, parameters: str, kinds: frozenset[str], seed: int) -> xr.Dataset:
    """Measure once what several comparisons rest on."""
    asked = manager.probes()[probe](**json.loads(parameters))
    return _measure_tiny(asked, testing.model_with(kinds, seed=seed), Checkpoint())


def _check_finding(finding: Any, who: str) -> None:
    _must(isinstance(finding, Finding), f"{who}: findings must return Finding objects, not {type(finding).__name__}.")
    fits = isinstance(finding.sentence, str) and any(c.isalpha() for c in finding.sentence)
    _must(fits, f"{who}: a finding has no sentence.")
    which = f"{who}: the finding '{finding.sentence}'"
    valid = get_args(Verdict)
    _must(finding.verdict in valid, f"{which} has the verdict '{finding.verdict}'. Valid: {', '.join(valid)}.")
    numbers = (finding.value, finding.low, finding.high)
    if all(math.isfinite(number) for number in numbers):
        _must(finding.low <= finding.value <= finding.high, f"{which} has a value outside its interval: {numbers}.")
    else:
        _must(finding.verdict != "supported", f"{which} is supported without a number and its interval.")
    _must(math.isnan(finding.p) or 0 <= finding.p <= 1, f"{which} has the p-value {finding.p}.")


def check_suite(suite: SuiteSpec | Suite) -> None:
    """Check a suite: the same each time it is made, with a foil for each twin, and read by a tokenizer of bytes."""
    if isinstance(suite, SuiteSpec):
        who = f"suite '{suite.name}'"
        _check_summary(suite, who)
        if suite.default_for not in ("measure", "reference", None):
            raise unknown(f"default_for of {who}", str(suite.default_for), ("measure", "reference"))
        made, again = suite.load(), suite.load()
        _must(isinstance(made, Suite), f"{who}: load must return a Suite, not {type(made).__name__}.")
        _must(made.name == suite.name, f"{who} calls itself '{made.name}' when it is made: results show that.")
        _must(made.hash == again.hash, f"{who} is another each time it is made: draw from a fixed seed.")
        suite = made
    _must(isinstance(suite, Suite), f"check_suite takes a SuiteSpec or a Suite, not {suite!r}.")
    for prompt in suite:
        fits = prompt.corrupt_text is None or prompt.foil is not None
        _must(fits, f"suite '{suite.name}': prompt '{prompt.id}' has a twin, but no foil, the twin's answer.")
    # Single prompts may drop out with one tokenizer or another; a family that does is lost.
    dropped = Reader(testing.byte_tokenizer()).suite(suite).dropped
    for family in suite.families:
        left_out = [dropped.get(prompt.id) for prompt in suite if prompt.family == family]
        fault = f"no prompt of family '{family}' can be read: {left_out[0]}"
        _must(not all(left_out), f"suite '{suite.name}': {fault}")


def check_source(source: ModelSource) -> None:
    """Check what an alias stands for, as far as this machine knows: the hub is not asked."""
    _must(isinstance(source, ModelSource), f"check_source takes a ModelSource, not {source!r}.")
    who = f"model '{source.alias}'"
    _check_summary(source, who)
    if source.kind not in _LOCATIONS:
        raise unknown(f"kind of {who}", str(source.kind), _LOCATIONS)
    shape, rule = _LOCATIONS[source.kind]
    _must(re.fullmatch(shape, source.location), f"{who} is at {source.location!r}: {rule}.")
    if source.kind == "folder":
        check_folder(Path(source.location))
    if source.kind == "wheel-gguf":
        fits = source.filename and re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "")
        _must(fits, f"{who} needs the name of a file in its wheel, and that file's sha256.")
