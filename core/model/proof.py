"""The load-time proof: every hook point of every layer does what its name says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xatlas.contracts.adapter import Part, Site, View
from xatlas.errors import XatlasError
from xatlas.loading.loader import refuse_not_finite
from xatlas.model.hooks import attached, count_hooks, exclusive, has_steps, record_last_position, rows_of
from xatlas.vocabulary import forward_order

if TYPE_CHECKING:
    from xatlas.model import HookedModel

#: Difference, of the largest number, by which other matrix products may round a layer's output.
_STEP = 1e-4
#: Tokens in the proof's text.
LENGTH = 7


@exclusive
@torch.inference_mode()
def prove(model: HookedModel) -> None:
    """Check every hook point of a freshly loaded model in short passes and stop at the first that is wrong.

    One pass reads every site through an edit that changes nothing: each hook must fire exactly once, the logits must
    stay bit-identical, and what was read must add up. One finds values that are written over later. In one, each row of
    a batch has one site perturbed, and its logits must move.
    """
    before, adapter = count_hooks(model.model), model.adapter
    paths = [adapter.embedding_path, adapter.final_norm_path, adapter.unembedding_path]
    for layer, points in enumerate(model.points):
        paths += [role.module if isinstance(role, Part) else role for role in adapter.roles(layer).values()]
        paths += [one.module for point in points.values() for one in (point, *point.beside)]
    for path in paths:
        adapter.module(path)  # raises where the name is wrong
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.adapter.vocabulary, (1, LENGTH), generator=generator).to(model.device)
    logits = _logits(model, ids)
    values = _read_through_edits(model, ids, logits)
    for layer in range(model.n_layers):
        _check_sums(model, layer, {site.kind: value for site, value in values.items() if site.layer == layer})
        _check_layout(model, layer)
        _check_heads(model, layer, values, ids)
        _check_passed_on(model, layer, values)
    _check_views(model, ids)
    _count_patterns(model, ids)
    _find_overwritten(model, ids.expand(2, -1))
    _check_receptive_fields(model, ids)
    if has_steps(model):
        _check_last_position(model, ids.expand(2, -1))
    gap = _gap(model.adapter.logits(values[Site(model.n_layers - 1, "resid_post")]), logits)
    if gap:
        way = f"the last layer's stream through {model.adapter.final_norm_path} and {model.adapter.unembedding_path}"
        raise XatlasError(f"{way} does not give the model's logits (difference {gap:.2g}).")
    still = _unmoved(model, ids, model.editable, 1.0)
    # What is lost beside a stream that is far larger is perturbed once more, far more strongly.
    for site in _unmoved(model, ids, still, 1e5) if still else ():
        weights = [*adapter.layer(site.layer).parameters(), *adapter.module(adapter.unembedding_path).parameters()]
        # an all-zero weight may be all that reads the site
        if all(weight.dim() < 2 or bool(weight.any()) for weight in weights):
            raise _wrong(model, site, "a perturbation there does not reach the logits")
    if count_hooks(model.model) != before:
        raise XatlasError("hooks are left on the model after its proof: one of its modules keeps them.")


def _logits(model: HookedModel, ids: Tensor) -> Tensor:
    """Return Hugging Face's own logits ``(row, pos, vocabulary)``."""
    return model.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def _wrong(model: HookedModel, what: Site | str, found: str) -> XatlasError:
    where = f"{what} (module {model.point(what).module})" if isinstance(what, Site) else what
    return XatlasError(f"{type(model.adapter).__name__} is wrong about {where}: {found}.")


def _gap(ours: Tensor, theirs: Tensor, *terms: Tensor, relative: float = 0.0) -> float:
    """Return the largest difference of two tensors; 0 where rounding explains it, given what they are sums of.

    Rounding is that of sums of a few terms, or ``relative`` where that is more.
    """
    tensors = (ours, theirs, *terms)
    largest = max(float(tensor.abs().max()) for tensor in tensors)
    rounding = max(relative, 16 * max(torch.finfo(tensor.dtype).eps for tensor in tensors))
    tolerance = rounding * max(largest, 1e-3)
    gap = float((ours - theirs).abs().max())
    return gap if gap > tolerance else 0.0


def _read_through_edits(model: HookedModel, ids: Tensor, logits: Tensor) -> dict[Site, Tensor]:
    """Read every site through an edit that changes nothing."""
    values: dict[Site, Tensor] = {}
    fired: Counter[Site] = Counter()

    def read(site: Site, value: Tensor) -> Tensor:
        fired[site] += 1
        values[site] = value
        return value.clone()

    sites = model.editable
    with attached([model.hook(site, partial(read, site)) for site in sites]):
        edited = _logits(model, ids)
    for site in sites:
        if fired[site] != 1:
            raise _wrong(model, site, f"the hook fired {fired[site]} times in one forward instead of once")
    _check_finite(model, values, logits)
    if not torch.equal(edited, logits):
        raise XatlasError("an edit that changes nothing changes the logits: a view writes what it did not read.")
    return values


def _check_finite(model: HookedModel, values: dict[Site, Tensor], logits: Tensor) -> None:
    """Say where a forward first leaves the finite numbers: no adapter is to blame for that."""
    in_order = sorted(values, key=lambda site: (site.layer, forward_order(site.kind)))
    where = next((site for site in in_order if not values[site].isfinite().all()), None)
    if where is None and bool(logits.isfinite().all()):
        return
    refuse_not_finite(model.model.state_dict(), "the model")
    at = "in the logits" if where is None else f"at {where} (module {model.point(where).module})"
    advice = model.overflow or ": the numbers in its weights or its config are too large"
    raise XatlasError(f"the model's forward is not finite, first {at}{advice}.")


def _check_sums(model: HookedModel, layer: int, at: dict[str, Tensor]) -> None:
    """Check that what a layer writes adds up to what leaves it; ``at`` holds its values by kind."""
    # in float16 a partial sum may overflow where the layer's own does not
    total = at["resid_pre"].to(torch.promote_types(at["resid_pre"].dtype, torch.float32))
    for kind in ("operator_out", "resid_mid", "mlp_out", "resid_post"):
        if kind not in at:
            continue
        if at[kind].shape != total.shape:
            raise _wrong(model, Site(layer, kind), f"its shape is {tuple(at[kind].shape)}")
        if not kind.startswith("resid"):
            total = total + at[kind]
        elif gap := _gap(total, at[kind], *at.values()):
            sums = "resid_pre and what the layer wrote so far don't add up to it"
            raise _wrong(model, Site(layer, kind), f"{sums} (largest difference {gap:.2g})")


def _check_layout(model: HookedModel, layer: int) -> None:
    """Check heads and key/value groups against what the weights put out, and that parts make up their projection."""
    adapter, layout, roles = model.adapter, model.head_layouts[layer], model.adapter.roles(layer)
    this = f"layer {layer}"
    by_module: dict[str, list[int]] = {}
    for place in roles.values():
        if isinstance(place, Part):
            by_module.setdefault(place.module, []).extend(place.outputs(adapter.outputs(place)))
    for path, outputs in by_module.items():
        if sorted(outputs) != list(range(width := adapter.outputs(path))):
            raise _wrong(model, this, f"its parts of {path} do not make up its {width} outputs, each once")
    if layout is None:
        return
    if min(layout.n_heads, layout.n_kv_heads, layout.d_head) < 1 or layout.n_heads % layout.n_kv_heads:
        raise _wrong(model, this, f"{layout} has query heads that are no multiple of the others")
    groups = layout.n_kv_heads
    for role, heads in (("attention.q", layout.n_heads), ("attention.k", groups), ("attention.v", groups)):
        if role not in roles:
            continue
        place, width = roles[role], adapter.outputs(roles[role])
        width = len(place.outputs(width)) if isinstance(place, Part) else width
        if width != layout.d_head * heads:
            raise _wrong(model, this, f"it says {layout}, but {place} gives {width} numbers")


def _check_views(model: HookedModel, ids: Tensor) -> None:
    """Check that each view writes what it then reads, and leaves the tensor that it is given as it was."""
    generator = torch.Generator().manual_seed(2)
    given: dict[Site, Tensor] = {}
    hooks = []
    for site in model.editable:
        bare = replace(model.point(site), view=_Element(model.point(site).view.element), beside=())
        hooks.append(model.hook(site, partial(given.__setitem__, site), bare))
    with attached(hooks):
        model.run(ids)
    for site, tensor in given.items():
        point = model.point(site)
        value, before = point.view.read(tensor), tensor.clone()
        wanted = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        written = point.view.write(tensor, wanted)
        if not torch.equal(before, tensor):
            fault = "its view writes into the tensor that the model still reads, instead of a new one"
            raise _wrong(model, site, fault)
        if _gap(point.view.read(written), wanted, value):
            raise _wrong(model, site, "its view does not read what it has written")


@dataclass(frozen=True)
class _Element(View):
    """One element of what a module returns, whole."""

    element: int = 0  # type: ignore[misc]


def _count_patterns(model: HookedModel, ids: Tensor) -> None:
    """Check the number of heads against the patterns that eager attention gives."""
    for site, pattern in model.capture(ids, model.sites("attention_pattern")).items():
        layout = model.head_layouts[site.layer]
        if layout is not None and pattern.shape[1] != layout.n_heads:
            heads = f"attention gives {pattern.shape[1]} patterns, the adapter says {layout.n_heads} heads"
            raise _wrong(model, Site(site.layer, "heads"), heads)


def _check_heads(model: HookedModel, layer: int, values: dict[Site, Tensor], ids: Tensor) -> None:
    """Check that a layer's heads, put through the output projection, are what the operator wrote."""
    path, site, layout = model.adapter.output_projection(layer), Site(layer, "heads"), model.head_layouts[layer]
    if path is None or site not in values:
        return
    heads = values[site]
    if layout is None or tuple(heads.shape[2:]) != (layout.n_heads, layout.d_head):
        raise _wrong(model, site, f"its shape is {tuple(heads.shape)}, the adapter says {layout}")
    written = model.adapter.written(layer, model.adapter.module(path)(heads.flatten(2)))
    whole = Site(layer, "operator_out")
    for point in model.point(whole).beside:
        found: list[Tensor] = []
        with attached([model.hook(whole, found.append, point)]):
            model.run(ids)
        written = written + found[0]
    gap = _gap(written, values[whole])
    if gap:
        raise _wrong(model, site, f"through {path} it does not give operator_out (difference {gap:.2g})")


def _check_passed_on(model: HookedModel, layer: int, values: dict[Site, Tensor]) -> None:
    """Check that what leaves a layer is what enters the next, as the engine takes it to be."""
    entering = values.get(Site(layer + 1, "resid_pre"))
    if entering is not None and (gap := _gap(values[Site(layer, "resid_post")], entering)):
        fault = f"changes the stream between layers {layer} and {layer + 1} (difference {gap:.2g})"
        raise XatlasError(f"{type(model.model).__name__} {fault}: such a model can't be run layer by layer.")


def _check_last_position(model: HookedModel, ids: Tensor) -> None:
    """Check that each layer gives at the last position, on the cache of those before it, what it gives in a whole.

    What enters is that of the whole, so that rounding does not add up over layers.
    """
    whole = model.record(ids)
    last, cache = record_last_position(model, ids)
    rows = torch.arange(len(ids), device=ids.device)
    for layer, call in enumerate(last.calls):
        entering = whole.inputs[layer][:, -1:]
        leaving = (whole.inputs[layer + 1] if layer + 1 < model.n_layers else whole.final)[:, -1:]
        here = model.run_layer(layer, entering, call, cache=rows_of(cache, rows))
        if gap := _gap(here, leaving, entering, relative=_STEP):
            fault = f"run on its cache alone the last position of layer {layer} differs (by {gap:.2g})"
            advice = "its row_arguments are incomplete, or cache_argument must be None"
            raise _wrong(model, f"'{model.adapter.cache_argument}'", f"{fault}: {advice}")


def _find_overwritten(model: HookedModel, ids: Tensor) -> None:
    """Find the sites whose value the forward writes over, in place, after it was read."""
    sites = model.editable
    copied = model.record(ids, sites)  # as long as nothing is known, all that is kept is a copy
    model.overwritten = ()
    kept = model.record(ids, sites)
    found = {site for site in sites if not torch.equal(kept.values[site], copied.values[site])}
    for layer, (now, then) in enumerate(zip(kept.inputs, copied.inputs, strict=True)):
        if not torch.equal(now, then):
            found.add(Site(layer, "resid_pre"))
    model.overwritten = frozenset(found)


def _check_receptive_fields(model: HookedModel, ids: Tensor) -> None:
    """Check that layers said to read few positions give the same on those alone."""
    run = model.record(ids)
    for layer, hidden in enumerate(run.inputs):
        field = model.adapter.receptive_field(layer)
        if field is None:
            continue
        fault = f"its last output does not follow from the last {field} positions alone"
        whole = model.run_layer(layer, hidden, run.calls[layer])[:, -1]
        try:
            cut = model.run_layer(layer, hidden[:, -field:], run.calls[layer])[:, -1]
        except RuntimeError as error:
            raise _wrong(model, f"layer {layer}", f"{fault} ({str(error).splitlines()[0]})") from error
        if gap := _gap(whole, cut):
            raise _wrong(model, f"layer {layer}", f"{fault} (difference {gap:.2g})")


def _unmoved(model: HookedModel, ids: Tensor, sites: Sequence[Site], strength: float) -> list[Site]:
    """Perturb each site in a row of its own, and return those whose row's logits stay."""
    generator = torch.Generator().manual_seed(1)

    def perturb(row: int, value: Tensor) -> Tensor:
        noise = torch.randn(value.shape[1:], generator=generator).to(value.device, value.dtype)
        result = value.clone()
        result[row] += noise * (value[row].abs().mean() + 1) * strength
        return result

    rows = enumerate(sites, start=1)
    with attached([hook for row, site in rows for hook in model.edit_hooks(site, partial(perturb, row))]):
        hidden = model.run(ids.expand(len(sites) + 1, -1)).last_hidden_state[:, -1]
        logits = model.adapter.module(model.adapter.unembedding_path)(hidden).float()
    still = (logits[1:] - logits[0]).abs().amax(-1) <= 1e-5 * logits[0].abs().max().clamp(min=1e-6)
    return [site for site, unmoved in zip(sites, still.tolist(), strict=True) if unmoved]  # what overflows has moved
