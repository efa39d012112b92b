"""A probe cannot spoil the next: what it finds of the model and of torch, it must leave."""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.guard import calling
from xatlas.model.hooks import attached

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.contracts.probe import Inputs, Probe
    from xatlas.model import HookedModel
    from xatlas.suites import Suite

#: What the settings of the whole process are called, how they are read, and how they are set.
_Setting = tuple[str, Callable[[], Any], Callable[[Any], Any]]
#: What a part of the model is called (kind and place), and how it was found.
_Parts = dict[tuple[str, str], Any]

#: Tokens that are run to see whether the model still gives the same logits.
_LENGTH = 7
#: Attributes of modules that are looked at in other ways.
_HELD_APART = frozenset({"_parameters", "_buffers", "_modules"})
_TOKENIZER = (
    "special_tokens_map",
    "all_special_ids",
    "chat_template",
    "padding_side",
    "truncation_side",
    "model_max_length",
)
_OPAQUE = object()
#: Entered guards of inference mode, which would end with them.
_MODES: list[Any] = []


class State:
    """What a probe finds and must leave: the model, its tokenizer, and what holds for the whole process.

    Parameters
    ----------
    model : HookedModel
        Weights are kept as hashes only.
    """

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        with model.lock:
            self.process = _Process(model)
            self.logits = _logits(model)
            self.parts = _parts(model)
        #: What the last probe changed, in words.
        self.changed: list[str] = []
        #: Whether the model is no longer what it was.
        self.lost = False

    def look(self, *, mutates: bool = False) -> None:
        """Note what has changed, and set right what holds for the whole process; training may change the model."""
        self.changed, self.lost = self.process.restore(), False
        if mutates:
            return
        same, fault = False, "gives other logits"
        try:
            # Before the parts: a run sets anew what depends on the length of the last one.
            same = self.agrees(_logits(self.model))
        except Exception as error:
            fault = f"can't be run any more ({type(error).__name__})"
        found = _parts(self.model)
        kept = {key: value for key, value in found.items() if key in self.parts or key[0] != "attribute"}
        odd = [key for key in {**self.parts, **kept} if self.parts.get(key, _OPAQUE) != kept.get(key, _OPAQUE)]
        self.lost = not same or bool(odd)
        if odd:
            odd.sort(key=lambda key: key[0] != "module")  # with a module its weights go, too
            self.changed.append(_told(*odd[0], len(odd) - 1))
        elif not same:
            self.changed.append(f"left a model that {fault}")

    def agrees(self, logits: Tensor) -> bool:
        """Tell whether clean logits are this model's, but for what a device's rounding may do."""
        gap = 16 * torch.finfo(self.model.dtype).eps * float(self.logits.abs().nan_to_num(0).max())
        alike = self.logits.shape == logits.shape
        return alike and torch.allclose(self.logits, logits, rtol=0, atol=gap, equal_nan=True)


def _told(kind: str, place: str, more: int) -> str:
    where = f"{place} and {more} more" if more else place
    if kind == "weights":
        return f"changed the model's weights ({where}): a probe that trains declares mutates = True"
    if kind == "hooks":
        return f"leaves hooks on the model ({where})"
    return f"changed {where}" if kind in ("attribute", "patch") else f"changed the {kind} {where}"


@contextmanager
def isolated(
    probes: Sequence[Probe], state: State, suite: Suite, inputs: Sequence[Inputs]
) -> Iterator[tuple[Suite, list[Inputs]]]:
    """Run probes on copies of suite and inputs, with global seeds of their own, and look at what they leave.

    Raises
    ------
    XatlasError
        What a probe raises, in one line; or it changed what the next one needs (``state`` says what).
    """
    own = deepcopy(suite)
    given = [replace(each, reference=deepcopy(each.reference)) for each in inputs]
    before = [suite.hash, *(each.reference and each.reference.hash for each in inputs)]
    failed: BaseException | None = None
    with state.model.lock:  # a probe may run the Hugging Face model itself
        try:
            with calling(type(probes[0])), _seeded(inputs[0].seed):
                yield own, given
        except KeyboardInterrupt:
            state.process.restore()
            raise
        except BaseException as error:
            failed = error
        state.look(mutates=any(probe.mutates for probe in probes))
    if [_hash(own), *(_hash(each.reference) for each in given)] != before:
        state.changed.append("changed the suite's prompts")
    if state.changed:
        what = "; ".join(state.changed)
        raise XatlasError(
            f"{failed}; besides, it {what}." if failed else f"it {what}; its result was thrown away."
        ) from failed
    if failed:
        raise failed


def _hash(suite: Suite | None) -> str | None:
    """Return a suite's hash as its prompts are now."""
    return None if suite is None else type(suite)(suite.name, suite.prompts).hash


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, so that no probe depends on what ran before; afterwards they are as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


# -- the model ------------------------------------------------------------------------------------


@torch.inference_mode()
def _logits(model: HookedModel) -> Tensor:
    """Return the logits of a few tokens ``(2, pos, vocabulary)``: Hugging Face's, and by the adapter's way."""
    vocabulary = int(model.adapter.module(model.adapter.embedding_path).weight.shape[0])
    ids = (torch.arange(_LENGTH, device=model.device) * vocabulary // _LENGTH)[None]
    last = Site(model.n_layers - 1, "resid_post")
    stream: list[Tensor] = []
    with attached([model.hook(last, stream.append)]):
        plain = model.model(input_ids=ids, use_cache=False).logits[0].float()
    return torch.stack([plain, model.logits(stream[0])[0]]).cpu()


def _parts(model: HookedModel) -> _Parts:
    """Return everything that a probe might leave changed, weights and buffers as hashes."""
    hf = model.model
    found: _Parts = {}
    hashes: dict[int, Any] = {}  # tied weights are hashed once
    for name, weight in hf.named_parameters(remove_duplicate=False):
        if id(weight) not in hashes:
            hashes[id(weight)] = _digest(weight)
        found["weights", name] = hashes[id(weight)]
        found["requires_grad of", name] = weight.requires_grad
        found["gradient of", name] = weight.grad is None
        found["hooks", f"on the tensor {name}"] = (*(weight._backward_hooks or ()),)
    for name, buffer in hf.named_buffers(remove_duplicate=False):
        found["buffer", name] = _digest(buffer)
    for path, module in hf.named_modules():
        found["module", path] = type(module)
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                found["hooks", f"{path or type(hf).__name__}, {name.strip('_')}"] = dict(value)
        _add_attributes(found, path or "model", module, _HELD_APART)
    for config in ("config", "generation_config"):
        _add_attributes(found, config, getattr(hf, config, None))
    for name, thing in (("HookedModel", model), ("adapter", model.adapter), ("reader", model.reader)):
        _add_attributes(found, name, thing, deep=False)
    return found | _tokenizer_parts(model.tokenizer)


def _digest(tensor: Tensor) -> tuple[Any, ...]:
    raw = tensor.detach().contiguous().cpu().reshape(-1)
    data = raw.view(torch.uint8).numpy().data if raw.numel() else b""
    return tensor.shape, tensor.dtype, tensor.device, sha256(data)


def _add_attributes(
    found: _Parts, place: str, thing: Any, but: frozenset[str] = frozenset(), deep: bool = True
) -> None:
    """Add an object's own attributes; those that hide one of its class, as a patched forward does, as patches.

    Not deep: other objects are told apart by identity, and what containers hold is not looked at.
    """
    for name, value in getattr(thing, "__dict__", {}).items():
        if name in but or name.endswith("_hooks"):
            continue
        hidden = inspect.getattr_static(type(thing), name, _OPAQUE)
        patch = hidden is not _OPAQUE and not isinstance(hidden, functools.cached_property)
        plain = _plain(value) if deep else _plain(value, containers=False)
        if plain is _OPAQUE and (patch or not deep):
            plain = (id(value), value)
        if plain is not _OPAQUE:
            found["patch" if patch else "attribute", f"{place}.{name}"] = plain


def _plain(value: Any, containers: bool = True) -> Any:
    """Return what a value can be told apart by; the identity of what is called, and nothing of other objects."""
    if value is None or isinstance(value, bool | int | str | bytes | torch.dtype | torch.device):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return _digest(value)
    if isinstance(value, list | tuple | set | frozenset) and containers:
        return [_plain(item) for item in value]
    if isinstance(value, dict) and containers:
        return {str(name): _plain(item) for name, item in value.items()}
    return (id(value), value) if callable(value) else _OPAQUE


def _tokenizer_parts(tokenizer: Any) -> _Parts:
    if tokenizer is None:
        return {}
    tokenizer("a")  # sets anew what the last call padded and cut to
    found: _Parts = {("tokenizer's", name): _plain(getattr(tokenizer, name, None)) for name in _TOKENIZER}
    found["tokenizer's", "size"] = len(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    found["tokenizer's", "vocabulary"] = sha256(whole.encode())
    for name, value in vars(tokenizer).items():
        if callable(value) and hasattr(type(tokenizer), name):
            found["tokenizer's", name] = (id(value), value)
    return found


# -- the process ----------------------------------------------------------------------------------


def _settings() -> list[_Setting]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return [
        ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        (
            "torch's default device",
            torch.get_default_device,
            lambda d: torch.set_default_device(d if d.type != "cpu" else None),
        ),
        ("torch's inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
        ("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch's deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        (
            "torch's precision of matrix products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        ("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        ("numpy's handling of errors", np.geterr, lambda kinds: np.seterr(**kinds)),
        *(_flag(owner, name) for owner, name in ((cuda.matmul, "allow_tf32"), *((cudnn, n) for n in _CUDNN))),
        *(
            (f"torch's {name} attention", getattr(cuda, f"{name}_sdp_enabled"), getattr(cuda, f"enable_{name}_sdp"))
            for name in ("flash", "mem_efficient", "math", "cudnn")
        ),
        *(
            (
                f"torch's autocast on {kind}",
                functools.partial(torch.is_autocast_enabled, kind),
                functools.partial(torch.set_autocast_enabled, kind),
            )
            for kind in ("cpu", "cuda")
        ),
    ]


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")


def _flag(owner: Any, name: str) -> _Setting:
    def read() -> Any:
        try:
            return getattr(owner, name)
        except RuntimeError:  # torch refuses to read a flag of old that was set in the new way
            return None

    return f"torch's flag {name}", read, lambda value: setattr(owner, name, value)


def _set_inference_mode(on: bool) -> None:
    guard = torch.inference_mode(on)
    guard.__enter__()
    _MODES.append(guard)


class _Process:
    """What holds for the whole process, and outlives a model that is loaded again: settings, global hooks, patches."""

    def __init__(self, model: HookedModel) -> None:
        self.values = [read() for _, read, _ in _settings()]
        self.hooks = {name: dict(value) for name, value in _global_hooks().items()}
        things = (model, model.adapter, model.reader, model.tokenizer, *model.model.modules())
        classes = dict.fromkeys(cls for thing in things for cls in type(thing).__mro__ if cls is not object)
        names = {"torch", "torch.nn.functional", *(cls.__module__ for cls in classes)}
        names |= {name for name in sys.modules if name.startswith("xatlas.")}
        owners: list[Any] = [*classes, *(sys.modules[name] for name in names if name in sys.modules)]
        self.code = [(owner, {n: v for n, v in vars(owner).items() if _is_code(v)}) for owner in owners]

    def restore(self) -> list[str]:
        """Set right what has changed, and return it in words."""
        told = []
        for (what, read, write), before in zip(_settings(), self.values, strict=True):
            if read() != before:
                told.append(f"changed {what}")
                with suppress(RuntimeError):
                    write(before)
        for name, hooks in _global_hooks().items():
            if hooks != self.hooks[name]:
                told.append(f"leaves hooks on all modules ({name.strip('_')})")
                hooks.clear()
                hooks.update(self.hooks[name])
        for owner, code in self.code:
            now = vars(owner)
            inherited = {n for n, v in now.items() if n not in code and _is_code(v) and _overrides(owner, n)}
            for name in [*(n for n, v in code.items() if now.get(n) is not v), *inherited]:
                told.append(f"patched {owner.__name__}.{name}")
                if name in code:
                    setattr(owner, name, code[name])
                else:
                    delattr(owner, name)
        return told


def _global_hooks() -> dict[str, dict[Any, Any]]:
    held = vars(torch.nn.modules.module)
    return {name: value for name, value in held.items() if name.startswith("_global_") and isinstance(value, dict)}


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def _overrides(owner: Any, name: str) -> bool:
    return isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:-1])
