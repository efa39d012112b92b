"""What every adapter must keep to: proved hook points, facts that hold, numbers that agree."""

from __future__ import annotations

import math
from typing import Any

import torch

from xatlas.checks.probes import ABSOLUTE, RELATIVE, check_abstract, checked
from xatlas.contracts.adapter import Adapter, Site
from xatlas.engine.sweep import sweep
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Intervention, Zero
from xatlas.metrics import KL, kl_divergence
from xatlas.model import HookedModel
from xatlas.model.hooks import attached, exclusive
from xatlas.prompts.reader import TokenPrompt
from xatlas.suites import Prompt
from xatlas.testing import small_model, small_suite
from xatlas.vocabulary import READ_ONLY, SITE_KINDS


@checked
def check_adapter(model: Any, tokenizer: Any = None) -> None:
    """Check an adapter: its hook points are proved, its facts hold, and the engine agrees with Hugging Face.

    Parameters
    ----------
    model : PreTrainedModel or type of Adapter
        A loaded model whose adapter is registered; or an adapter class, which is then checked on a small
        random model of its first architecture, layers of every type that the config allows.
    tokenizer : PreTrainedTokenizerBase, optional
        With it, that a suite can be read is checked too.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    if isinstance(model, type):
        if not issubclass(model, Adapter):
            raise XatlasError(f"check_adapter takes a model or an adapter class, not {model.__name__}.")
        check_abstract(model)
        names = getattr(model, "architectures", None)
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
            raise XatlasError(f"{model.__name__}.architectures must be a tuple of Hugging Face class names.")
        hooked = small_model(model)
    else:
        hooked = HookedModel(model, tokenizer)
    for layer in range(hooked.n_layers):
        _check_operator(hooked, layer)
        _check_roles(hooked, layer)
        _check_heads(hooked, layer)
    prompts = _two_prompts(hooked)
    _check_shapes(hooked, prompts[0])
    if hooked.dtype == torch.float32:
        _check_engine(hooked, prompts)
    if hooked.reader is not None:
        hooked.read(small_suite())


def _check_operator(model: HookedModel, layer: int) -> None:
    word, who = model.adapter.operator_type(layer), type(model.adapter).__name__
    if not isinstance(word, str) or not word:
        raise XatlasError(f"{who}.operator_type({layer}) is {word!r}: it must be a word, e.g. 'attention'.")
    kinds = set(model.adapter.hook_points(layer))
    for kind in sorted(kinds - set(SITE_KINDS) - set(model.adapter.extra_kinds)):
        raise unknown(f"site kind of {who}", kind, SITE_KINDS, "Declare kinds of your own in extra_kinds.")
    for kind in ("resid_pre", "operator_out", "resid_post"):
        if kind not in kinds:
            raise XatlasError(f"{who} gives layer {layer} no '{kind}': every layer has one.")


def _check_roles(model: HookedModel, layer: int) -> None:
    owners: dict[str, str] = {}
    for role, path in model.adapter.roles(layer).items():
        weight = getattr(model.adapter.module(path), "weight", None)
        if weight is None or weight.dim() != 2:
            raise XatlasError(f"role '{role}' of layer {layer} names {path}, which is no linear module.")
        if "." not in role:
            raise XatlasError(f"role '{role}' of layer {layer} must be part.name, e.g. 'mlp.down'.")
        if path in owners:
            raise XatlasError(f"roles '{owners[path]}' and '{role}' of layer {layer} name the same module {path}.")
        owners[path] = role


def _check_heads(model: HookedModel, layer: int) -> None:
    layout, who = model.adapter.head_layout(layer), type(model.adapter).__name__
    has_site = model.has(Site(layer, "heads"))
    if (layout is None) == has_site:
        found = "a 'heads' site without a head layout" if has_site else "a head layout without a 'heads' site"
        raise XatlasError(f"{who} gives layer {layer} {found}: it needs both or neither.")
    if layout is None:
        return
    if min(layout.n_heads, layout.n_kv_heads, layout.d_head) < 1 or layout.n_heads % layout.n_kv_heads:
        raise XatlasError(f"{who} says {layout} of layer {layer}: query heads must be a multiple of the others.")
    for role, heads in (("attention.q", layout.n_heads), ("attention.k", layout.n_kv_heads)):
        path = model.adapter.roles(layer).get(role)
        width = path and getattr(model.adapter.module(path), "out_features", None)
        if width is not None and width != heads * layout.d_head:
            raise XatlasError(f"{who} says {layout} of layer {layer}, but {path} gives {width} numbers.")


def _two_prompts(model: HookedModel) -> list[TokenPrompt]:
    """Return two random texts of unequal length."""
    vocabulary = int(model.adapter.module(model.adapter.embedding_path).weight.shape[0])
    generator = torch.Generator().manual_seed(2)
    found = []
    for n in (5, 8):
        ids = tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist())
        found.append(TokenPrompt(Prompt(f"check {n}", "check", "-"), ids, n, n - 1, None, None, (), ()))
    return found


def _check_shapes(model: HookedModel, prompt: TokenPrompt) -> None:
    sites = [site for kind in _kinds(model) if kind not in READ_ONLY for site in model.sites(kind)]
    dims = {**SITE_KINDS, **model.adapter.extra_kinds}
    sizes = {"batch": 1, "pos": len(prompt.ids), "d_model": model.d_model}
    for site, value in model.capture(model.tokens([prompt]), sites).items():
        wanted = [sizes.get(dim) for dim in dims[site.kind]]
        fits = len(wanted) == value.dim() and all(n in (None, m) for n, m in zip(wanted, value.shape, strict=True))
        if not fits:
            raise XatlasError(
                f"{site} (module {model.point(site).module}) has the shape {tuple(value.shape)}, "
                f"not ({', '.join(dims[site.kind])})."
            )


@exclusive
@torch.inference_mode()
def _check_engine(model: HookedModel, prompts: list[TokenPrompt]) -> None:
    """Zero every site, in the engine and in Hugging Face's own forward, and compare."""
    sites = [site for kind in _kinds(model) if kind not in READ_ONLY for site in model.sites(kind)]
    ours = sweep(model, prompts, [(Intervention(site, Zero()),) for site in sites], [KL()])[0]
    for row, prompt in enumerate(prompts):
        ids = model.tokens([prompt])
        clean = model.model(input_ids=ids, use_cache=False).logits[0, -1].double()
        for column, site in enumerate(sites):
            with attached(model.edit_hooks(site, torch.zeros_like)):
                edited = model.model(input_ids=ids, use_cache=False).logits[0, -1].double()
            theirs = float(kl_divergence(clean, edited))
            if not math.isclose(ours[row, column], theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
                raise XatlasError(
                    f"zeroing {site}, the engine gives {ours[row, column]:.6g} nats and Hugging Face's forward "
                    f"{theirs:.6g}: the layer needs more than its recorded arguments."
                )


def _kinds(model: HookedModel) -> list[str]:
    return list(dict.fromkeys(kind for n in range(model.n_layers) for kind in model.adapter.hook_points(n)))
