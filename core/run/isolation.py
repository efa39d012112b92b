"""A probe cannot spoil the next: what it finds of the suite, the model, and the whole process, it must leave.

Suite and inputs are copies, and random generators are seeded for each probe. What holds for the whole process (settings
of torch and numpy, hooks on all modules, functions and methods that may be patched) is set right. A model that is not
what it was, in its parts or its logits, is lost: it must be loaded again.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.backends import cuda, cudnn

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, Probe
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.manager import calling
from xatlas.model import HookedModel
from xatlas.model.hooks import attached
from xatlas.suites import Suite
from xatlas.text import and_more


class State:
    """What a probe finds and must leave: the model and its tokenizer, and what holds for the whole process."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.changed: list[str] = []  # by the last probe, in words
        self.lost = False  # whether the model is no longer what it was
        with model.lock:
            self.settings = [read() for _, read, _ in _settings()]
            self.code = [(owner, _code_of(owner)) for owner in _patchable(model)]
            self.logits = _logits(model)
            self.parts, self.attributes = _parts(model)

    def look(self, *, mutates: bool = False) -> None:
        """Note what has changed, and set right what holds for the whole process; training may change the model."""
        self.changed, self.lost = self.restore(), False
        if mutates:
            return
        fault = ""
        try:
            # Before the parts: a run sets anew what depends on the length of the last one.
            if not self.agrees(_logits(self.model)):
                fault = "left a model that gives other logits"
        except Exception as error:
            fault = f"left a model that can't be run any more ({type(error).__name__})"
        parts, attributes = _parts(self.model)
        before = self.parts | self.attributes
        # Objects may keep more than before, as a cache.
        after = parts | {name: value for name, value in attributes.items() if name in self.attributes}
        odd = [name for name in before | after if before.get(name, _OPAQUE) != after.get(name, _OPAQUE)]
        if odd:
            fault = and_more(odd) + ": a probe that trains declares mutates = True" * odd[0].startswith(_WEIGHTS)
        self.lost = bool(fault)
        self.changed += [fault] if fault else []

    def agrees(self, logits: Tensor) -> bool:
        """Say whether clean logits are this model's, but for what a device's rounding may do."""
        gap = 16 * torch.finfo(self.model.dtype).eps * float(self.logits.abs().nan_to_num(0).max())
        alike = self.logits.shape == logits.shape
        return alike and torch.allclose(self.logits, logits, rtol=0, atol=gap, equal_nan=True)

    def restore(self) -> list[str]:
        """Set right what holds for the whole process, and return what had changed, in words."""
        changed = []
        for (what, read, write), before in zip(_settings(), self.settings, strict=True):
            if read() != before:
                changed.append(what)
                with suppress(RuntimeError):
                    write(before)
        for owner, code in self.code:
            now = _code_of(owner)
            inherited = {name for base in getattr(owner, "__mro__", ())[1:-1] for name in vars(base)}
            patched = [name for name, value in code.items() if vars(owner).get(name) is not value]
            for name in [*patched, *(name for name in now if name not in code and name in inherited)]:
                changed.append(f"patched {owner.__name__}.{name}")
                if name in code:
                    setattr(owner, name, code[name])
                else:
                    delattr(owner, name)
        return changed


@contextmanager
def isolated(
    probes: Sequence[Probe], state: State, suite: Suite, inputs: Sequence[Inputs]
) -> Iterator[tuple[Suite, list[Inputs]]]:
    """Run probes on copies of suite and inputs, with seeds of their own; what they leave changed is their failure."""
    own = deepcopy(suite)
    given = [replace(each, reference=deepcopy(each.reference)) for each in inputs]
    before = [suite.hash, *(each.reference and each.reference.hash for each in inputs)]
    failed: BaseException | None = None
    with state.model.lock:  # a probe may run the Hugging Face model itself
        try:
            with calling(type(probes[0])), _seeded(inputs[0].seed):
                yield own, given
        except KeyboardInterrupt:
            state.restore()
            raise
        except BaseException as error:
            failed = error
        state.look(mutates=any(probe.mutates for probe in probes))
    # The hash of a suite is kept with it: of the prompts as they are now, that of a new one.
    if [each and type(each)(each.name, each.prompts).hash for each in (own, *(g.reference for g in given))] != before:
        state.changed.append("changed the suite's prompts")
    if state.changed:
        what = "; ".join(state.changed)
        text = f"{failed}; besides, it {what}." if failed else f"it {what}; its result was thrown away."
        raise XatlasError(text) from failed
    if failed:
        raise failed


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

_WEIGHTS = "changed the model's weights"
#: Stands for objects that are not looked into.
_OPAQUE = object()
#: Tokens that are run to see whether the model still gives the same logits.
_LENGTH = 7
_OF_TOKENIZER = ("special_tokens_map", "all_special_ids", "chat_template", "padding_side", "truncation_side")


@torch.inference_mode()
def _logits(model: HookedModel) -> Tensor:
    """Return the logits of a few tokens ``(2, pos, vocabulary)``: Hugging Face's, and by the adapter's way."""
    ids = (torch.arange(_LENGTH, device=model.device) * model.adapter.vocabulary // _LENGTH)[None]
    last = Site(model.n_layers - 1, "resid_post")
    stream: list[Tensor] = []
    with attached([model.hook(last, stream.append)]):
        plain = model.model(input_ids=ids, use_cache=False).logits[0].float()
    return torch.stack([plain, model.logits(stream[0])[0]]).cpu()


def _parts(model: HookedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all that a probe might leave changed of a model, as it is now; the key says what the probe then did.

    The second are attributes that hide none of their class. The first difference is named, so modules come first.
    """
    hf, tokenizer = model.model, model.tokenizer
    found: dict[str, Any] = {f"changed the module {path}": type(module) for path, module in hf.named_modules()}
    attributes: dict[str, Any] = {}
    hashes: dict[int, Any] = {}  # tied weights are hashed once
    for name, weight in hf.named_parameters(remove_duplicate=False):
        if id(weight) not in hashes:
            hashes[id(weight)] = _plain(weight)
        found[f"{_WEIGHTS} ({name})"] = hashes[id(weight)]
        found[f"changed the requires_grad of {name}"] = weight.requires_grad
        found[f"changed the gradient of {name}"] = weight.grad is None
        found[f"leaves hooks on the model (on the tensor {name})"] = list(weight._backward_hooks or ())
    for name, buffer in hf.named_buffers(remove_duplicate=False):
        found[f"changed the buffer {name}"] = _plain(buffer)
    owners = [(path or "model", module, True) for path, module in hf.named_modules()]
    owners += [(name, getattr(hf, name, None), True) for name in ("config", "generation_config")]
    owners += [("HookedModel", model, False), ("adapter", model.adapter, False), ("reader", model.reader, False)]
    for place, owner, deep in owners:
        for name, value in getattr(owner, "__dict__", {}).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                where = type(hf).__name__ if owner is hf else place
                found[f"leaves hooks on the model ({where}, {name.strip('_')})"] = dict(value)
            elif name not in ("_parameters", "_buffers", "_modules"):
                hides, plain = _hides(owner, name), _plain(value, containers=deep)
                if plain is _OPAQUE and (hides or not deep):  # then by identity, whatever it holds
                    plain = (id(value), value)
                if plain is not _OPAQUE:
                    (found if hides else attributes)[f"changed {place}.{name}"] = plain
    if tokenizer is not None:
        tokenizer("a")  # sets anew what the last call padded and cut to
        backend = getattr(tokenizer, "backend_tokenizer", None)
        whole = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
        about = {name: _plain(getattr(tokenizer, name, None)) for name in (*_OF_TOKENIZER, "model_max_length")}
        about |= {"size": len(tokenizer), "vocabulary": sha256(whole.encode())}
        about |= {name: value for name, value in vars(tokenizer).items() if callable(value) and _hides(tokenizer, name)}
        found |= {f"changed the tokenizer's {name}": value for name, value in about.items()}
    return found, attributes


def _hides(thing: Any, name: str) -> bool:
    hidden = inspect.getattr_static(type(thing), name, _OPAQUE)
    return hidden is not _OPAQUE and not isinstance(hidden, cached_property)


def _plain(value: Any, containers: bool = True) -> Any:
    """Return what a value can be told apart by; the identity of what is called, and nothing of other objects."""
    if value is None or isinstance(value, bool | int | str | bytes | torch.dtype | torch.device):
        return value
    if isinstance(value, float):  # NaN is another NaN
        return repr(value)
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().cpu().reshape(-1)
        data = raw.view(torch.uint8).numpy().data if raw.numel() else b""
        return value.shape, value.dtype, value.device, sha256(data)
    if isinstance(value, list | tuple | set | frozenset) and containers:
        return [_plain(item) for item in value]
    if isinstance(value, dict) and containers:
        return {str(name): _plain(item) for name, item in value.items()}
    return (id(value), value) if callable(value) else _OPAQUE


# -- the process ----------------------------------------------------------------------------------

#: Entered guards of inference mode, which would end with them.
_MODES: list[Any] = []


def _settings() -> list[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    """Return what holds for the whole process: what is said when it is changed, how it is read, and how it is set."""
    found: list[tuple[str, Callable[[], Any], Callable[[Any], Any]]] = [
        ("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("default device", torch.get_default_device, _set_default_device),
        ("inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
        ("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        ("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        ("number of threads", torch.get_num_threads, torch.set_num_threads),
        ("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        ("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    ]
    for kind in ("cpu", "cuda"):
        read, write = partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)
        found.append((f"autocast on {kind}", read, write))
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        read, write = getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp")
        found.append((f"{kind} attention", read, write))
    flags: list[tuple[Any, str]] = [(cuda.matmul, "allow_tf32")]
    flags += [(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    found += [(f"flag {name}", partial(_flag, owner, name), partial(setattr, owner, name)) for owner, name in flags]
    found = [(f"changed torch's {name}", read, write) for name, read, write in found]
    found.append(("changed numpy's handling of errors", np.geterr, lambda kinds: np.seterr(**kinds)))
    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            what = f"leaves hooks on all modules ({name.strip('_')})"
            found.append((what, partial(dict, hooks), partial(_refill, hooks)))
    return found


def _flag(owner: Any, name: str) -> Any:
    with suppress(RuntimeError):  # torch refuses to read a flag of old that was set in the new way
        return getattr(owner, name)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(device if device.type != "cpu" else None)


def _set_inference_mode(on: bool) -> None:
    guard = torch.inference_mode(on)
    guard.__enter__()
    _MODES.append(guard)


def _refill(hooks: dict[Any, Any], before: dict[Any, Any]) -> None:
    hooks.clear()
    hooks.update(before)


def _patchable(model: HookedModel) -> list[Any]:
    """Return the classes and modules whose functions a model's numbers may rest on."""
    things = (model, model.adapter, model.reader, model.tokenizer, *model.model.modules())
    classes = dict.fromkeys(cls for thing in things for cls in type(thing).__mro__ if cls is not object)
    names = {"torch", "torch.nn.functional", *(cls.__module__ for cls in classes)}
    names |= {name for name in sys.modules if name.startswith("xatlas.")}
    return [*classes, *(sys.modules[name] for name in names if name in sys.modules)]


def _code_of(owner: Any) -> dict[str, Any]:
    kinds = (property, classmethod, staticmethod)
    return {name: value for name, value in vars(owner).items() if callable(value) or isinstance(value, kinds)}
