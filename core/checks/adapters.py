"""The check of an adapter: what loading proves, its facts, and the engine against Hugging Face's own forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from xatlas import testing
from xatlas.contracts.adapter import Adapter, Part, Site
from xatlas.engine.sweep import sweep
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Intervention, Zero
from xatlas.manager import calling
from xatlas.metrics import KL, kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import attached, exclusive
from xatlas.probing.patching import gradients
from xatlas.prompts.reader import TokenPrompt
from xatlas.suites import Prompt
from xatlas.vocabulary import SITE_KINDS, Positions

#: Numerical agreement in float32: nats, and relative.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
#: How far a gradient may be from a difference of two forwards, of either and of the logits.
_SLOPE, _NOISE = 0.1, 5e-3
#: Sites that are changed in one forward, each in a row of its own.
_ROWS = 24

_F = TypeVar("_F", bound=Callable[..., None])


def must(holds: object, otherwise: str) -> None:
    """Raise what is said otherwise."""
    if not holds:
        raise XatlasError(otherwise)


def checked(check: _F) -> _F:
    """Report whatever a plugin raises, ``sys.exit`` too, as a violation in one line."""

    @functools.wraps(check)
    def wrapper(plugin: Any, *args: Any, **kwargs: Any) -> None:
        with calling(plugin if isinstance(plugin, type) else type(plugin)):
            check(plugin, *args, **kwargs)

    return cast("_F", wrapper)


def check_complete(cls: type[Any]) -> None:
    """Refuse a class that leaves methods of its contract out."""
    must(not inspect.isabstract(cls), f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}.")


@checked
def check_adapter(model: Any, tokenizer: Any = None) -> None:
    """Check an adapter: its hook points are proved, its facts hold, and the engine agrees with Hugging Face.

    ``model`` is a loaded Hugging Face model whose adapter is registered, or a :class:`xatlas.model.HookedModel`; or an
    adapter class, which is then checked on a tiny random model of each of its architectures, with layers of every type
    that the config allows. With a tokenizer, that a suite can be read is checked too.
    """
    if not isinstance(model, type):
        check_model(model if isinstance(model, HookedModel) else HookedModel(model, tokenizer))
        return
    must(issubclass(model, Adapter), f"check_adapter takes a model or an adapter class, not {model.__name__}.")
    check_complete(model)
    names: Any = getattr(model, "architectures", None)
    fits = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
    must(fits, f"{model.__name__}.architectures must be a tuple of Hugging Face class names.")
    for name in names:
        check_model(testing.tiny_model(model, name))


def check_model(model: HookedModel) -> None:
    """Check an adapter on a model that it has been proved on; errors of its own code pass as they are."""
    for layer in range(model.n_layers):
        _check_layer(model.adapter, layer)
    _check_shapes(model)
    _check_patterns(model)
    _check_roles(model)
    if model.dtype == torch.float32:
        _check_engine(model)
        _check_gradient(model)
        _check_generate(model)
    if model.reader is not None:
        model.read(testing.tiny_suite())


def _check_layer(adapter: Adapter, layer: int) -> None:
    who, word = type(adapter).__name__, adapter.operator_type(layer)
    named = isinstance(word, str) and word
    must(named, f"{who}.operator_type({layer}) is {word!r}: it must be a word, e.g. 'attention'.")
    kinds, roles, layout = set(adapter.hook_points(layer)), adapter.roles(layer), adapter.head_layout(layer)
    for kind in sorted(kinds - set(SITE_KINDS) - set(adapter.extra_kinds)):
        raise unknown(f"site kind of {who}", kind, SITE_KINDS, "Declare kinds of your own in extra_kinds.")
    for kind in ("resid_pre", "operator_out", "resid_post"):
        must(kind in kinds, f"{who} gives layer {layer} no '{kind}': every layer has one.")
    owners: dict[str | Part, str] = {}
    for role, place in roles.items():
        weight = getattr(adapter.role_module(place), "weight", None)
        linear = weight is not None and weight.dim() == 2
        must(linear, f"role '{role}' of layer {layer} names {place}, which is no linear module.")
        must("." in role, f"role '{role}' of layer {layer} must be part.name, e.g. 'mlp.down'.")
        other = owners.setdefault(place, role)
        must(other == role, f"roles '{other}' and '{role}' of layer {layer} name the same module {place}.")
    if (layout is not None) != ("heads" in kinds):
        found = "a 'heads' site without a head layout" if layout is None else "a head layout without a 'heads' site"
        raise XatlasError(f"{who} gives layer {layer} {found}: it needs both or neither.")


def _check_shapes(model: HookedModel) -> None:
    ids = torch.ones(1, 5, dtype=torch.long, device=model.device)
    dims = {**SITE_KINDS, **model.adapter.extra_kinds}
    sizes = {"batch": 1, "pos": 5, "d_model": model.d_model}
    for site, value in model.capture(ids, [*model.editable, *model.sites("router")]).items():
        names, shape = dims[site.kind], tuple(value.shape)
        fits = len(names) == len(shape) and all(sizes.get(d, n) == n for d, n in zip(names, shape, strict=True))
        must(fits, f"{site} (module {model.point(site).module}) has the shape {shape}, not ({', '.join(names)}).")


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
        must(shape == (1, heads, n, n), f"{who} has the shape {shape}, not {(1, heads, n, n)}: one pattern per head.")
        weight = pattern.amax((0, 1))  # (query, key)
        must(not weight[back < 0].any(), f"{who} has weights on tokens that come later: it is no causal pattern.")
        seen = int(back[weight > 0].max()) + 1
        wanted = n if window is None else min(window, n)
        said = f"{type(model.adapter).__name__}.window({site.layer}) is {window}"
        must(seen == wanted, f"{said}, but a query of {site} sees {seen} of {n} tokens.")


@exclusive
@torch.inference_mode()
def _check_roles(model: HookedModel) -> None:
    """Check what the roles of attention and of a gated MLP do, by changing what their modules put out."""
    ids = _random_prompts(model, (6,))[0].ids
    tokens = torch.tensor([ids], device=model.device)
    not_first = (torch.arange(len(ids), device=model.device) > 0)[:, None]

    def read(layer: int, role: str, change: Callable[[Tensor], Tensor], site: str) -> Tensor:
        """Return a site's value, or what goes into the role it names, while a role's outputs are changed."""
        adapter, roles = model.adapter, model.adapter.roles(layer)
        place, found = roles[role], list[Tensor]()

        def changed(_: Any, __: Any, output: Tensor) -> Tensor:
            result, width = output.clone(), output.shape[-1]
            columns = place.outputs(width) if isinstance(place, Part) else list(range(width))
            result[..., columns] = change(result[..., columns])
            return result

        with ExitStack() as stack:
            stack.callback(adapter.role_module(place).register_forward_hook(changed).remove)
            if site in roles:
                module = adapter.role_module(roles[site])
                hook = module.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
                stack.callback(hook.remove)
            else:
                stack.enter_context(attached([model.hook(Site(layer, site), found.append)]))
            model.run(tokens)
        return found[0]

    for layer in range(model.n_layers):
        roles = model.adapter.roles(layer)
        who = f"{type(model.adapter).__name__} is wrong about a role of layer {layer}:"
        attends = model.has(Site(layer, "heads")) and model.has(Site(layer, "attention_pattern"))
        if attends and "attention.v" in roles:
            left = read(layer, "attention.v", torch.zeros_like, "heads")
            must(not left.any(), f"{who} without 'attention.v' heads still write; are k and v swapped?")
        if attends and "attention.q" in roles:
            clean = read(layer, "attention.q", torch.clone, "heads")[:, 1:]
            later = read(layer, "attention.q", lambda value: value * not_first, "heads")[:, 1:]
            same = torch.allclose(clean, later, atol=1e-5)
            must(same, f"{who} 'attention.q' at position 0 is read by later positions; are q and k swapped?")
        if {"mlp.gate", "mlp.up", "mlp.down"} <= set(roles):
            clean = read(layer, "mlp.up", torch.clone, "mlp.down")
            twice = read(layer, "mlp.up", lambda value: 2 * value, "mlp.down")
            cosine = torch.cosine_similarity(clean.flatten().double(), twice.flatten().double(), 0)
            must(cosine > 1 - 1e-6, f"{who} what 'mlp.up' says is not multiplied; are gate and up swapped?")


def _random_prompts(model: HookedModel, lengths: tuple[int, ...]) -> list[TokenPrompt]:
    generator = torch.Generator().manual_seed(2)
    prompts = []
    for number, n in enumerate(lengths):
        ids = tuple(torch.randint(0, model.adapter.vocabulary, (n,), generator=generator).tolist())
        prompts.append(TokenPrompt(Prompt(f"check {number}", "check", "-"), ids, n, n - 1, 1, 2, (), ()))
    return prompts


@exclusive
@torch.inference_mode()
def _check_engine(model: HookedModel) -> None:
    """Zero every site, in the engine and in Hugging Face's own forward, everywhere and at the readout, and compare."""
    prompts, sites = _random_prompts(model, (5, 8, 8)), model.editable
    places: tuple[Positions, Positions] = ("all", "last")
    for positions in places:
        ours = sweep(model, prompts, [(Intervention(site, Zero(), positions=positions),) for site in sites], [KL()])[0]
        for row, prompt in enumerate(prompts):
            found = _plain_zeroed(model, prompt, sites, slice(-1 if positions == "last" else 0, None))
            for mine, theirs, site in zip(ours[row].tolist(), found, sites, strict=True):
                same = abs(mine - theirs) <= ABSOLUTE + RELATIVE * theirs
                numbers = f"{mine:.6g} nats and Hugging Face's forward {theirs:.6g}"
                what = f"zeroing {site}" + (" at the readout" if positions == "last" else "")
                must(same, f"{what}, the engine gives {numbers}: the layer needs more than its recorded arguments.")


def _plain_zeroed(model: HookedModel, prompt: TokenPrompt, sites: list[Site], positions: slice) -> list[float]:
    """Return the KL at the readout of each site's zeroing, in whole forwards: a row for each site, the first clean."""
    found: list[float] = []
    for some in (sites[start : start + _ROWS] for start in range(0, len(sites), _ROWS)):
        hooks = []
        for row, site in enumerate(some, start=1):

            def zeroed(value: Tensor, row: int = row) -> Tensor:
                result = value.clone()
                result[row, positions] = 0
                return result

            hooks += model.edit_hooks(site, zeroed)
        with attached(hooks):
            tokens = model.tokens([prompt]).expand(len(some) + 1, -1)
            logits = model.model(input_ids=tokens, use_cache=False).logits[:, -1].double()
        found += [float(kl_divergence(logits[0], one)) for one in logits[1:]]
    return found


@exclusive
def _check_gradient(model: HookedModel) -> None:
    """Compare the gradient by every site with differences of two forwards, along random directions.

    Where the two choose other experts, their difference is no slope: along one of a few directions they don't.
    """
    (prompt,) = _random_prompts(model, (6,))
    wrong, found = dict.fromkeys(model.editable, ""), _gradients(model, prompt, model.editable)
    for seed in range(3, 7):
        sites, wrong = list(wrong), {}
        for start in range(0, len(sites), _ROWS):
            wrong |= _wrong_slopes(model, prompt, {site: found[site] for site in sites[start : start + _ROWS]}, seed)
    for site, fault in wrong.items():
        raise XatlasError(f"{site} (module {model.point(site).module}): {fault}: is its view differentiable?")


def _wrong_slopes(
    model: HookedModel, prompt: TokenPrompt, found: dict[Site, tuple[Tensor, Tensor]], seed: int
) -> dict[Site, str]:
    """Return the sites whose slope along a random direction is not that of a difference, with both."""
    generator = torch.Generator().manual_seed(seed)
    expected, hooks = [], []
    step = 2e-3
    for row, site in enumerate(found):
        value, slope = found[site]
        direction = torch.randn(value.shape[1:], generator=generator).to(value.device, value.dtype)
        direction = direction * (value.abs().mean() + 1e-3)
        expected.append(float((slope[0] * direction).sum()))

        def shifted(given: Tensor, row: int = row, direction: Tensor = direction) -> Tensor:
            result = given.clone()
            result[2 * row] += step * direction
            result[2 * row + 1] -= step * direction
            return result

        hooks += model.edit_hooks(site, shifted)
    with torch.inference_mode(), attached(hooks):
        tokens = model.tokens([prompt]).expand(2 * len(found) + 1, -1)
        logits = model.model(input_ids=tokens, use_cache=False).logits[:, -1].double()
    *difference, clean = (logits[:, prompt.answer] - logits[:, prompt.foil_answer]).tolist()
    noise, wrong = _NOISE * float(logits.abs().max()), {}
    for site, ours, more, less in zip(found, expected, difference[::2], difference[1::2], strict=True):
        low, high = sorted(((more - clean) / step, (clean - less) / step))  # on one side another expert may be chosen
        margin = _SLOPE * max(abs(ours), abs(low), abs(high)) + noise
        if not low - margin <= ours <= high + margin:
            slopes = f"differences of two forwards {low:.3g} and {high:.3g}"
            wrong[site] = f"the gradient along a random direction is {ours:.3g}, {slopes}"
    return wrong


def _gradients(model: HookedModel, prompt: TokenPrompt, sites: list[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
    """Return each site's value and gradient; say which of them none reaches."""
    try:
        return gradients(model, [prompt], sites)
    except RuntimeError:
        for site in sites:
            try:
                gradients(model, [prompt], [site])
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                fault = f"no gradient reaches it ({why}): its view must be differentiable"
                raise XatlasError(f"{site} (module {model.point(site).module}): {fault}.") from error
        raise


@exclusive
@torch.inference_mode()
def _check_generate(model: HookedModel) -> None:
    """Compare what is generated on a cache, with position 0 edited, with whole forwards over the same tokens."""
    tokens = model.tokens(_random_prompts(model, (6, 6)))
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}

    def gap(tokens: Tensor, *edits: Intervention) -> float:
        """Return how far a cached generation's logits are from those of whole forwards, relative to the largest."""
        with model.intervene(edits):
            made = model.model.generate(tokens, return_dict_in_generate=True, output_logits=True, **greedy)
            whole = model.model(input_ids=made.sequences[:, :-1], use_cache=False).logits[:, tokens.shape[1] - 1 :]
        return float((torch.stack(made.logits, 1) - whole).abs().max()) / max(1.0, float(whole.abs().max()))

    try:
        own = gap(tokens)
        if own > 1e-4:  # Hugging Face's own steps differ; some of its models can take steps of one row alone
            tokens = tokens[:1]
            own = gap(tokens)
        found = gap(tokens, Intervention(Site(0, "operator_out"), Zero(), positions="first"))
    except XatlasError:  # a cache that does not count is refused with its reason
        return
    advice = "its decoder's cache counts tokens otherwise, or a site is not read while decoding"
    fault = f"generating with position 0 edited differs from whole forwards (logits by {found:.2g}): {advice}."
    must(found <= max(1e-4, 4 * own), fault)
